//! The table of kernels: their names, block shapes and C++, and which of them a product takes. What else takes which
//! is in `ops.rs`.

use lacuna_model::Activation;

use crate::tiles::{Codes, HalfType, SLAB_K, SLABS_IN_FLIGHT, STRIP_ROWS, TILE_ROWS, Tiles, stride};

/// The text of the kernels, by file. Those in `.cu` include those in `.cuh`.
const SOURCES: [(&str, &str); 11] = [
    ("ptx.cuh", include_str!("../kernels/ptx.cuh")),
    ("product.cuh", include_str!("../kernels/product.cuh")),
    ("prefill.cu", include_str!("../kernels/prefill.cu")),
    ("prefill_bulk.cu", include_str!("../kernels/prefill_bulk.cu")),
    ("decode.cu", include_str!("../kernels/decode.cu")),
    ("norm.cu", include_str!("../kernels/norm.cu")),
    ("place.cu", include_str!("../kernels/place.cu")),
    ("attention.cu", include_str!("../kernels/attention.cu")),
    ("elementwise.cu", include_str!("../kernels/elementwise.cu")),
    ("tokens.cu", include_str!("../kernels/tokens.cu")),
    ("probe.cu", include_str!("../kernels/probe.cu")),
];

const LANES: u32 = 32;
/// Tokens of one `mma.sp`.
const TOKENS: u32 = 8;
/// n-tiles of a decode kernel.
const DECODE_TILES: [u32; 3] = [1, 2, 4];
/// Warps of a decode kernel. The more there are, the more bytes are on their way; sums of many tokens leave registers for 8.
const fn decode_warps(n_tiles: u32) -> u32 {
    if n_tiles == 1 { 16 } else { 8 }
}

/// Slabs that a warp of a decode kernel has in shared memory: up to 8 tokens take two at once, of more the next ones wait.
const fn decode_stages(n_tiles: u32) -> usize {
    if n_tiles == 2 { 3 } else { 2 }
}

/// Up to so many tokens decode, a strip of them at a time; beyond them weights of 16 bits take prefill. Reckoned, not yet
/// measured: until there prefill has too few blocks for a large GPU.
const DECODE_TOKENS: usize = 64;

/// Warps and tiles of a prefill kernel: `BLOCK_ROWS` is `down · m_tiles · 16`, `BLOCK_TOKENS` is `across · n_tiles · 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    down: u32,
    across: u32,
    m_tiles: u32,
    n_tiles: u32,
}

impl Shape {
    const fn rows(self) -> u32 {
        self.down * self.m_tiles * TILE_ROWS as u32
    }

    const fn tokens(self) -> u32 {
        self.across * self.n_tiles * TOKENS
    }

    const fn warps(self) -> u32 {
        self.down * self.across
    }

    /// Slabs and their lists, or the sums of one m-tile of each warp, whichever is more.
    fn shared_bytes(self, slab_places: usize) -> u32 {
        let slabs = SLABS_IN_FLIGHT * slab_places * (2 * self.tokens() as usize + size_of::<u32>());
        let sums = TILE_ROWS * self.tokens() as usize * self.down as usize * size_of::<f32>();
        slabs.max(sums) as u32
    }
}

/// The largest first: the more rows and tokens a block has, the less it fetches for each product.
const SHAPES: [Shape; 3] = [
    Shape { down: 4, across: 2, m_tiles: 4, n_tiles: 8 },
    Shape { down: 2, across: 2, m_tiles: 4, n_tiles: 4 },
    Shape { down: 2, across: 2, m_tiles: 2, n_tiles: 4 },
];

/// Rows of the row tiles that exist, with the shared memory that the largest block on them takes.
pub(crate) fn row_tiles(slab_places: usize) -> [(usize, usize); 3] {
    SHAPES.map(|shape| (shape.rows() as usize, shape.shared_bytes(slab_places) as usize))
}

/// Length of `Products` of decode.cu.
pub(crate) const DECODE_PRODUCTS: usize = 3;

/// Shared memory of a block that decodes: of each warp its slabs, later its sums, as `WARP_BYTES` of decode.cu.
fn decode_shared(codes: Codes, m_tiles: u32, n_tiles: u32) -> u32 {
    let (m_tiles, values) = (m_tiles as usize, codes.slab_bytes());
    let scales = if codes == Codes::Float { 0 } else { m_tiles * TILE_ROWS * size_of::<u16>() };
    // Metadata is that of a strip.
    let stage = m_tiles * values + 4 * LANES as usize * size_of::<u32>() + SLAB_K * size_of::<u32>() + scales;
    let width = (n_tiles * TOKENS) as usize;
    // With a gap behind each tile.
    let fetched = if n_tiles > 1 { n_tiles as usize * (SLAB_K + 2) * TOKENS as usize * size_of::<u16>() } else { 0 };
    let sums = m_tiles * TILE_ROWS * width * size_of::<f32>();
    decode_warps(n_tiles) * (decode_stages(n_tiles) * stage + fetched).max(sums) as u32
}

/// Queries of a tile of an attention kernel: the most that it takes.
const TILE_QUERIES: [usize; 3] = [1, 4, MOST_QUERIES];
/// The most queries of a tile.
pub(crate) const MOST_QUERIES: usize = 8;
/// `WARPS` of attention.cu.
pub(crate) const fn attention_warps(queries: usize) -> usize {
    if queries == 1 { 8 } else { 4 }
}
/// The largest head that an attention kernel takes: `WIDTH` of attention.cu.
pub(crate) const MOST_HEAD_FEATURES: usize = 256;
const FUNCTIONS: [Activation; 5] =
    [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::GeluSigmoid, Activation::Relu];

/// The struct of elementwise.cu.
fn function_name(function: Activation) -> &'static str {
    match function {
        Activation::Silu => "Silu",
        Activation::GeluErf => "GeluErf",
        Activation::GeluTanh => "GeluTanh",
        Activation::GeluSigmoid => "GeluSigmoid",
        Activation::Relu => "Relu",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Norm {
        /// whether the mean is taken away: a LayerNorm
        centred: bool,
    },
    Place {
        rotary: bool,
    },
    Attend {
        /// of a tile
        queries: usize,
    },
    Activate {
        function: Activation,
        gated: bool,
    },
    Bias,
    Gather,
    Next,
    Prefill {
        shape: Shape,
        /// m-tiles that share their columns
        sharing: u32,
    },
    /// `prefill_bulk.cu`
    PrefillBulk {
        /// m-tiles that share their columns
        sharing: u32,
        /// blocks of a cluster
        cluster: u32,
    },
    Decode {
        codes: Codes,
        m_tiles: u32,
        n_tiles: u32,
    },
}

/// `prefill_bulk.cu`: rows and tokens of a block, its warps, the most stages, and blocks of a cluster.
const BULK_ROWS: usize = 256;
const BULK_TOKENS: usize = 128;
const BULK_WARPS: u32 = 12;
const BULK_STAGES: usize = 8;
const CLUSTERS: [u32; 2] = [2, 1];
/// Its barriers, and the sums of its 8 multiplying warps on their way out.
const BULK_FIXED_BYTES: usize = 256 + 8 * 1024;

/// One stage of it, `stage_bytes`, with its two lists.
fn bulk_stage_bytes(v: usize, slab_places: usize) -> usize {
    let runs = (STRIP_ROWS / v).max(1);
    let strip = Codes::Float.slab_bytes() * 4 + LANES as usize * (4 * size_of::<u32>() + runs * size_of::<u16>());
    BULK_ROWS / STRIP_ROWS * strip + slab_places * (BULK_TOKENS * size_of::<u16>() + 2 * size_of::<u32>())
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    half: HalfType,
    job: Job,
}

impl Kernel {
    /// A RMSNorm, or with `centred` a LayerNorm.
    pub(crate) fn norm(half: HalfType, centred: bool) -> Self {
        Self { half, job: Job::Norm { centred } }
    }

    /// Keys and values into the cache, queries and keys turned before.
    pub(crate) fn place(half: HalfType, rotary: bool) -> Self {
        Self { half, job: Job::Place { rotary } }
    }

    /// Attention of tiles of some queries, with how many there is room for.
    pub(crate) fn attend(half: HalfType, queries: usize) -> (Self, usize) {
        let queries = TILE_QUERIES.into_iter().find(|&most| queries <= most).unwrap_or(MOST_QUERIES);
        (Self { half, job: Job::Attend { queries } }, queries)
    }

    /// The function inside an MLP.
    pub(crate) fn activate(half: HalfType, function: Activation, gated: bool) -> Self {
        Self { half, job: Job::Activate { function, gated } }
    }

    /// The bias of a dense layer.
    pub(crate) fn bias(half: HalfType) -> Self {
        Self { half, job: Job::Bias }
    }

    /// Vectors of a table, or columns of a matrix: bits, whatever they mean.
    pub(crate) fn gather() -> Self {
        Self { half: HalfType::F16, job: Job::Gather }
    }

    /// The likeliest tokens.
    pub(crate) fn next() -> Self {
        Self { half: HalfType::F16, job: Job::Next }
    }

    /// The name of its function: `prefill_TYPE_ROWSxTOKENS_SHARED`, where `SHARED` rows gather together,
    /// `decode_TYPE_VALUES_ROWSxTOKENS`, or what else it does.
    pub fn name(self) -> String {
        let half = self.half.name();
        match self.job {
            Job::Prefill { shape, sharing } => {
                format!("prefill_{half}_{}x{}_{}", shape.rows(), shape.tokens(), sharing * TILE_ROWS as u32)
            }
            Job::PrefillBulk { sharing, cluster } => {
                let shared = sharing * TILE_ROWS as u32;
                format!("prefill_bulk_{half}_{BULK_ROWS}x{BULK_TOKENS}_{shared}_{cluster}")
            }
            Job::Decode { codes, m_tiles, n_tiles } => {
                let (rows, tokens) = (m_tiles * TILE_ROWS as u32, n_tiles * TOKENS);
                format!("decode_{half}_{}_{rows}x{tokens}", codes.name())
            }
            Job::Norm { centred } => format!("{}_norm_{half}", if centred { "layer" } else { "rms" }),
            Job::Place { rotary } => format!("place_{half}_{}", if rotary { "rotary" } else { "plain" }),
            Job::Attend { queries } => format!("attention_{half}_{queries}"),
            Job::Activate { function, gated } => {
                let gated = if gated { "gated_" } else { "" };
                format!("{gated}{}_{half}", function_name(function).to_lowercase())
            }
            Job::Bias => format!("bias_{half}"),
            Job::Gather => "gather".to_owned(),
            Job::Next => "next".to_owned(),
        }
    }

    /// The line of C++ that makes it.
    pub fn definition(self) -> String {
        let half = match self.half {
            HalfType::F16 => "F16",
            HalfType::Bf16 => "Bf16",
        };
        let template = match self.job {
            Job::Prefill { shape: Shape { down, across, m_tiles, n_tiles }, sharing } => {
                format!("Prefill<{half}, {down}, {across}, {m_tiles}, {n_tiles}, {sharing}>")
            }
            Job::PrefillBulk { sharing, cluster } => {
                let (name, threads) = (self.name(), self.threads());
                let template = format!("PrefillBulk<{half}, {sharing}, {cluster}>");
                return format!("LACUNA_CLUSTER_KERNEL({name}, {threads}, {cluster}, {template})\n");
            }
            Job::Decode { codes, m_tiles, n_tiles } => {
                let values = match codes {
                    Codes::Float => "Floats",
                    Codes::Int8 => "Int8",
                    Codes::Int4 => "Int4",
                };
                let (warps, stages) = (decode_warps(n_tiles), decode_stages(n_tiles));
                format!("Decode<{half}, {values}<{half}>, {m_tiles}, {n_tiles}, {warps}, {stages}>")
            }
            Job::Norm { centred } => format!("Normalize<{half}, {centred}>"),
            Job::Place { rotary } => format!("PlaceTokens<{half}, {rotary}>"),
            Job::Attend { queries } => format!("Attend<{half}, {queries}>"),
            Job::Activate { function, gated } => format!("Activate<{half}, {}, {gated}>", function_name(function)),
            Job::Bias => format!("AddBias<{half}>"),
            Job::Gather => "Gather".to_owned(),
            Job::Next => "Next".to_owned(),
        };
        format!("LACUNA_KERNEL({}, {}, {}, {template})\n", self.name(), self.threads(), self.neighbours())
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self.job {
            Job::Prefill { shape, .. } => shape.warps() * LANES,
            Job::PrefillBulk { .. } => BULK_WARPS * LANES,
            Job::Decode { n_tiles, .. } => decode_warps(n_tiles) * LANES,
            // `THREADS` of each template.
            Job::Place { .. } => 128,
            Job::Attend { queries } => attention_warps(queries) as u32 * LANES,
            Job::Activate { .. } | Job::Bias | Job::Gather => 256,
            Job::Norm { .. } | Job::Next => 1024,
        }
    }

    /// Blocks that a multiprocessor has registers for. Two that decode: the second loads its weight while the first ends.
    fn neighbours(self) -> u32 {
        if matches!(self.job, Job::Decode { n_tiles: 1 | 2, .. } | Job::Attend { queries: 1 }) { 2 } else { 1 }
    }

    /// Products that one launch of it can do.
    pub(crate) fn products(self) -> usize {
        if matches!(self.job, Job::Decode { .. }) { DECODE_PRODUCTS } else { 1 }
    }

    /// Whether it may begin while the kernel before it still runs, and waits for that itself.
    pub fn begins_early(self) -> bool {
        match self.job {
            Job::Prefill { .. } | Job::PrefillBulk { .. } => false,
            Job::Norm { .. }
            | Job::Place { .. }
            | Job::Attend { .. }
            | Job::Activate { .. }
            | Job::Bias
            | Job::Gather
            | Job::Next
            | Job::Decode { .. } => true,
        }
    }

    /// Whether it is a product.
    pub fn is_product(self) -> bool {
        matches!(self.job, Job::Prefill { .. } | Job::PrefillBulk { .. } | Job::Decode { .. })
    }

    /// Whether GPUs of a compute capability have what it takes.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        !matches!(self.job, Job::PrefillBulk { .. }) || capability >= (9, 0)
    }

    /// What it multiplies.
    pub fn half(self) -> HalfType {
        self.half
    }

    /// The file of its template.
    fn file(self) -> &'static str {
        match self.job {
            Job::Prefill { .. } => "prefill.cu",
            Job::PrefillBulk { .. } => "prefill_bulk.cu",
            Job::Decode { .. } => "decode.cu",
            Job::Norm { .. } => "norm.cu",
            Job::Place { .. } => "place.cu",
            Job::Attend { .. } => "attention.cu",
            Job::Activate { .. } | Job::Bias => "elementwise.cu",
            Job::Gather | Job::Next => "tokens.cu",
        }
    }
}

/// All kernels.
pub fn all() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::gather(), Kernel::next()];
    for half in [HalfType::F16, HalfType::Bf16] {
        for shape in SHAPES {
            let sharing = [4, 2, 1].into_iter().filter(|&sharing| sharing <= shape.m_tiles);
            kernels.extend(sharing.map(|sharing| Kernel { half, job: Job::Prefill { shape, sharing } }));
        }
        for cluster in CLUSTERS {
            kernels.extend([4, 2, 1].map(|sharing| Kernel { half, job: Job::PrefillBulk { sharing, cluster } }));
        }
        for codes in [Codes::Float, Codes::Int8, Codes::Int4] {
            for m_tiles in [2, 1] {
                let jobs = DECODE_TILES.map(|n_tiles| Job::Decode { codes, m_tiles, n_tiles });
                kernels.extend(jobs.map(|job| Kernel { half, job }));
            }
        }
        for switch in [false, true] {
            kernels.extend([Kernel::norm(half, switch), Kernel::place(half, switch)]);
            kernels.extend(FUNCTIONS.map(|function| Kernel::activate(half, function, switch)));
        }
        kernels.extend(TILE_QUERIES.map(|queries| Kernel { half, job: Job::Attend { queries } }));
        kernels.push(Kernel::bias(half));
    }
    kernels
}

/// One text that holds some kernels, for a compiler without files: includes are put in place, each once.
pub fn source(kernels: &[Kernel]) -> String {
    let mut text = String::new();
    let mut seen = vec![];
    for kernel in kernels {
        include(kernel.file(), &mut seen, &mut text);
    }
    text + &kernels.iter().copied().map(Kernel::definition).collect::<String>()
}

/// The text of the probes.
pub fn probe_source() -> String {
    let mut text = String::new();
    include("probe.cu", &mut vec![], &mut text);
    text
}

fn include(file: &str, seen: &mut Vec<String>, text: &mut String) {
    // What is not in the table is the host's alone.
    let Some((_, source)) = SOURCES.iter().find(|(name, _)| *name == file) else { return };
    if seen.iter().any(|name| name == file) {
        return;
    }
    seen.push(file.to_owned());
    for line in source.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(other) => include(other, seen, text),
            None if line == "#pragma once" => {}
            None => *text += &format!("{line}\n"),
        }
    }
}

/// What of a GPU decides on shapes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// shared memory that a block may ask for, bytes
    pub shared_bytes: usize,
    /// multiprocessors
    pub multiprocessors: usize,
    /// whether it has bulk copies and clusters: sm_90 on
    pub bulk: bool,
}

impl Limits {
    /// Whether most multiprocessors get a block.
    fn are_filled_by(self, blocks: usize) -> bool {
        4 * blocks >= 3 * self.multiprocessors
    }
}

/// A kernel and its grid.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Which.
    pub kernel: Kernel,
    /// Blocks of threads, of rows and of tokens.
    pub blocks: [u32; 2],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Stages of a prefill kernel with bulk copies.
    pub stages: usize,
}

/// Blocks with warps that fetch, where the GPU has bulk copies, the weight row tiles as high, and most multiprocessors get
/// a tile of y.
fn bulk(tiles: &Tiles, tokens: usize, limits: Limits) -> Option<Launch> {
    let (down, across) = (tiles.rows().div_ceil(BULK_ROWS), stride(tokens).div_ceil(BULK_TOKENS));
    if !limits.bulk || !limits.are_filled_by(down * across) || !tiles.row_tile().is_multiple_of(BULK_ROWS) {
        return None;
    }
    let stage = bulk_stage_bytes(tiles.v(), tiles.slab_places());
    let stages = (limits.shared_bytes.saturating_sub(BULK_FIXED_BYTES) / stage).min(BULK_STAGES);
    if stages < 2 {
        return None;
    }
    let cluster = CLUSTERS.into_iter().find(|&cluster| across.is_multiple_of(cluster as usize))?;
    let clusters = (down * across).min(limits.multiprocessors) / cluster as usize;
    Some(Launch {
        kernel: Kernel { half: tiles.half(), job: Job::PrefillBulk { sharing: tiles.sharing() as u32, cluster } },
        blocks: [clusters.max(1) as u32, cluster],
        shared_bytes: (BULK_FIXED_BYTES + stages * stage) as u32,
        stages,
    })
}

/// How a weight multiplies so many tokens: up to half a million of them, where a grid ends.
pub fn choose(tiles: &Tiles, tokens: usize, limits: Limits) -> Launch {
    let sharing = tiles.sharing() as u32;
    if tokens <= DECODE_TOKENS || tiles.codes() != Codes::Float {
        let enough = DECODE_TILES.into_iter().find(|n_tiles| tokens <= (n_tiles * TOKENS) as usize);
        let (m_tiles, n_tiles) = (sharing.min(2), enough.unwrap_or(DECODE_TILES[2]));
        let (rows, width) = (m_tiles as usize * TILE_ROWS, (n_tiles * TOKENS) as usize);
        return Launch {
            kernel: Kernel { half: tiles.half(), job: Job::Decode { codes: tiles.codes(), m_tiles, n_tiles } },
            blocks: [tiles.rows().div_ceil(rows) as u32, tokens.div_ceil(width) as u32],
            shared_bytes: decode_shared(tiles.codes(), m_tiles, n_tiles),
            stages: 0,
        };
    }
    if let Some(launch) = bulk(tiles, tokens, limits) {
        return launch;
    }
    let launch = |shape: Shape| Launch {
        kernel: Kernel { half: tiles.half(), job: Job::Prefill { shape, sharing: sharing.min(shape.m_tiles) } },
        blocks: [
            tiles.rows().div_ceil(shape.rows() as usize) as u32,
            stride(tokens).div_ceil(shape.tokens() as usize) as u32,
        ],
        shared_bytes: shape.shared_bytes(tiles.slab_places()),
        stages: 0,
    };
    // Smaller blocks fetch more for each product, but most multiprocessors should have one.
    let fitting = SHAPES.into_iter().filter(|shape| {
        shape.rows() as usize <= tiles.row_tile() && launch(*shape).shared_bytes as usize <= limits.shared_bytes
    });
    let launches: Vec<Launch> = fitting.map(launch).collect();
    let fills = |launch: &&Launch| limits.are_filled_by((launch.blocks[0] * launch.blocks[1]) as usize);
    *launches.iter().find(fills).or(launches.last()).expect("a weight's row tile is made to fit the smallest shape")
}

//! What stands between products: norms, positions, attention, activations, gathering, the likeliest token. Each function
//! checks its operands and asks a machine for one launch.

use lacuna_model::{Activation, BlockConfig};

use crate::activations::{Activations, upload_f32, upload_u32};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, MOST_HEAD_FEATURES, MOST_QUERIES, attention_warps};
use crate::machine::{Buffer, Call, Machine, Operands};
use crate::tiles::{HalfType, stride};
use crate::weights::Dense;

/// Tokens of a block of `norm.cu` at most, and blocks that are enough for more of them.
const NORM_TOKENS: usize = 32;
const NORM_BLOCKS: usize = 64;
const LANES: usize = 32;
/// Blocks of attention for each multiprocessor, where one tile can have as many as that takes.
const ATTENTION_BLOCKS: usize = 2;
const MOST_SPLITS: usize = 32;
/// Features of a head in the cache are filled up to a multiple of this: 16 bytes.
const CHUNK: usize = 8;

/// A norm's weights: RMSNorm without a bias, LayerNorm with one.
pub struct Norm {
    weight: Buffer,
    bias: Option<Buffer>,
    features: usize,
    epsilon: f32,
}

impl Norm {
    /// Copies `weight[H]` and `bias[H]` to a machine.
    pub fn upload(machine: &dyn Machine, weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Result<Self> {
        if let Some(bias) = bias.filter(|bias| bias.len() != weight.len()) {
            return Err(Error::Shape { what: "bias of a norm", want: weight.len(), got: bias.len() });
        }
        Ok(Self {
            weight: upload_f32(machine, weight)?,
            bias: bias.map(|bias| upload_f32(machine, bias)).transpose()?,
            features: weight.len(),
            epsilon,
        })
    }

    /// Norms each token of `x[H, T]` into `y`.
    pub fn apply(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        y.check("normed activations", x.half(), self.features, x.tokens())?;
        self.launch(machine, x, y.data.address())
    }

    /// Norms each token of `x[H, T]` where it is.
    pub fn apply_in_place(&self, machine: &dyn Machine, x: &mut Activations) -> Result<()> {
        let address = x.data.address();
        self.launch(machine, x, address)
    }

    fn launch(&self, machine: &dyn Machine, x: &Activations, y: u64) -> Result<()> {
        x.check("activations of a norm", x.half(), self.features, x.tokens())?;
        let kernel = Kernel::norm(x.half(), self.bias.is_some());
        let block_tokens = (x.tokens() / NORM_BLOCKS).next_power_of_two().min(NORM_TOKENS);
        let operands = Operands::default()
            .address(x.data.address())
            .address(self.weight.address())
            .address(self.bias.as_ref().map_or(0, Buffer::address))
            .address(y)
            .number(self.features)
            .number(x.tokens())
            .number(x.stride())
            .number(block_tokens)
            .float(self.epsilon);
        let shared = kernel.threads() as usize / LANES * block_tokens * size_of::<f32>();
        launch(machine, kernel, [x.tokens().div_ceil(block_tokens), 1], shared, operands)
    }
}

/// Keys and values of some sequences in one layer, `[slots, kv_heads, capacity, D]` each.
pub struct LayerCache {
    keys: Buffer,
    values: Buffer,
    shape: CacheShape,
}

/// Sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// type of keys and values
    pub half: HalfType,
    /// sequences
    pub slots: usize,
    /// positions that each has room for
    pub capacity: usize,
    /// heads of keys
    pub kv_heads: usize,
    /// features of a head, D
    pub features: usize,
}

impl CacheShape {
    /// For blocks of a config.
    pub fn of(config: &BlockConfig, half: HalfType, slots: usize, capacity: usize) -> Self {
        Self { half, slots, capacity, kv_heads: config.kv_heads, features: config.head_dim }
    }

    /// Features of a head with what fills them up.
    fn row(self) -> usize {
        self.features.next_multiple_of(CHUNK)
    }

    /// Bytes of keys and values of one layer.
    pub fn bytes(self) -> usize {
        2 * size_of::<u16>() * self.slots * self.kv_heads * self.capacity * self.row()
    }
}

impl LayerCache {
    /// Room for keys and values.
    pub fn empty(machine: &dyn Machine, shape: CacheShape) -> Result<Self> {
        let half = || machine.allocate(shape.bytes() / 2);
        Ok(Self { keys: half()?, values: half()?, shape })
    }
}

/// Where the tokens of a batch stand.
pub struct Places {
    /// the sequence of each token
    slots: Buffer,
    /// its place there
    pub(crate) positions: Buffer,
    /// behind the last position that it sees
    pub(crate) ends: Buffer,
    /// runs of queries
    tiles: Buffer,
    tile_count: usize,
    /// queries of the largest
    tile_queries: usize,
    /// blocks that share the positions of a tile, what they leave, and how many are done
    splits: usize,
    parts: Buffer,
    done: Buffer,
    tokens: usize,
    /// slots and positions that are used
    needs: [usize; 2],
}

impl Places {
    /// For each sequence its slot, how many tokens it already has, and how many come now; `causal` tokens see what is
    /// before them and themselves, others the whole of their sequence.
    pub fn upload(
        machine: &dyn Machine,
        config: &BlockConfig,
        sequences: &[(usize, usize, usize)],
        causal: bool,
    ) -> Result<Self> {
        let (mut slots, mut positions, mut ends, mut tiles) = (vec![], vec![], vec![], vec![]);
        let group = config.heads / config.kv_heads;
        for &(slot, past, len) in sequences {
            let queries = slots.len() * group..(slots.len() + len) * group;
            for first in queries.clone().step_by(MOST_QUERIES) {
                tiles.extend([first as u32, queries.end.min(first + MOST_QUERIES) as u32]);
            }
            for position in past..past + len {
                slots.push(slot as u32);
                positions.push(position as u32);
                ends.push(if causal { position + 1 } else { past + len } as u32);
            }
        }
        let tile_queries = tiles.as_chunks().0.iter().map(|[first, end]| end - first).max().unwrap_or(0) as usize;
        let blocks = tiles.len() / 2 * config.kv_heads;
        let splits = (ATTENTION_BLOCKS * machine.limits().multiprocessors / blocks.max(1)).clamp(1, MOST_SPLITS);
        let shared = if splits > 1 { blocks } else { 0 };
        Ok(Self {
            tokens: slots.len(),
            tile_count: tiles.len() / 2,
            tile_queries,
            splits,
            parts: machine.allocate(shared * splits * MOST_QUERIES * (config.head_dim + 2) * size_of::<f32>())?,
            done: upload_u32(machine, &vec![0; shared])?,
            needs: [
                sequences.iter().map(|&(slot, ..)| slot + 1).max().unwrap_or(0),
                sequences.iter().map(|&(_, past, len)| past + len).max().unwrap_or(0),
            ],
            slots: upload_u32(machine, &slots)?,
            positions: upload_u32(machine, &positions)?,
            ends: upload_u32(machine, &ends)?,
            tiles: upload_u32(machine, &tiles)?,
        })
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn check(&self, cache: &LayerCache) -> Result<()> {
        let room = [cache.shape.slots, cache.shape.capacity];
        for (what, (want, got)) in
            ["slots of a cache", "positions of a cache"].into_iter().zip(self.needs.into_iter().zip(room))
        {
            if want > got {
                return Err(Error::Shape { what, want, got });
            }
        }
        Ok(())
    }
}

/// Cosines and sines of the angles of rotary embedding, `[positions, D/2]` each.
pub struct Angles {
    cosines: Buffer,
    sines: Buffer,
    positions: usize,
}

impl Angles {
    /// Copies tables to a machine.
    pub fn upload(machine: &dyn Machine, positions: usize, [cosines, sines]: [&[f32]; 2]) -> Result<Self> {
        Ok(Self { cosines: upload_f32(machine, cosines)?, sines: upload_f32(machine, sines)?, positions })
    }
}

/// Some rows of a matrix: queries, keys or values, which may share one.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// the matrix
    pub of: &'a Activations,
    /// first row
    pub first: usize,
    /// how many
    pub count: usize,
}

impl Rows<'_> {
    fn address(self, what: &'static str, half: HalfType, count: usize, tokens: usize) -> Result<u64> {
        self.of.check(what, half, self.of.features(), tokens)?;
        if self.count != count || self.first + count > self.of.features() {
            return Err(Error::Shape { what, want: count, got: self.count });
        }
        Ok(self.of.row(self.first))
    }
}

/// Turns queries and keys by their positions, and puts keys and values into a cache. Without angles nothing is turned.
pub fn place(
    machine: &dyn Machine,
    config: &BlockConfig,
    [queries, keys, values]: [Rows; 3],
    places: &Places,
    angles: Option<&Angles>,
    cache: &mut LayerCache,
) -> Result<()> {
    places.check(cache)?;
    let CacheShape { half, kv_heads, features, capacity, .. } = cache.shape;
    if let Some(angles) = angles.filter(|angles| angles.positions < places.needs[1]) {
        return Err(Error::Shape { what: "angles", want: places.needs[1], got: angles.positions });
    }
    let turned = if angles.is_some() { config.heads } else { 0 };
    let kernel = Kernel::place(half, angles.is_some());
    let operands = Operands::default()
        .address(queries.address("queries", half, config.heads * features, places.tokens)?)
        .address(keys.address("keys", half, kv_heads * features, places.tokens)?)
        .address(values.address("values", half, kv_heads * features, places.tokens)?)
        .address(cache.keys.address())
        .address(cache.values.address())
        .address(places.slots.address())
        .address(places.positions.address())
        .address(angles.map_or(0, |angles| angles.cosines.address()))
        .address(angles.map_or(0, |angles| angles.sines.address()))
        .number(places.tokens)
        .number(stride(places.tokens))
        .number(turned)
        .number(kv_heads)
        .number(features)
        .number(cache.shape.row())
        .number(capacity);
    let items = places.tokens * cache.shape.row() / 2;
    launch(machine, kernel, [items.div_ceil(kernel.threads() as usize), turned + kv_heads], 0, operands)
}

/// Attention of queries to what they see of a cache, within a window of the last positions: `out[heads · D, T]`.
pub fn attend(
    machine: &dyn Machine,
    config: &BlockConfig,
    queries: Rows,
    places: &Places,
    window: Option<usize>,
    cache: &LayerCache,
    out: &mut Activations,
) -> Result<()> {
    places.check(cache)?;
    let CacheShape { half, kv_heads, features, capacity, .. } = cache.shape;
    let row = cache.shape.row();
    out.check("mixed values", half, config.heads * features, places.tokens)?;
    if features > MOST_HEAD_FEATURES {
        return Err(Error::Shape { what: "features of a head", want: MOST_HEAD_FEATURES, got: features });
    }
    let (kernel, queries_of_tile) = Kernel::attend(half, places.tile_queries);
    let operands = Operands::default()
        .address(queries.address("queries", half, config.heads * features, places.tokens)?)
        .address(cache.keys.address())
        .address(cache.values.address())
        .address(places.tiles.address())
        .address(places.slots.address())
        .address(places.ends.address())
        .address(out.data.address())
        .address(places.parts.address())
        .address(places.done.address())
        .number(out.stride())
        .number(kv_heads)
        .number(config.heads / kv_heads)
        .number(features)
        .number(row)
        .number(capacity)
        .number(window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize)))
        .number(places.splits)
        .float((features as f32).sqrt().recip());
    // Of each query itself; of each warp weights, sums, a maximum and a total.
    let warps = attention_warps(queries_of_tile);
    let products = if queries_of_tile == 1 { LANES * (LANES + 1) } else { 0 };
    let left = products.max(queries_of_tile * MOST_HEAD_FEATURES);
    let floats = queries_of_tile * (row + warps * (LANES + 2)) + warps * left;
    launch(machine, kernel, [places.tile_count * places.splits, kv_heads], floats * size_of::<f32>(), operands)
}

/// `x = f(x)`, or `x = f(x) · factor` of a gated MLP.
pub fn activate(
    machine: &dyn Machine,
    function: Activation,
    x: &mut Activations,
    factor: Option<&Activations>,
) -> Result<()> {
    if let Some(factor) = factor {
        factor.check("the gated factor", x.half(), x.features(), x.tokens())?;
    }
    let kernel = Kernel::activate(x.half(), function, factor.is_some());
    let length = x.features() * x.stride();
    let operands = Operands::default()
        .address(x.data.address())
        .address(factor.map_or(0, |factor| factor.data.address()))
        .number(length);
    launch(machine, kernel, [length.div_ceil(kernel.threads() as usize), 1], 0, operands)
}

/// `y = bias`, or with `add` `y += bias`, `[R]` in every column.
pub(crate) fn bias(machine: &dyn Machine, bias: &Buffer, y: &mut Activations, add: bool) -> Result<()> {
    let kernel = Kernel::bias(y.half());
    let operands = Operands::default()
        .address(y.data.address())
        .address(bias.address())
        .number(y.features())
        .number(y.stride())
        .number(usize::from(add));
    let length = y.features() * y.stride();
    launch(machine, kernel, [length.div_ceil(kernel.threads() as usize), 1], 0, operands)
}

/// Columns of features of some tokens, from a table `[vocab, H]`. The tokens must be in the vocabulary.
pub(crate) fn embed(machine: &dyn Machine, table: &Dense, tokens: &Buffer, out: &mut Activations) -> Result<()> {
    let [_, features] = table.shape();
    out.check("embedded tokens", out.half(), features, out.tokens())?;
    gather(machine, table.address(), [1, features], tokens, out)
}

/// Some columns of a matrix, which must be there.
pub(crate) fn select(machine: &dyn Machine, x: &Activations, columns: &Buffer, out: &mut Activations) -> Result<()> {
    out.check("selected columns", x.half(), x.features(), out.tokens())?;
    gather(machine, x.data.address(), [x.stride(), 1], columns, out)
}

fn gather(machine: &dyn Machine, table: u64, steps: [usize; 2], indices: &Buffer, out: &mut Activations) -> Result<()> {
    let operands = Operands::default()
        .address(table)
        .address(indices.address())
        .address(out.data.address())
        .number(out.tokens())
        .number(out.stride())
        .number(out.features())
        .number(steps[0])
        .number(steps[1]);
    let kernel = Kernel::gather();
    let length = out.features() * out.tokens();
    launch(machine, kernel, [length.div_ceil(kernel.threads() as usize), 1], 0, operands)
}

/// The likeliest token of each sequence, from f32 logits `[vocab, stride]`, into `tokens`; its places move on by one.
pub(crate) fn next(
    machine: &dyn Machine,
    logits: &Buffer,
    vocab: usize,
    tokens: &Buffer,
    places: &Places,
) -> Result<()> {
    let kernel = Kernel::next();
    let operands = Operands::default()
        .address(logits.address())
        .address(tokens.address())
        .address(places.positions.address())
        .address(places.ends.address())
        .number(stride(places.tokens))
        .number(vocab);
    let shared = kernel.threads() as usize / LANES * (size_of::<f32>() + size_of::<u32>());
    launch(machine, kernel, [places.tokens, 1], shared, operands)
}

/// Nothing is launched where there is nothing to do.
fn launch(
    machine: &dyn Machine,
    kernel: Kernel,
    [across, down]: [usize; 2],
    shared_bytes: usize,
    operands: Operands,
) -> Result<()> {
    if across == 0 || down == 0 {
        return Ok(());
    }
    machine.launch(&Call { kernel, blocks: [across as u32, down as u32], shared_bytes: shared_bytes as u32, operands })
}

//! Every kernel, compiled for the host from the text that a GPU runs (tests/host/emulate.hpp says how), against the scalar
//! oracle of lacuna-kernels: over patterns, value types, remainders and both orders in which threads take turns.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use lacuna_core::{Dtype, IntType, Matrix, Packed, Pattern, ScaleGroup, ValueType};
use lacuna_cuda::{HalfType, Kernel, Launch, Limits, Tiles, all, choose, stride};
use lacuna_kernels::Activations;
use lacuna_kernels::sparse::REFERENCE;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A large GPU that is soon full, so that the largest blocks run; a small one that is never full.
const FULL: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 1 };
const EMPTY: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 10_000 };
/// In between: blocks of 128 rows.
const NARROW: Limits = Limits { shared_bytes: 56 << 10, multiprocessors: 1 };

/// The kernels as a program, or why there is none.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        let compilers = std::env::var("CXX").into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
        let runs = |name: &String| {
            let status = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        compilers.into_iter().find(runs).map(|compiler| build(&compiler))
    });
    if found.is_none() {
        let why = "no C++ compiler (CXX, c++, g++, clang++): the CUDA kernels were not tested; install g++";
        assert!(std::env::var_os("LACUNA_REQUIRE_SHARED").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    found.as_deref()
}

fn build(compiler: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(out.join("kernels.inc"), all().into_iter().map(Kernel::definition).collect::<String>()).unwrap();
    let program = out.join("kernels");
    let built = Command::new(compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-U_FORTIFY_SOURCE",
            "-DLACUNA_HOST",
        ])
        .args([root.join("kernels"), root.join("tests/host"), out.to_owned()].map(|dir| format!("-I{}", dir.display())))
        .arg(root.join("tests/host/main.cpp"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(built.status.success(), "{compiler}: {}", String::from_utf8_lossy(&built.stderr));
    program
}

/// A running program that takes one case after another.
struct Emulator {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Emulator {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, to, from }
    }

    /// `y`, which is poisoned before.
    fn run(&mut self, case: &Case, launch: Launch, eager: bool) -> Vec<u16> {
        let tiles = &case.tiles;
        let mut name = [0; 64];
        name[..launch.kernel.name().len()].copy_from_slice(launch.kernel.name().as_bytes());
        let stride = stride(case.tokens);
        let numbers = [
            usize::from(eager),
            launch.kernel.threads() as usize,
            launch.blocks[0] as usize,
            launch.blocks[1] as usize,
            launch.shared_bytes as usize,
            tiles.rows(),
            case.tokens,
            stride,
            tiles.v(),
            tiles.slabs(),
            tiles.slabs_per_scale(),
            tiles.row_tile(),
            tiles.slab_places(),
        ];
        let mut bytes = name.to_vec();
        bytes.extend(numbers.iter().flat_map(|&n| (n as u32).to_le_bytes()));
        let mut buffer = |data: Vec<u8>| {
            bytes.extend((data.len() as u64).to_le_bytes());
            bytes.extend(data);
        };
        let of_u16 = |data: &[u16]| data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let of_u32 = |data: &[u32]| data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let y_length = tiles.rows() * stride;
        buffer(tiles.values().to_vec());
        buffer(of_u32(tiles.metadata()));
        buffer(tiles.scales().iter().flat_map(|v| v.to_le_bytes()).collect());
        buffer(of_u16(tiles.places()));
        buffer(of_u32(tiles.slab_columns()));
        buffer(of_u32(tiles.columns()));
        buffer(of_u32(tiles.output_rows()));
        buffer(of_u16(&case.x));
        buffer(case.bias.iter().flatten().flat_map(|v| v.to_le_bytes()).collect());
        buffer(case.residual.as_deref().map(of_u16).unwrap_or_default());
        buffer(of_u16(&vec![0xffff; y_length]));
        let mut y = vec![0; 2 * y_length];
        let answered = self.to.write_all(&bytes).is_ok() && self.from.read_exact(&mut y).is_ok();
        assert!(answered, "{} stopped: {:?} (its reason is above)", launch.kernel.name(), self.child.wait());
        y.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect()
    }
}

thread_local! {
    static EMULATOR: RefCell<Option<Emulator>> = const { RefCell::new(None) };
}

struct Case {
    tiles: Tiles,
    packed: Packed,
    tokens: usize,
    /// `[K, stride]`
    x: Vec<u16>,
    bias: Option<Vec<f32>>,
    /// `[R, stride]`
    residual: Option<Vec<u16>>,
}

impl Case {
    /// The first tokens of a padded matrix.
    fn matrix(&self, rows: usize, padded: &[u16]) -> Matrix {
        let half = self.tiles.half();
        let rows_of = padded.chunks(stride(self.tokens)).map(|row| &row[..self.tokens]);
        Matrix::new(rows, self.tokens, rows_of.flatten().map(|&bits| half.widen(bits)).collect()).unwrap()
    }

    /// Largest `|got - want|` in units of the tolerance, with its place.
    ///
    /// A sum of n products in f32, in any order, is off by at most `n · 2^-23 · Σ|w·x|` (Higham, (3.5); the unit is twice
    /// that of rounding to nearest because tensor cores cut off), bias and residual among the terms; then one rounding to
    /// the type of y, off by its unit roundoff times the result, or by half its smallest subnormal number.
    fn worst(&self, got: &[u16]) -> (f64, usize, usize) {
        let x = self.matrix(self.tiles.cols(), &self.x);
        let got = self.matrix(self.tiles.rows(), got);
        let residual = self.residual.as_ref().map(|residual| self.matrix(self.tiles.rows(), residual));
        let mut want = Matrix::zeros(self.tiles.rows(), self.tokens);
        (REFERENCE.prepare)(&self.packed, None, Activations::F32).multiply(&x, &mut want);
        let dense = self.packed.unpack();
        let n = self.packed.mask().grid().kept_per_row() as f64 + 2.0;
        let (unit, tiny) = match self.tiles.half() {
            HalfType::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
            HalfType::Bf16 => (2_f64.powi(-8), 0.0),
        };
        let mut worst = (0.0, 0, 0);
        for row in 0..got.rows() {
            let kept: Vec<usize> = (0..x.rows()).filter(|&k| dense.row(row)[k] != 0.0).collect();
            for token in 0..self.tokens {
                let (mut want, mut terms) = (f64::from(want.row(row)[token]), 0.0);
                for addend in [self.bias.as_ref().map(|b| b[row]), residual.as_ref().map(|r| r.row(row)[token])] {
                    want += f64::from(addend.unwrap_or(0.0));
                    terms += f64::from(addend.unwrap_or(0.0).abs());
                }
                terms += kept.iter().map(|&k| f64::from((dense.row(row)[k] * x.row(k)[token]).abs())).sum::<f64>();
                // The oracle's own result is rounded to f32 once.
                let bound = n * f64::from(f32::EPSILON) * terms;
                let bound = bound + unit * (want.abs() + bound) + tiny + 1e-30;
                let off = (f64::from(got.row(row)[token]) - want).abs() / bound;
                // NaN is worse than anything.
                if off > worst.0 || off.is_nan() {
                    worst = (off, row, token);
                }
            }
        }
        worst
    }
}

/// All value types of both activations.
const VALUES: [(HalfType, Option<(IntType, ScaleGroup)>); 6] = [
    (HalfType::Bf16, None),
    (HalfType::F16, None),
    (HalfType::Bf16, Some((IntType::Int8, ScaleGroup::Of32))),
    (HalfType::F16, Some((IntType::Int8, ScaleGroup::Of64))),
    (HalfType::Bf16, Some((IntType::Int4, ScaleGroup::Of128))),
    (HalfType::F16, Some((IntType::Int4, ScaleGroup::Of32))),
];

/// One product, in both orders of turns. Some have a bias, a residual, rows in another order.
fn check(
    pattern: &str,
    [rows, cols, tokens]: [usize; 3],
    (half, integers): (HalfType, Option<(IntType, ScaleGroup)>),
    limits: Limits,
) -> Option<Kernel> {
    let program = program()?;
    let pattern: Pattern = pattern.parse().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 31 + cols * 7 + tokens) as u64);
    let mask = support::random_mask(&mut rng, pattern, rows, cols);
    let weight = support::random_matrix(&mut rng, rows, cols);
    let order = (cols % 4 == 1).then(|| support::random_order(&mut rng, rows));
    let values = integers.map_or(half.dtype().into(), |(int, group)| ValueType::Int(int, group));
    let packed = Packed::pack(&weight, mask, values, order).unwrap();
    let tiles = Tiles::new(&packed, half, limits).unwrap();
    // Tokens of the padding are NaN: they may reach nothing else.
    let mut padded = |rows: usize| -> Vec<u16> {
        let place = |i: usize| i % stride(tokens) < tokens;
        let draw = |i| if place(i) { half.round(rng.random_range(-1.0..1.0)) } else { 0xffff };
        (0..rows * stride(tokens)).map(draw).collect()
    };
    let (x, residual) = (padded(cols), (rows % 3 != 0).then(|| padded(rows)));
    let bias = (rows % 2 == 0).then(|| (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect());
    let case = Case { tiles, packed, tokens, x, bias, residual };
    let launch = choose(&case.tiles, tokens, limits);
    for eager in [false, true] {
        let got = EMULATOR.with_borrow_mut(|emulator| {
            emulator.get_or_insert_with(|| Emulator::start(program)).run(&case, launch, eager)
        });
        let (off, row, token) = case.worst(&got);
        assert!(
            off <= 1.0,
            "{} {pattern} {rows}x{cols}x{tokens} eager={eager}: row {row}, token {token} is {off:.2} tolerances off",
            launch.kernel.name()
        );
    }
    Some(launch.kernel)
}

#[test]
fn kernels_agree_with_the_oracle_for_every_pattern() {
    for v in [16, 32, 64, 128, 256] {
        for (i, m) in [4, 5, 6, 7, 8, 12, 16, 32, 33].into_iter().enumerate() {
            let half = VALUES[i % 2];
            check(&format!("{v}:2:{m}"), [130, 131, 40], half, FULL);
            check(&format!("{v}:2:{m}"), [130, 131, 19], half, EMPTY);
            check(&format!("{v}:2:{m}"), [130, 131, 5], VALUES[i % 6], FULL);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_window() {
    for window in ["4@8", "5@all", "7@14", "8@16", "8@48", "8@272", "16@all"] {
        for (v, cols, tokens) in [(64, 277, 20), (16, 145, 33), (256, 320, 17), (32, 145, 3)] {
            check(&format!("{v}:2:{window}"), [260, cols, tokens], VALUES[cols % 2], EMPTY);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_remainder() {
    for tokens in [1, 2, 7, 8, 9, 15, 16, 17, 24, 63, 64, 65, 127, 128, 129, 200] {
        for (i, limits) in [FULL, NARROW, EMPTY].into_iter().enumerate() {
            check("64:2:8", [70 + i, 205, tokens], VALUES[i % 2], limits);
        }
    }
    for rows in [1, 2, 15, 16, 17, 31, 33, 64, 65, 129, 257] {
        for cols in [8, 9, 10, 11, 12, 15, 127, 128, 129, 400] {
            check("64:2:8", [rows, cols, 1], VALUES[cols % 2], FULL);
            check("64:2:8", [rows, cols, 18], VALUES[rows % 2], EMPTY);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_type_of_values() {
    for values in VALUES {
        for tokens in [1, 3, 8, 9, 16, 21] {
            check("64:2:8", [100, 1037, tokens], values, FULL);
            check("16:2:5", [49, 333, tokens], values, FULL);
        }
    }
}

#[test]
fn every_kernel_is_chosen_for_something() {
    if program().is_none() {
        return;
    }
    let mut seen = BTreeSet::new();
    for values in VALUES {
        for v in [16, 32, 64] {
            for (rows, tokens, limits) in [
                (70, 1, FULL),
                (70, 16, FULL),
                (70, 30, FULL),
                (300, 70, FULL),
                (300, 70, NARROW),
                (128, 70, FULL),
                (60, 70, EMPTY),
            ] {
                let kernel = check(&format!("{v}:2:8"), [rows, 130, tokens], values, limits);
                seen.extend(kernel.map(Kernel::name));
            }
        }
    }
    let missing: Vec<String> = all().into_iter().map(Kernel::name).filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "no test ran {missing:?}");
}

#[test]
fn infinite_activations_reach_only_the_rows_that_keep_them() {
    let Some(program) = program() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (pattern, tokens) in [("16:2:8", 1), ("16:2:8", 70), ("16:2:8@all", 70)] {
        let mask = support::random_mask(&mut rng, pattern.parse().unwrap(), 48, 17);
        let weight = support::random_matrix(&mut rng, 48, 17);
        let packed = Packed::pack(&weight, mask, Dtype::Bf16, None).unwrap();
        let tiles = Tiles::new(&packed, HalfType::Bf16, FULL).unwrap();
        let mut x = vec![HalfType::Bf16.round(0.5); 17 * stride(tokens)];
        x[..stride(tokens)].fill(HalfType::Bf16.round(f32::INFINITY));
        let case = Case { tiles, packed, tokens, x, bias: None, residual: None };
        let y = Emulator::start(program).run(&case, choose(&case.tiles, tokens, FULL), false);
        for row in 0..48 {
            // A column that the group keeps meets the row's zeros nowhere: metadata picks two of four.
            let keeps = case.packed.mask().kept(row).any(|kept| kept.contains(&0));
            let first = HalfType::Bf16.widen(y[row * stride(tokens)]);
            assert_eq!(first.is_finite(), !keeps, "{pattern}, {tokens} tokens, row {row}");
        }
    }
}

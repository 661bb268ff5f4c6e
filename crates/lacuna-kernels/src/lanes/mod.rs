//! Rows in lanes: a vector holds one kept value of as many rows of a strip; the group of 4 activations that those rows
//! choose from fills each 128-bit part of another, and one shuffle by the rows' positions lets every row pick its own.
//!
//! That loop is for up to 16 tokens: `S` strips × `N` tokens of sums stay in registers while it runs over all of K, so a
//! strip's values and positions are read once for `N` tokens and the activations once for `S` strips. More tokens go to
//! `prefill`, dense weights to `dense`. The instruction sets differ in [`Isa`], a file each; the value types in
//! [`Product`] and [`Prefill`].
#![allow(unsafe_code)]
// `acc[s][t]` over constants is what a register tile looks like; iterators around intrinsics may not be inlined.
#![allow(clippy::needless_range_loop)]
// Only x86 has products of bfloat16 so far; there nothing may lie dead.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

mod aligned;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod dense;
mod inputs;
mod isa;
mod layout;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod places;
mod prefill;
mod product;
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;
use lacuna_core::{Matrix, Packed, Values};
use rayon::prelude::*;

use self::aligned::Aligned;
use self::attention::{Attend, AttendCached};
use self::dense::{DenseLanes, DenseLayout, DenseTile, PairTile, run_dense};
use self::inputs::{Element, InputTile, MAX_TOKENS, input_tiles};
use self::isa::Isa;
use self::layout::{Form, GroupWindow, Layout, Tile, shares_columns};
use self::places::Places;
use self::prefill::Prefill;
use self::product::{Product, SUMS, Sums, Work};
use crate::attention::{Cached, Head};
use crate::weight::{Activations, Bias, Weight, check_shapes};

/// Kept values × tokens below which handing work to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;

/// Compiles a loop over a tile for an instruction set: a function for each value type, called as the type is.
macro_rules! products {
    ($features:literal, $isa:ty; $($name:ident: $product:ty as $input:ty,)*) => {
        $(
            pub(super) static $name: Code<$input> = {
                #[target_feature(enable = $features)]
                fn input(x: &Matrix, start: usize, width: usize, block_columns: usize) -> InputTile<$input> {
                    InputTile::new(x, start, width, block_columns)
                }
                #[target_feature(enable = $features)]
                unsafe fn tile(
                    layout: &Layout,
                    tile: &Tile,
                    input: &InputTile<$input>,
                    gathered: &mut Aligned<[$input; 4]>,
                    y: &mut [f32],
                    tokens: usize,
                ) {
                    // SAFETY: only called where the features were detected and the layout is the right one.
                    unsafe { run::<$isa, $product>(layout, tile, input, gathered, y, tokens) }
                }
                #[target_feature(enable = $features)]
                unsafe fn dense(
                    layout: &DenseLayout,
                    tile: DenseTile,
                    x: &PairTile<$input>,
                    y: &mut [f32],
                    tokens: usize,
                ) {
                    // SAFETY: as for `tile`.
                    unsafe { run_dense::<$isa, $product>(layout, tile, x, y, tokens) }
                }
                Code { input, tile, dense }
            };
        )*
    };
}
use products;

/// Compiles attention for an instruction set: a function for each kind of word, and one for caches.
macro_rules! attentions {
    ($features:literal, $isa:ty; $($name:ident: $word:ty,)* $(; cached $cached:ident)?) => {
        $(
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(head: &crate::attention::Head, out: &mut [&mut [f32]]) {
                // SAFETY: only called where the features were detected.
                unsafe { crate::lanes::attention::attend::<$isa, $word>(head, out) }
            }
        )*
        $(
            #[target_feature(enable = $features)]
            unsafe fn $cached(cached: &crate::attention::Cached, out: &mut [f32]) {
                // SAFETY: only called where the features were detected, with queries that were checked.
                unsafe { crate::lanes::attention::attend_cached::<$isa>(cached, out) }
            }
        )?
    };
}
use attentions;

/// What is compiled for an instruction set and a value type.
pub(crate) struct Code<E: 'static> {
    /// makes an input tile
    input: unsafe fn(&Matrix, usize, usize, usize) -> InputTile<E>,
    /// computes a tile of rows for the tokens of an input tile
    #[allow(clippy::type_complexity)]
    tile: unsafe fn(&Layout, &Tile, &InputTile<E>, &mut Aligned<[E; 4]>, &mut [f32], usize),
    /// the same for a dense weight
    dense: unsafe fn(&DenseLayout, DenseTile, &PairTile<E>, &mut [f32], usize),
}

/// The code for a form of values, by what activations are rounded to.
pub(crate) enum AnyCode {
    F32(&'static Code<f32>),
    Bf16(&'static Code<bf16>),
    I16(&'static Code<i16>),
}

/// A set of instructions and the code that is compiled for it.
pub(crate) struct InstructionSet {
    /// name of the kernel
    pub(crate) name: &'static str,
    /// what the CPU must have, for people
    pub(crate) needs: &'static str,
    lanes: usize,
    /// whether it multiplies bfloat16
    bf16_dot: bool,
    /// whether it has a matrix unit for many tokens of bfloat16
    unit: bool,
    /// attention on floats
    attend: Attend,
    /// attention on bfloat16
    attend_bf16: Option<Attend>,
    /// attention on a cache
    attend_cached: AttendCached,
    pub(crate) available: fn() -> bool,
    code: fn(Form) -> AnyCode,
}

impl InstructionSet {
    /// Whether it has attention on bfloat16.
    pub(crate) fn rounds_attention(&self) -> bool {
        self.attend_bf16.is_some()
    }

    /// Computes a head, rounded to bfloat16 if asked for and there is such code.
    ///
    /// # Panics
    /// If the CPU lacks the instructions, or the operands do not fit.
    pub(crate) fn attend(&self, rounded: bool, head: &Head, out: &mut [&mut [f32]]) {
        assert!((self.available)(), "this CPU lacks {}", self.needs);
        let run = self.attend_bf16.filter(|_| rounded).unwrap_or(self.attend);
        // SAFETY: the CPU has the instructions.
        unsafe { run(head, out) }
    }

    /// Computes queries against a cache.
    ///
    /// # Panics
    /// If the CPU lacks the instructions, or the operands do not fit.
    pub(crate) fn attend_cached(&self, cached: &Cached, out: &mut [f32]) {
        assert!((self.available)(), "this CPU lacks {}", self.needs);
        // SAFETY: the CPU has the instructions.
        unsafe { (self.attend_cached)(cached, out) }
    }
}

/// Makes a packed layer ready.
///
/// # Panics
/// If the CPU lacks the instructions.
pub(crate) fn prepare(
    set: &'static InstructionSet,
    packed: &Packed,
    bias: Option<&[f32]>,
    activations: Activations,
) -> Box<dyn Weight> {
    assert!((set.available)(), "this CPU lacks {}", set.needs);
    let form = Form::of(packed.values(), set.bf16_dot && activations == Activations::Bf16);
    let layout = Layout::new(packed, set.lanes, form);
    let bias = Bias::packed(bias, packed);
    // The features were detected, and the layout is for the lanes and the form that the code takes.
    let on_unit = set.unit && activations == Activations::Bf16;
    match (set.code)(form) {
        AnyCode::F32(code) => Box::new(Lanes { layout, bias, code }),
        AnyCode::Bf16(code) => sparse(Lanes { layout, bias, code }, on_unit),
        AnyCode::I16(code) => sparse(Lanes { layout, bias, code }, on_unit),
    }
}

/// With the matrix unit for many tokens, or vectors for all.
fn sparse<E: Element>(lanes: Lanes<E>, on_unit: bool) -> Box<dyn Weight> {
    #[cfg(target_arch = "x86_64")]
    if on_unit {
        return Box::new(amx::SparseTiles(lanes));
    }
    assert!(!on_unit, "there is no unit here");
    Box::new(lanes)
}

/// The same for dense weights.
fn dense<E: Element>(lanes: DenseLanes<E>, on_unit: bool) -> Box<dyn Weight> {
    #[cfg(target_arch = "x86_64")]
    if on_unit {
        return Box::new(amx::DenseTiles(lanes));
    }
    assert!(!on_unit, "there is no unit here");
    Box::new(lanes)
}

/// Makes a dense weight `[rows, cols]` ready.
///
/// # Panics
/// If the CPU lacks the instructions, or the number of values is another.
pub(crate) fn prepare_dense(
    set: &'static InstructionSet,
    values: &Values,
    [rows, cols]: [usize; 2],
    bias: Option<&[f32]>,
    activations: Activations,
) -> Box<dyn Weight> {
    assert!((set.available)(), "this CPU lacks {}", set.needs);
    let form = Form::of(values, set.bf16_dot && activations == Activations::Bf16);
    let layout = DenseLayout::new(values, [rows, cols], set.lanes, form);
    let bias = Bias::new(bias, rows);
    let on_unit = set.unit && activations == Activations::Bf16;
    match (set.code)(form) {
        AnyCode::F32(code) => Box::new(DenseLanes { layout, bias, code }),
        AnyCode::Bf16(code) => dense(DenseLanes { layout, bias, code }, on_unit),
        AnyCode::I16(code) => dense(DenseLanes { layout, bias, code }, on_unit),
    }
}

/// A layer made ready for one instruction set and one value type. Made by [`prepare`] alone, which has seen that the
/// CPU has the features that `code` is compiled for, and that `layout` is the one it expects.
struct Lanes<E: 'static> {
    layout: Layout,
    bias: Bias,
    code: &'static Code<E>,
}

impl<E: Element> Lanes<E> {
    /// Whether a product with so many tokens is large enough to be shared between threads.
    fn is_worth_sharing(&self, tokens: usize) -> bool {
        self.layout.kept() * tokens >= PARALLEL_WORK
    }

    /// Computes all tiles of `y[R, T]`, `together` after each other, `[rows, T]` by `run`; adds the bias and puts rows in their places.
    fn for_tiles(&self, y: &mut Matrix, together: usize, run: impl Fn(&[Tile], &mut [f32]) + Sync + Send) {
        let (layout, tokens) = (&self.layout, y.cols());
        let parallel = self.is_worth_sharing(tokens);
        let parts = layout.tiles.chunks(together);
        let values = |tiles: &[Tile]| tiles.iter().map(|tile| tile.len).sum::<usize>() * tokens;
        let run_part = |tiles: &[Tile], part: &mut [f32]| {
            run(tiles, part);
            self.bias.add_to(tiles[0].start, part, tokens);
        };
        match &layout.row_order {
            Some(order) => {
                let places = Places::new(y, order);
                run_all(parts.collect(), parallel, |tiles: &[Tile]| {
                    let mut part = Aligned::scratch(values(tiles));
                    run_part(tiles, &mut part);
                    // Rows go to their places while they are in the cache.
                    // SAFETY: no two tiles have a row in common.
                    unsafe { places.put(tiles[0].start, &part) };
                    part.shelve();
                });
            }
            None => {
                let mut rest = y.data_mut();
                let mut work = Vec::with_capacity(layout.tiles.len());
                for tiles in parts {
                    let (part, tail) = rest.split_at_mut(values(tiles));
                    work.push((tiles, part));
                    rest = tail;
                }
                run_all(work, parallel, |(tiles, part)| run_part(tiles, part));
            }
        }
    }
}

impl<E: Element> Weight for Lanes<E> {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let layout = &self.layout;
        check_shapes(layout.rows, layout.cols, x, y);
        let tokens = x.cols();
        let input = |x: &Matrix, start, width, block_columns| {
            // SAFETY: `prepare` has seen that the CPU has the features.
            let tile = unsafe { (self.code.input)(x, start, width, block_columns) };
            tile.with_scales_repeated(layout.joined_blocks, layout.blocks())
        };
        let inputs = input_tiles(input, x, layout.lanes, layout.block_columns, self.is_worth_sharing(tokens));
        self.for_tiles(y, 1, |tiles, part| {
            let mut gathered = Aligned::scratch(0);
            for (tile, input) in tiles.iter().flat_map(|tile| inputs.iter().map(move |input| (tile, input))) {
                // SAFETY: `prepare` has seen the features and made the layout.
                unsafe { (self.code.tile)(layout, tile, input, &mut gathered, part, tokens) };
            }
            gathered.shelve();
        });
        for input in inputs {
            input.data.shelve();
        }
    }

    fn rows(&self) -> usize {
        self.layout.rows
    }
}

/// Does every piece of work, side by side if that pays.
fn run_all<T: Send>(work: Vec<T>, parallel: bool, run: impl Fn(T) + Sync + Send) {
    if parallel {
        work.into_par_iter().for_each(run);
    } else {
        work.into_iter().for_each(run);
    }
}

/// Whether the strips of an instruction set suit a layer: rows of a strip must share their columns.
pub(crate) fn takes(packed: &Packed, set: &InstructionSet) -> bool {
    let grid = packed.mask().grid();
    (grid.pattern().v() >= set.lanes || shares_columns(grid)) && GroupWindow::of(grid).fits()
}

/// All strips of a tile for the tokens of one input tile: `y[len, T]` from token `input.start` on.
///
/// # Safety
/// The CPU must have the instructions of `I`; `layout` must have been made for its lanes and for `P`.
#[inline(always)]
unsafe fn run<I: Isa, P: Product<I> + Prefill<I, Input = <P as Product<I>>::Input>>(
    layout: &Layout,
    tile: &Tile,
    input: &InputTile<<P as Product<I>>::Input>,
    gathered: &mut Aligned<[<P as Product<I>>::Input; 4]>,
    y: &mut [f32],
    tokens: usize,
) {
    if input.width > MAX_TOKENS {
        // SAFETY: the caller's promise; `next_width` makes tiles of these widths.
        unsafe {
            match input.width / I::LANES {
                2 => prefill::run::<I, P, 2>(layout, tile, input, y, tokens),
                3 => prefill::run::<I, P, 3>(layout, tile, input, y, tokens),
                4 => prefill::run::<I, P, 4>(layout, tile, input, y, tokens),
                6 => prefill::run::<I, P, 6>(layout, tile, input, y, tokens),
                8 => prefill::run::<I, P, 8>(layout, tile, input, y, tokens),
                other => unreachable!("{other} vectors"),
            }
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { input.gather::<I>(layout.columns(tile), gathered) };
    let mut strip = 0;
    let strips = tile.len.div_ceil(I::LANES);
    while strip < strips {
        let left = strips - strip;
        let mut sums = [[0.0; 16]; SUMS];
        macro_rules! go {
            ($s:literal, $n:literal) => {{
                let work: Work<$s> = Work::new(layout, tile.first_strip + strip, input, gathered);
                // SAFETY: the caller's promise; `Work` points at whole strips and at as many gathered groups.
                unsafe { P::sums::<$s, $n>(&work, &mut sums) };
                $s
            }};
        }
        let done = match (input.width, left) {
            (1, 4..) => go!(4, 1),
            (1, 2..) => go!(2, 1),
            (1, _) => go!(1, 1),
            (2, 4..) => go!(4, 2),
            (2, 2..) => go!(2, 2),
            (2, _) => go!(1, 2),
            (4, 4..) if I::WIDE => go!(4, 4),
            (4, 2..) => go!(2, 4),
            (4, _) => go!(1, 4),
            (_, 2..) if I::WIDE => go!(2, 8),
            _ => go!(1, 8),
        };
        let rows = [strip * I::LANES, (strip + done) * I::LANES];
        write_sums(&sums, [input.start, input.width], y, tokens, rows, I::LANES);
        strip += done;
    }
}

/// Puts the sums of the rows `from..to` of a tile in their places, tokens `start..start + width`; lanes behind the last row are dropped.
#[inline(always)]
fn write_sums(
    sums: &Sums,
    [start, width]: [usize; 2],
    y: &mut [f32],
    tokens: usize,
    [from, to]: [usize; 2],
    lanes: usize,
) {
    let rows = y.chunks_exact_mut(tokens).enumerate().take(to).skip(from);
    for (row, out) in rows {
        let (strip, lane) = ((row - from) / lanes, (row - from) % lanes);
        let sums = &sums[strip * width..(strip + 1) * width];
        for (out, sum) in out[start..].iter_mut().zip(sums) {
            *out = sum[lane];
        }
    }
}

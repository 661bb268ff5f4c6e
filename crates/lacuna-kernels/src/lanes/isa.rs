//! What the loops ask of an instruction set.

use half::f16;

/// Vectors of [`Isa::LANES`] 32-bit lanes. All functions are to be inlined into a caller that is compiled for the
/// instruction set; the pointers need no alignment.
///
/// # Safety
/// Every function needs a CPU with the instruction set, and every pointer as many readable (or writable) elements as
/// its description says.
pub(super) trait Isa: Copy {
    /// Rows of a strip.
    const LANES: usize;
    /// Whether there are 32 registers: room for 16 sums.
    const WIDE: bool;
    /// Floats.
    type F: Copy;
    /// Words: u32, or pairs of 16-bit values with the first in the low half.
    type I: Copy;

    /// Asks for the line of a place that will be read soon; any place will do.
    fn prefetch(place: *const u8);
    /// Whether the CPU should be asked for streams of values ahead of their use.
    fn asks_ahead() -> bool;
    /// Whether [`Isa::window_16`] and [`Isa::window_32`] are a few instructions.
    const WINDOWS: bool;
    /// Four of the 8 values from a place on, by their distance from it.
    unsafe fn window_16(from: *const u16, offsets: [u8; 4]) -> [u16; 4];
    /// The same for floats.
    unsafe fn window_32(from: *const f32, offsets: [u8; 4]) -> [f32; 4];
    /// Whether [`Isa::table_16`] is a few instructions.
    const TABLES: bool;
    /// Four for each of 8 groups out of the `64 · PARTS` values from a place on, by their distances from it; 1, 2 or 4
    /// parts.
    unsafe fn table_16<const PARTS: usize>(from: *const u16, distances: &[[u8; 4]; 8]) -> [[u16; 4]; 8];
    /// 0 in each lane.
    unsafe fn zero() -> Self::F;
    /// `LANES` floats.
    unsafe fn load(from: *const f32) -> Self::F;
    /// `LANES` halves, widened.
    unsafe fn load_f16(from: *const f16) -> Self::F;
    /// `LANES` floats.
    unsafe fn store(to: *mut f32, v: Self::F);
    /// One float in each lane.
    unsafe fn splat(v: f32) -> Self::F;
    /// `a · b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// 4 floats in each 128-bit part.
    unsafe fn four(from: *const [f32; 4]) -> Self::F;
    /// From each 128-bit part of `four` the float that the two low bits of a lane's word name.
    unsafe fn pick(four: Self::F, by: Self::I) -> Self::F;

    /// `LANES` words.
    unsafe fn load_words(from: *const u32) -> Self::I;
    /// `LANES` words.
    unsafe fn store_words(to: *mut u32, v: Self::I);
    /// One word in each lane.
    unsafe fn splat_word(v: u32) -> Self::I;
    /// What [`Isa::spread`] takes for a lane.
    unsafe fn lane(lane: usize) -> Self::I;
    /// One lane's word in each lane.
    unsafe fn spread(v: Self::I, lane: Self::I) -> Self::I;
    /// One lane's float in each lane.
    unsafe fn spread_float(v: Self::F, lane: Self::I) -> Self::F;
    /// `LANES` 16-bit values, with zeros above.
    unsafe fn widen_words(from: *const u16) -> Self::I;
    /// Low halves to high ones.
    unsafe fn shift_left_16(v: Self::I) -> Self::I;
    /// Bits of either.
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Logical shift of each word.
    unsafe fn shift_right<const BY: i32>(v: Self::I) -> Self::I;
    /// Pairs of bfloat16 as two vectors of floats: all first ones, all second ones.
    unsafe fn widen_bf16(pairs: Self::I) -> [Self::F; 2];

    /// 0 in each lane.
    unsafe fn zero_words() -> Self::I;
    /// `2 · LANES` bytes as pairs of 16-bit integers.
    unsafe fn load_i8(from: *const u8) -> Self::I;
    /// The nibble at a place of each half of each word, 0 the lowest: pairs of 16-bit integers.
    unsafe fn nibbles(words: Self::I, place: usize) -> Self::I;
    /// Controls for [`Isa::pick_pair`] from words whose low nibble is the rank of a pair of positions, see
    /// `layout::rank`; bits above are ignored.
    unsafe fn pair_control(ranks: Self::I) -> Self::I;
    /// 4 values of 16 bits in each 64-bit part.
    unsafe fn four_pairs(from: *const [u16; 4]) -> Self::I;
    /// Each lane's pair out of the four 16-bit values.
    unsafe fn pick_pair(four: Self::I, control: Self::I) -> Self::I;
    /// The four 16-bit values as [`Isa::pick_ranked`] takes them.
    #[inline(always)]
    unsafe fn ranked(from: *const [u16; 4]) -> Self::I {
        // SAFETY: the caller's.
        unsafe { Self::four_pairs(from) }
    }
    /// Each lane's pair by its rank, the low nibble of its word: [`Isa::pick_pair`] where it is the only token. An instruction set
    /// that looks words up by their place makes all six pairs at once, and one shuffle does for several strips.
    #[inline(always)]
    unsafe fn pick_ranked(ranked: Self::I, ranks: Self::I) -> Self::I {
        // SAFETY: the caller's.
        unsafe { Self::pick_pair(ranked, Self::pair_control(ranks)) }
    }
    /// `sum + a₀·b₀ + a₁·b₁` in 32-bit integers, for pairs of 16-bit ones.
    unsafe fn dot_i16(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Signed integers as floats.
    unsafe fn to_float(v: Self::I) -> Self::F;
    /// `sum + a₀·b₀ + a₁·b₁` for pairs of bfloat16, where there is an instruction for it.
    unsafe fn dot_bf16(sum: Self::F, a: Self::I, b: Self::I) -> Self::F;
}

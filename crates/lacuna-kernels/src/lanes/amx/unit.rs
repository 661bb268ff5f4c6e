//! The matrix unit (AMX): whether this process may use it, how its tiles are set up, and its one loop.
//!
//! Tiles are 16 rows of 64 bytes. `tdpbf16ps` (Intel SDM, volume 2) adds to a tile of 16 × 16 sums the products of a tile of 16
//! rows × 32 bfloat16 values and one of 16 pairs of values × 16 columns. Rust has no stable intrinsics for it, so this is
//! assembly.
// SAFETY of all of it: each function says what it needs.

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::LazyLock;

use raw_cpuid::CpuId;

/// Rows of a tile, and columns of its sums.
pub(super) const SIDE: usize = 16;

/// Values of a tile's row.
pub(super) const DEPTH: usize = 32;

/// Bytes of a tile.
pub(super) const TILE_BYTES: usize = 1024;

/// Whether the CPU has AMX for bfloat16 and the system lets this process use it.
pub(super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        let features = CpuId::new().get_extended_feature_info();
        features.is_some_and(|has| has.has_amx_tile() && has.has_amx_bf16()) && permitted()
    });
    *AVAILABLE
}

/// Asks the system for the unit's registers, which are so large that a process gets them on demand only: all its threads have them
/// from then on.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // Documentation/arch/x86/xstate.rst of Linux 5.16 and later; older systems know no such request and refuse.
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call as the kernel's interface describes it: it takes two numbers, writes no memory, and clobbers these two
    // registers beside the result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems hand the registers out in other ways, which nobody has tried.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads: all eight tiles 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static ALL_FULL: Config = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Config(config)
};

/// The tiles of this thread, set up; given back when dropped, which makes switching threads cheap again.
pub(super) struct Unit(PhantomData<*const ()>);

impl Unit {
    /// # Safety
    /// [`available`], and no other such value may be alive in this thread.
    pub(super) unsafe fn set_up() -> Self {
        // SAFETY: the CPU has the instruction, and the table is one that it takes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const ALL_FULL, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// Adds to `ROWS` × 2 tiles of sums, one or two of rows, the products of `steps` tiles of rows with as many pairs of tiles of
    /// columns; from nothing on where they are `new`. In each of `sums` lie two tiles, in each of `rows` one for each step, in
    /// `columns` two. The result goes to where `to` says: two tiles side by side.
    ///
    /// # Safety
    /// All pointers to tiles must be aligned to 64 bytes and have as many; `steps` is at least 1.
    #[inline(always)]
    #[allow(clippy::unused_self)] // whoever has it has set up the tiles
    pub(super) unsafe fn add<const ROWS: usize>(
        &self,
        sums: [*const f32; 2],
        rows: [*const u16; 2],
        columns: *const u32,
        steps: usize,
        new: bool,
        to: To,
    ) {
        macro_rules! run {
            ($($line:literal),* $(,)?) => {
                asm!(
                    $($line,)*
                    s0 = inout(reg) sums[0] => _,
                    s1 = inout(reg) sums[1] => _,
                    a0 = inout(reg) rows[0] => _,
                    a1 = inout(reg) rows[1] => _,
                    b = inout(reg) columns => _,
                    n = inout(reg) steps => _,
                    new = inout(reg) usize::from(new) => _,
                    stride = in(reg) 64_usize,
                    t0 = in(reg) to.first[0],
                    t1 = in(reg) to.first[1],
                    row = in(reg) to.row_bytes,
                    second = in(reg) to.second_bytes,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        // SAFETY: the tiles are set up, since there is a `self`; the pointers are the caller's. What is not used of them is not read.
        unsafe {
            if ROWS == 2 {
                run!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "test {new}, {new}",
                    "jnz 2f",
                    "tileloadd tmm0, [{s0} + {stride}]",
                    "tileloadd tmm1, [{s0} + {stride} + 1024]",
                    "tileloadd tmm2, [{s1} + {stride}]",
                    "tileloadd tmm3, [{s1} + {stride} + 1024]",
                    "2:",
                    "tileloadd tmm4, [{a0} + {stride}]",
                    "tileloadd tmm6, [{b} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {stride} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{t0} + {row}], tmm0",
                    "tilestored [{t1} + {row}], tmm2",
                    "lea {s0}, [{t0} + {second}]",
                    "lea {s1}, [{t1} + {second}]",
                    "tilestored [{s0} + {row}], tmm1",
                    "tilestored [{s1} + {row}], tmm3",
                );
            } else {
                run!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "test {new}, {new}",
                    "jnz 2f",
                    "tileloadd tmm0, [{s0} + {stride}]",
                    "tileloadd tmm1, [{s0} + {stride} + 1024]",
                    "2:",
                    "tileloadd tmm4, [{a0} + {stride}]",
                    "tileloadd tmm6, [{b} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {stride} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a0}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{t0} + {row}], tmm0",
                    "lea {s0}, [{t0} + {second}]",
                    "tilestored [{s0} + {row}], tmm1",
                    "/* {s1} {a1} {t1} */",
                );
            }
        }
    }
}

/// Where sums go.
#[derive(Clone, Copy)]
pub(super) struct To {
    /// the first tile of each strip
    pub(super) first: [*mut f32; 2],
    /// from one row of a tile to the next
    pub(super) row_bytes: usize,
    /// from the first tile to the second
    pub(super) second_bytes: usize,
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the CPU has the instruction, or there would be no such value.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

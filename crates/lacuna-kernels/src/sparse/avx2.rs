//! The portable kernel, compiled for AVX2 and FMA and called where the CPU has both.
#![allow(unsafe_code)]

use lacuna_core::{Matrix, Packed};

use super::SparseWeight;
use super::portable::{Layout, Tile};

pub(super) fn available() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

pub(super) fn prepare(packed: &Packed) -> Box<dyn SparseWeight> {
    assert!(available(), "this CPU lacks AVX2 or FMA");
    Box::new(Avx2(Layout::new(packed)))
}

/// Exists only where [`available`] held.
struct Avx2(Layout);

impl SparseWeight for Avx2 {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        self.0.multiply(x, y, |layout, tile, x, y| {
            // SAFETY: an `Avx2` is only made by `prepare`, which has seen that the CPU has both features.
            unsafe { multiply_tile(layout, tile, x, y) }
        });
    }

    fn rows(&self) -> usize {
        self.0.row_count()
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_tile(layout: &Layout, tile: &Tile, x: &Matrix, y: &mut [f32]) {
    layout.multiply_tile(tile, x, y);
}

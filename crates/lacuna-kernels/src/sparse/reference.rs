//! The scalar oracle: the definition, accumulated in f64, in no hurry.

use lacuna_core::{Matrix, Packed};

use crate::weight::{Activations, Weight, check_shapes};

pub(super) fn prepare(packed: &Packed, _: Activations) -> Box<dyn Weight> {
    Box::new(Reference(packed.clone()))
}

struct Reference(Packed);

impl Weight for Reference {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let (mask, grid) = (self.0.mask(), self.0.mask().grid());
        check_shapes(grid.rows(), grid.cols(), x, y);
        for row in 0..grid.rows() {
            for token in 0..x.cols() {
                let mut sum = 0.0_f64;
                for (i, col) in mask.kept(row).flatten().enumerate() {
                    if col < grid.cols() {
                        let value = self.0.values().get(row * grid.kept_per_row() + i);
                        sum += f64::from(value) * f64::from(x.row(col)[token]);
                    }
                }
                y.row_mut(self.0.output_row(row))[token] = sum as f32;
            }
        }
    }

    fn rows(&self) -> usize {
        self.0.mask().grid().rows()
    }
}

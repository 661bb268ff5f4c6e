//! The scalar oracle: the definition, accumulated in f64, in no hurry.

use lacuna_core::{Matrix, Packed};

use crate::weight::{Activations, Bias, Weight, check_shapes};

pub(super) fn prepare(packed: &Packed, bias: Option<&[f32]>, _: Activations) -> Box<dyn Weight> {
    Box::new(Reference { packed: packed.clone(), bias: Bias::new(bias, packed.mask().grid().rows()) })
}

struct Reference {
    packed: Packed,
    bias: Bias,
}

impl Weight for Reference {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let (mask, grid) = (self.packed.mask(), self.packed.mask().grid());
        check_shapes(grid.rows(), grid.cols(), x, y);
        for row in 0..grid.rows() {
            for token in 0..x.cols() {
                let mut sum = 0.0_f64;
                for (i, col) in mask.kept(row).flatten().enumerate() {
                    if col < grid.cols() {
                        let value = self.packed.values().get(row * grid.kept_per_row() + i);
                        sum += f64::from(value) * f64::from(x.row(col)[token]);
                    }
                }
                y.row_mut(self.packed.output_row(row))[token] = sum as f32;
            }
        }
        self.bias.add_to(0, y.data_mut(), x.cols());
    }

    fn rows(&self) -> usize {
        self.packed.mask().grid().rows()
    }
}

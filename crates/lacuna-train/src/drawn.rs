//! Masks that are drawn by learned odds (MaskLLM, Fang et al., arXiv 2409.17481): each row has six logits a group, one for each pair
//! of the group's four columns. A draw is `y = softmax((scale·logits + g) / temperature)`, `g` Gumbel noise, and a weight counts by
//! the sum of `y` over the pairs that keep it. The columns of groups stay as they are.

use candle_core::{Device, Tensor};
use lacuna_core::{Mask, Pair};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::layer::Layer;

/// Pairs of a group.
const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

/// How much likelier than the others a pair is that the first mask keeps, as a logit.
const PRIOR: f32 = 0.06;

/// Name of a layer's logits, `[R, 6·G]` in the order of packed rows.
pub(crate) fn logits_name(layer: &str) -> String {
    format!("{layer}.mask_logits")
}

/// Logits that favour a mask.
pub(crate) fn prior(layer: &Layer, device: &Device) -> Result<Tensor> {
    let (mask, grid) = (&layer.mask, layer.mask.grid());
    let logits = (0..grid.rows()).flat_map(|row| {
        mask.row_pairs(row).iter().flat_map(|pair| PAIRS.map(|p| if p == pair.positions() { PRIOR } else { 0.0 }))
    });
    Ok(Tensor::from_vec(logits.collect(), (grid.rows(), 6 * grid.groups()), device)?)
}

/// A draw: temperature, scale and seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    pub(crate) temperature: f64,
    pub(crate) scale: f64,
    pub(crate) seed: u64,
}

impl Draw {
    fn shares(&self, logits: &[f32], layer_number: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(layer_number as u64);
        let mut shares = Vec::with_capacity(logits.len());
        for six in logits.as_chunks::<6>().0 {
            let z = six.map(|logit| {
                let uniform: f64 = random.random_range(1e-12..1.0);
                (self.scale * f64::from(logit) - (-uniform.ln()).ln()) / self.temperature
            });
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps = z.map(|z| (z - max).exp());
            let sum: f64 = exps.iter().sum();
            shares.extend(exps.map(|e| (e / sum) as f32));
        }
        shares
    }

    /// Draws for a layer; `layer_number` tells its noise from that of others.
    pub(crate) fn of(&self, layer: &Layer, layer_number: usize, logits: &Tensor) -> Result<Drawn> {
        let (grid, shares) = (layer.mask.grid(), self.shares(&values(logits)?, layer_number));
        let mut factors = vec![0.0_f32; grid.rows() * grid.cols()];
        visit(layer, |group, columns| {
            for (pair, share) in PAIRS.iter().zip(&shares[6 * group..]) {
                for place in pair.map(|p| columns[p]).into_iter().flatten() {
                    factors[place] += share;
                }
            }
        });
        let factors = Tensor::from_vec(factors, (grid.rows(), grid.cols()), logits.device())?;
        Ok(Drawn { factors, shares, rate: (self.scale / self.temperature) as f32 })
    }
}

/// What was drawn for a layer.
pub(crate) struct Drawn {
    /// how much each weight counts, `[R, K]`
    pub(crate) factors: Tensor,
    /// `y`, laid out as the logits
    shares: Vec<f32>,
    /// by how much the logits are multiplied in `y`
    rate: f32,
}

impl Drawn {
    /// The gradient of the logits from that of the factors, `[R, K]`.
    pub(crate) fn gradient(&self, layer: &Layer, of_factors: &Tensor) -> Result<Tensor> {
        let grid = layer.mask.grid();
        let (device, of_factors) = (of_factors.device(), values(of_factors)?);
        let mut gradient = vec![0.0_f32; self.shares.len()];
        visit(layer, |group, columns| {
            let kept =
                PAIRS.map(|pair| pair.map(|p| columns[p].map_or(0.0, |place| of_factors[place])).iter().sum::<f32>());
            let shares = &self.shares[6 * group..6 * group + 6];
            let mean: f32 = shares.iter().zip(&kept).map(|(y, d)| y * d).sum();
            for ((g, y), d) in gradient[6 * group..].iter_mut().zip(shares).zip(kept) {
                *g = self.rate * y * (d - mean);
            }
        });
        Ok(Tensor::from_vec(gradient, (grid.rows(), 6 * grid.groups()), device)?)
    }
}

/// The mask of the likeliest pairs.
pub(crate) fn likeliest(layer: &Layer, logits: &Tensor) -> Result<Mask> {
    let mask = &layer.mask;
    let best = |six: &[f32; 6]| {
        let best = (0..6).rev().max_by(|&a, &b| six[a].total_cmp(&six[b])).unwrap_or(0);
        Pair::new(PAIRS[best][0], PAIRS[best][1]).expect("ascending positions below 4")
    };
    let pairs = values(logits)?.as_chunks::<6>().0.iter().map(best).collect();
    Ok(Mask::new(*mask.grid(), mask.all_columns().to_vec(), pairs)?)
}

/// Visits every group of every packed row: its number, and where in `[R, K]` its four weights are; none for padding.
fn visit(layer: &Layer, mut f: impl FnMut(usize, [Option<usize>; 4])) {
    let (mask, grid) = (&layer.mask, layer.mask.grid());
    for row in 0..grid.rows() {
        let out = layer.output_row(row);
        for group in 0..grid.groups() {
            let columns = mask.columns(row / grid.pattern().v(), group).map(|col| col as usize);
            f(row * grid.groups() + group, columns.map(|col| (col < grid.cols()).then_some(out * grid.cols() + col)));
        }
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use lacuna_core::{Dtype, Matrix, Packed, Permutation, Scores};
    use lacuna_model::LinearSpec;
    use lacuna_prune::Selection;

    use super::*;
    use crate::ops::tests::noise;

    fn layer() -> Layer {
        let weight = Matrix::new(6, 11, values(&noise(&[6, 11], 5)).unwrap()).unwrap();
        let scores = Scores::new(Matrix::new(6, 11, weight.data().iter().map(|w| w.abs()).collect()).unwrap()).unwrap();
        let mask = Selection::Exact.select(&scores, "2:2:5".parse().unwrap()).unwrap();
        let order = Permutation::new(vec![3, 1, 5, 0, 2, 4]).unwrap();
        let spec = LinearSpec { name: "layer".to_owned(), rows: 6, cols: 11, bias: false, head: false };
        Layer::new(spec, &Packed::pack(&weight, mask, Dtype::F32, Some(order)).unwrap())
    }

    #[test]
    fn the_prior_is_the_mask_it_came_from() {
        let layer = layer();
        let logits = prior(&layer, &Device::Cpu).unwrap();
        assert_eq!(&likeliest(&layer, &logits).unwrap(), &layer.mask);
    }

    #[test]
    fn a_cold_draw_keeps_two_of_four() {
        let layer = layer();
        let logits = prior(&layer, &Device::Cpu).unwrap();
        let factors = Draw { temperature: 1e-3, scale: 1e5, seed: 3 }.of(&layer, 0, &logits).unwrap().factors;
        let want = values(&layer.factors(0.0, &Device::Cpu).unwrap()).unwrap();
        let far = values(&factors).unwrap().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-3, "{far}");
    }

    #[test]
    fn the_gradient_of_the_odds_is_that_of_finite_differences() {
        let layer = layer();
        let logits = (noise(&[6, 18], 1) * 0.5).unwrap();
        let of_factors = noise(&[6, 11], 2);
        let draw = Draw { temperature: 0.7, scale: 1.3, seed: 11 };
        let value = |logits: &Tensor| {
            let factors = values(&draw.of(&layer, 5, logits).unwrap().factors).unwrap();
            let weights = values(&of_factors).unwrap();
            factors.iter().zip(weights).map(|(a, b)| f64::from(a * b)).sum::<f64>()
        };
        let gradient = values(&draw.of(&layer, 5, &logits).unwrap().gradient(&layer, &of_factors).unwrap()).unwrap();
        let start = values(&logits).unwrap();
        for place in 0..start.len() {
            let moved = |by: f32| {
                let mut moved = start.clone();
                moved[place] += by;
                value(&Tensor::from_vec(moved, (6, 18), &Device::Cpu).unwrap())
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[place])).abs() < 1e-3, "{place}: {} {slope}", gradient[place]);
        }
    }
}

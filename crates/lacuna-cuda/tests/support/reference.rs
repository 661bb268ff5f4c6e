//! What a model's output should be, and how far rounding to 16 bits may take it from that.

#![allow(dead_code, reason = "each program uses a part")]

use lacuna_core::Matrix;
use lacuna_cuda::HalfType;
use lacuna_format::Checkpoint;
use lacuna_model::{Activations, Block, Config, Ending, Execution, PackedAs, Positions, Sample};

/// What the CPU makes of inputs, with dense weights rounded as they are on the GPU.
pub struct Reference {
    /// behind the last block, `[H, T]`
    pub hidden: Matrix,
    /// logits of all tokens or of images, vectors of texts
    pub ending: Matrix,
}

/// Walks through the blocks, with the stream rounded behind each, or exactly.
pub fn reference(
    checkpoint: &Checkpoint,
    config: &Config,
    samples: &[Sample],
    half: HalfType,
    rounded: bool,
) -> Reference {
    let execution =
        Execution { packed: PackedAs::Sparse, activations: Activations::F32, dense_values: Some(half.dtype().into()) };
    let blocks = config.blocks();
    let (mut hidden, lengths) = config.embed(checkpoint, samples).unwrap();
    let round = |hidden: &mut Matrix| {
        if rounded {
            hidden.data_mut().iter_mut().for_each(|v| *v = half.widen(half.round(*v)));
        }
    };
    round(&mut hidden);
    let positions = Positions::whole(blocks, &lengths);
    for layer in 0..blocks.layers {
        let block = Block::load(checkpoint, blocks, layer, execution).unwrap();
        block.forward(&mut hidden, &positions, None, &mut |_, _| {});
        round(&mut hidden);
    }
    let ending = Ending::load(checkpoint, config, execution).unwrap().apply(&hidden, &lengths);
    Reference { hidden, ending }
}

pub fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), v| (sum + v * v, n + 1));
    (sum / f64::from(n.max(1))).sqrt()
}

pub fn difference(a: &Matrix, b: &Matrix) -> f64 {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()));
    rms(a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b)))
}

/// How far a result may be from the exact one (root of the mean square), given what the same model gives when its stream is
/// rounded between blocks.
///
/// A GPU rounds a value of a block's way 12 times where `rounded` does so once (two norms, q, k, v, the turned q and k, mixed
/// values, the stream, gate, factor, inner values, the stream again, of which biases of dense layers have some twice). Those
/// roundings are independent of each other, each is of the same relative size as that of the stream, and none weighs more than
/// it, because what it disturbs is a part of what is added to the stream. So the expected square of the difference is at
/// most 12 times as large, its root 3.5 times; where there are few values `rounded` is but a draw, hence twice that.
pub fn tolerance(exact: &Matrix, rounded: &Matrix) -> f64 {
    2.0 * 12_f64.sqrt() * difference(rounded, exact)
}

//! Gradients of whole models, through every kind of layer and rule, against finite differences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lacuna_core::{Dtype, Packed, Permutation, Scores};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, Sample, family};
use lacuna_prune::Selection;

use super::Student;
use crate::layer::{Layer, Rule};
use crate::trainer::make_parameters;
use crate::{Loss, MicroBatch, NO_TARGET, Recipe, Teacher, Trains};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-model/tests").join(name)
}

fn recipe(trains: Trains) -> Recipe {
    let text = r#"{ "trains": "weights", "norms": true, "ends": true, "phases": [{ "masks": "fixed" }], "loss": { "kl": 1 }, "optimizer": { "lr": 1 } }"#;
    Recipe { trains, ..serde_json::from_str(text).unwrap() }
}

/// A golden checkpoint with every linear layer of its blocks pruned, rows in an order of their own.
fn student(checkpoint: &Checkpoint, config: &Config, trains: Trains, recompute: bool) -> Student {
    let (mut layers, mut latent) = (BTreeMap::new(), BTreeMap::new());
    for spec in (0..config.blocks().layers).flat_map(|layer| config.blocks().linears(layer)) {
        let mut weight = checkpoint.matrix(&spec.weight(), spec.rows, spec.cols).unwrap();
        // Far enough from the teacher's for gradients that can be measured.
        weight.data_mut().iter_mut().enumerate().for_each(|(i, w)| *w *= 1.0 + 0.5 * (i as f32).sin());
        let order = Permutation::new((0..spec.rows as u32).rev().collect()).unwrap();
        let mut scores = order.permute_rows(&weight).unwrap();
        scores.data_mut().iter_mut().for_each(|w| *w = w.abs());
        let mask = Selection::Exact.select(&Scores::new(scores).unwrap(), "4:2:6".parse().unwrap()).unwrap();
        let packed = Packed::pack(&weight, mask, Dtype::F32, Some(order)).unwrap();
        layers.insert(spec.name.clone(), Layer::new(spec.clone(), &packed));
        latent.insert(spec.name.clone(), weight);
    }
    let mut student = Student::new(checkpoint, config, layers, latent, trains, false, recompute).unwrap();
    make_parameters(&mut student, &recipe(trains), 5).unwrap();
    student.train_ends(checkpoint).unwrap();
    // An adapter's second half begins as zeros, where the first has no gradient.
    for (name, tensor) in &mut student.parameters {
        if name.ends_with("lora_B.weight") {
            *tensor = (crate::ops::tests::noise(tensor.dims(), 4) * 0.1).unwrap();
        }
    }
    student
}

fn batch(checkpoint: &Checkpoint, config: &Config) -> MicroBatch {
    let samples: Vec<Sample> = match config {
        Config::Vision(vision) => {
            let image = |seed: usize| (0..vision.pixels()).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect();
            (0..2).map(|seed| Sample::Pixels(image(seed))).collect()
        }
        Config::Decoder(_) | Config::Text(_) => vec![Sample::Tokens(vec![1, 5, 9, 2, 7]), Sample::Tokens(vec![3, 8])],
    };
    let (hidden, lengths) = config.embed(checkpoint, &samples).unwrap();
    let tokens = samples.iter().flat_map(|sample| match sample {
        Sample::Tokens(tokens) => &tokens[..],
        Sample::Pixels(_) => &[],
    });
    let tokens = tokens.copied().collect();
    let targets = match config {
        Config::Decoder(_) => vec![5, 9, 2, 7, NO_TARGET, 8, NO_TARGET],
        Config::Vision(_) => vec![0, 1],
        Config::Text(_) => vec![],
    };
    MicroBatch::new(hidden, tokens, lengths, targets)
}

fn check(name: &str, trains: Trains, rule: Rule, loss: Loss) {
    let dir = golden(name);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let mut student = student(&checkpoint, &config, trains, false);
    let mut batches = [batch(&checkpoint, &config)];
    Teacher::open(&dir, &config, false).unwrap().teach(&mut batches, &loss).unwrap();
    let (_, gradients) = student.step(&batches, &rule, &loss).unwrap();
    assert_eq!(
        gradients.keys().collect::<Vec<_>>(),
        student.parameters.keys().collect::<Vec<_>>(),
        "{name} {trains:?}"
    );
    let mut measured = 0;
    for (parameter, gradient) in &gradients {
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let start = student.parameters[parameter].clone();
        let values: Vec<f32> = start.flatten_all().unwrap().to_vec1().unwrap();
        // The place with the steepest slope: finite differences of f32 lose small ones.
        let steepest = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        let step = 2e-3_f32;
        let mut lost = |by: f32| {
            let mut moved = values.clone();
            moved[steepest] += by;
            let moved = Tensor::from_vec(moved, start.dims(), &Device::Cpu).unwrap();
            student.parameters.insert(parameter.clone(), moved);
            student.step(&batches, &rule, &loss).unwrap().0.total
        };
        let slope = (lost(step) - lost(-step)) / f64::from(2.0 * step);
        student.parameters.insert(parameter.clone(), start);
        let got = f64::from(gradient[steepest]);
        let far = (slope - got).abs() / (5e-3 + slope.abs());
        assert!(far < 0.06, "{name} {trains:?} {parameter}: {got}, finite differences say {slope}");
        measured += usize::from(slope.abs() > 1e-3);
    }
    assert!(
        measured * 3 > gradients.len(),
        "{name}: only {measured} of {} gradients were large enough",
        gradients.len()
    );
}

const WHOLE: Loss = Loss { ce: 0.5, kl: 2.0, temperature: 1.5, squarehead: 3.0, cosine: 0.0 };
const OF_TEXTS: Loss = Loss { ce: 0.0, kl: 0.0, temperature: 1.0, squarehead: 3.0, cosine: 2.0 };

#[test]
fn families_have_the_gradients_of_finite_differences() {
    for name in ["golden/llama-gqa-tied", "golden/qwen2-sliding", "golden_encoders/vit", "golden_encoders/deit"] {
        check(name, Trains::Weights, Rule::FINAL, WHOLE);
    }
    for name in ["golden_encoders/bert", "golden_encoders/sentence-bert"] {
        check(name, Trains::Weights, Rule::FINAL, OF_TEXTS);
    }
}

#[test]
fn rules_have_the_gradients_of_finite_differences() {
    let name = "golden/llama-gqa-tied";
    check(name, Trains::Weights, Rule { leak: 0.3, ..Rule::FINAL }, WHOLE);
    check(name, Trains::Weights, Rule { sparse: false, ..Rule::FINAL }, WHOLE);
    for trains in [Trains::Masks, Trains::MasksAndWeights] {
        check(name, trains, Rule { drawn: Some([0.8, 1.5]), seed: 7, ..Rule::FINAL }, WHOLE);
    }
    for beside in [false, true] {
        let trains = Trains::Adapters { rank: 3, alpha: 6.0, beside };
        check(name, trains, Rule::FINAL, WHOLE);
        check(name, trains, Rule { sparse: false, ..Rule::FINAL }, WHOLE);
    }
}

#[test]
fn computing_again_changes_nothing() {
    let dir = golden("golden/llama-gqa-tied");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let batches = [batch(&checkpoint, &config)];
    let run = |recompute| {
        let mut student = student(&checkpoint, &config, Trains::Weights, recompute);
        let loss = Loss { ce: 1.0, temperature: 1.0, ..Loss::default() };
        let (losses, gradients) = student.step(&batches, &Rule::FINAL, &loss).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (losses, gradients.iter().map(|(name, t)| (name.clone(), values(t))).collect::<Vec<_>>())
    };
    assert!(run(false) == run(true), "other losses or gradients");
}

#[test]
fn weights_that_stay_may_be_held_packed() {
    let dir = golden("golden/llama-gqa-tied");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let batches = [batch(&checkpoint, &config)];
    let loss = Loss { ce: 1.0, temperature: 1.0, ..Loss::default() };
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for beside in [false, true] {
        let mut student = student(&checkpoint, &config, Trains::Adapters { rank: 3, alpha: 6.0, beside }, false);
        let run = |student: &mut Student| {
            let (losses, gradients) = student.step(&batches, &Rule::FINAL, &loss).unwrap();
            (losses, gradients.iter().map(|(name, t)| (name.clone(), values(t))).collect::<Vec<_>>())
        };
        let whole = run(&mut student);
        for layer in student.layers.values_mut() {
            let weight = student.frozen.remove(&layer.spec.weight()).unwrap();
            let packed = layer.pack(&crate::layer::matrix(&weight).unwrap()).unwrap();
            *layer = Layer::frozen(layer.spec.clone(), packed);
        }
        assert!(run(&mut student) == whole, "other losses or gradients, beside {beside}");
    }
}

/// A straight-through gradient is the dense one at masked weights, and `λ` pulls dropped weights only.
#[test]
fn straight_through_gradients_reach_dropped_weights() {
    let dir = golden("golden/llama-gqa-tied");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let batches = [batch(&checkpoint, &config)];
    let mut student = student(&checkpoint, &config, Trains::Weights, false);
    let loss = Loss { ce: 1.0, temperature: 1.0, ..Loss::default() };
    let mut of = |rule: Rule| student.step(&batches, &rule, &loss).unwrap().1;
    let plain = of(Rule::FINAL);
    let through = of(Rule { straight_through: true, ..Rule::FINAL });
    let pulled = of(Rule { straight_through: true, decay: 0.25, ..Rule::FINAL });
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, layer) in &student.layers {
        let weight = format!("{name}.weight");
        let [plain, through, pulled] = [&plain, &through, &pulled].map(|g| values(&g[&weight]));
        let (mask, latent) = (values(&layer.factors(0.0, &Device::Cpu).unwrap()), values(student.tensor(&weight)));
        assert!(mask.iter().zip(&through).any(|(&m, &g)| m == 0.0 && g != 0.0), "{name}");
        for i in 0..mask.len() {
            assert!((plain[i] - mask[i] * through[i]).abs() == 0.0, "{name} {i}");
            let pull = 0.25 * (1.0 - mask[i]) * latent[i];
            assert!((pulled[i] - through[i] - pull).abs() < 1e-5, "{name} {i}");
        }
    }
}

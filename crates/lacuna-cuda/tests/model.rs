//! Whole models, dense and pruned, through the launches that a GPU would get, on the emulated machine, against the CPU's:
//! every golden checkpoint, so every switch of a config.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/reference.rs"]
mod reference;
#[path = "../../lacuna-kernels/tests/support/random.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;

use emulator::Emulator;
use lacuna_core::{IntType, Matrix, ScaleGroup, ValueType};
use lacuna_cuda::model::{Decoder, Encoder, Session};
use lacuna_cuda::{HalfType, Limits};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, DecoderConfig, PackedAs, Sample, Sequences, family};
use reference::{difference, reference, rms, tolerance};

const LIMITS: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 20, bulk: false };

/// Holds a result against the exact one, by [`tolerance`] of what rounding the stream between blocks does to it.
fn check(got: &Matrix, exact: &Matrix, rounded: &Matrix, what: &str) {
    let (off, tolerance) = (difference(got, exact), tolerance(exact, rounded));
    let size = rms(exact.data().iter().map(|&v| f64::from(v)));
    if std::env::var_os("LACUNA_SHOW").is_some() {
        let (share, relative) = (off / tolerance, tolerance / size);
        eprintln!("{what}: off {off:.2e}, {share:.2} of the tolerance, which is {relative:.1e} of the values");
    }
    // NaN is worse than anything.
    assert!(off <= tolerance, "{what}: {off} off, tolerance {tolerance}");
    assert!(tolerance < 0.1 * size, "{what}: a tolerance of {tolerance} says nothing about values of {size}");
}

fn machine() -> Option<Arc<Emulator>> {
    let machine = Emulator::start(LIMITS)?;
    machine.take_turns(true);
    Some(Arc::new(machine))
}

fn columns(matrix: &Matrix, columns: impl Iterator<Item = usize> + Clone) -> Matrix {
    let data = (0..matrix.rows()).flat_map(|row| columns.clone().map(move |c| (row, c)));
    let data: Vec<f32> = data.map(|(row, c)| matrix.row(row)[c]).collect();
    Matrix::new(matrix.rows(), columns.count(), data).unwrap()
}

/// Whole sequences at once, and the same in unequal steps through the cache, some of them recorded and replayed.
fn check_decoder(folder: &Path, half: HalfType, packed_as: PackedAs, texts: usize, what: &str) {
    let Some(machine) = machine() else { return };
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let Config::Decoder(decoder_config) = &config else { panic!("{what}: no decoder") };
    let samples = golden::samples(&config, texts);
    let [exact, rounded] = [false, true].map(|rounded| reference(&checkpoint, &config, &samples, half, rounded).ending);
    let texts: Vec<&[u32]> = samples.iter().map(tokens).collect();
    let model = Decoder::load(machine, &checkpoint, decoder_config, half, packed_as).unwrap();

    let mut cache = model.cache(texts.len(), 13).unwrap();
    let batch: Vec<(usize, &[u32])> = texts.iter().copied().enumerate().collect();
    let hidden = model.forward(&batch, &mut cache).unwrap();
    let all: Vec<usize> = (0..exact.cols()).collect();
    check(&model.logits(&hidden, &all).unwrap(), &exact, &rounded, &format!("{what}, whole"));

    // The longest text: 4 tokens, one by one up to 9, 3 at once, the last. Beside it a part of the second, until it ends.
    let mut session = Session::new(&model, 2, 13).unwrap();
    let mut got = vec![];
    for range in [0..4, 4..5, 5..6, 6..7, 7..8, 8..9, 9..12, 12..13] {
        let mut inputs = vec![(0, &texts[0][range.clone()])];
        inputs.extend(texts[1].get(range.clone()).map(|part| (1, part)));
        let logits = session.extend(&inputs).unwrap();
        got.extend((0..inputs.len()).map(|i| {
            let column = texts[..i].iter().map(|text| text.len()).sum::<usize>() + range.end - 1;
            (column, columns(&logits, i..=i))
        }));
    }
    let joined = |of: &dyn Fn(&(usize, Matrix)) -> Matrix| {
        let parts: Vec<Matrix> = got.iter().map(of).collect();
        let rows = parts[0].rows();
        let data = (0..rows).flat_map(|row| parts.iter().map(move |part| part.row(row)[0])).collect();
        Matrix::new(rows, parts.len(), data).unwrap()
    };
    let of = |matrix: &Matrix| columns(matrix, got.iter().map(|(column, _)| *column));
    check(&joined(&|(_, logits)| logits.clone()), &of(&exact), &of(&rounded), &format!("{what}, by steps"));
}

fn tokens(sample: &Sample) -> &[u32] {
    match sample {
        Sample::Tokens(tokens) => tokens,
        Sample::Pixels(_) => panic!("an image"),
    }
}

fn check_encoder(folder: &Path, half: HalfType, inputs: usize, what: &str) {
    let Some(machine) = machine() else { return };
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let samples = golden::samples(&config, inputs);
    let [exact, rounded] = [false, true].map(|rounded| reference(&checkpoint, &config, &samples, half, rounded));
    let (stem, lengths) = config.embed(&checkpoint, &samples).unwrap();
    let model = Encoder::load(machine, &checkpoint, config.blocks(), half, PackedAs::Sparse).unwrap();
    let got = model.forward(&stem, &lengths).unwrap();
    check(&got, &exact.hidden, &rounded.hidden, what);
}

const HALVES: [HalfType; 2] = [HalfType::F16, HalfType::Bf16];
/// Inputs of a batch: few enough tokens that products decode, or so many that they take prefill.
const FEW: usize = 3;
const MANY: usize = 15;

fn name(folder: &Path, half: HalfType) -> String {
    format!("{} in {}", folder.file_name().unwrap().to_string_lossy(), half.name())
}

#[test]
fn decoders_compute_what_the_cpu_computes() {
    for folder in golden::folders("golden") {
        for half in HALVES {
            check_decoder(&folder, half, PackedAs::Sparse, FEW, &name(&folder, half));
        }
    }
}

#[test]
fn encoders_compute_what_the_cpu_computes() {
    for folder in golden::folders("golden_encoders") {
        for half in HALVES {
            check_encoder(&folder, half, FEW, &name(&folder, half));
        }
    }
}

#[test]
fn pruned_models_compute_what_the_cpu_computes() {
    let types = |half: HalfType| {
        [
            half.dtype().into(),
            ValueType::Int(IntType::Int8, ScaleGroup::Of32),
            ValueType::Int(IntType::Int4, ScaleGroup::Of32),
        ]
    };
    for (i, folder) in golden::folders("golden").iter().enumerate() {
        let half = HALVES[i % 2];
        let values = types(half)[i % 3];
        let copy = golden::pruned(folder, values, &golden::MIXTURE);
        let what = format!("{} pruned, {}", name(folder, half), values.name());
        check_decoder(copy.path(), half, PackedAs::Sparse, FEW, &what);
        if i % 4 == 0 {
            check_decoder(copy.path(), half, PackedAs::Dense, FEW, &format!("{what}, unpacked"));
        }
    }
    for (i, folder) in golden::folders("golden_encoders").iter().enumerate() {
        let half = HALVES[i % 2];
        let values = types(half)[i % 3];
        let copy = golden::pruned(folder, values, &golden::MIXTURE);
        check_encoder(copy.path(), half, FEW, &format!("{} pruned, {}", name(folder, half), values.name()));
    }
}

#[test]
fn pruned_models_compute_what_the_cpu_computes_for_many_tokens() {
    let pick = |kind: &str, names: &[&str]| {
        golden::folders(kind)
            .into_iter()
            .filter(|folder| names.iter().any(|name| folder.ends_with(name)))
            .collect::<Vec<_>>()
    };
    for (half, folder) in HALVES.into_iter().zip(pick("golden", &["llama-gqa-tied", "qwen2-bias"])) {
        let copy = golden::pruned(&folder, half.dtype().into(), &golden::MIXTURE);
        check_decoder(
            copy.path(),
            half,
            PackedAs::Sparse,
            MANY,
            &format!("{} pruned, many tokens", name(&folder, half)),
        );
    }
    for (half, folder) in HALVES.into_iter().zip(pick("golden_encoders", &["bert", "timm-vit"])) {
        let copy = golden::pruned(&folder, half.dtype().into(), &golden::MIXTURE);
        check_encoder(copy.path(), half, MANY, &format!("{} pruned, many tokens", name(&folder, half)));
    }
}

/// The likeliest tokens of recorded steps are those that the CPU's logits name, token by token.
#[test]
fn replayed_steps_take_the_likeliest_token() {
    let Some(machine) = machine() else { return };
    for folder in ["llama-gqa-tied", "qwen2-bias", "mistral-sliding"] {
        let folder = golden::folders("golden").into_iter().find(|path| path.ends_with(folder)).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config: DecoderConfig = family::decoder(&checkpoint).unwrap();
        let whole = Config::Decoder(config.clone());
        let model = Decoder::load(machine.clone(), &checkpoint, &config, HalfType::F16, PackedAs::Sparse).unwrap();
        let mut texts = [vec![3, 1, 4, 1, 5], vec![9, 2, 6]];
        let mut session = Session::new(&model, 2, 16).unwrap();
        session.extend(&[(0, &texts[0][..4]), (1, &texts[1][..2])]).unwrap();
        let last = texts.each_ref().map(|text| text[text.len() - 1]);
        let steps = 6;
        let got = session.take_likeliest(&last, steps).unwrap();
        for _ in 0..steps {
            for text in &mut texts {
                let sample = [Sample::Tokens(text.clone())];
                let logits = reference(&checkpoint, &whole, &sample, HalfType::F16, false).ending;
                let column = columns(&logits, text.len() - 1..text.len());
                let best =
                    (0..column.rows()).fold(0, |best, v| if column.row(v) > column.row(best) { v } else { best });
                text.push(best as u32);
            }
        }
        assert_eq!(got, texts.map(|text| text[text.len() - 1]), "{}", folder.display());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(machine) = machine() else { return };
    let folder = golden::folders("golden").swap_remove(0);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let config = family::decoder(&checkpoint).unwrap();
    let model = Decoder::load(machine, &checkpoint, &config, HalfType::F16, PackedAs::Sparse).unwrap();
    let mut session = Session::new(&model, 1, 3).unwrap();
    let outside = config.vocab_size as u32;
    for (inputs, want) in [
        (vec![(0, &[outside][..])], "tokens of the vocabulary"),
        (vec![(0, &[1, 2, 3, 4][..])], "positions of a cache"),
        (vec![(1, &[1][..])], "sequences of a cache"),
    ] {
        let error = session.extend(&inputs).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    session.extend(&[(0, &[1, 2])]).unwrap();
    session.extend(&[(0, &[1])]).unwrap();
    assert!(session.extend(&[(0, &[1])]).is_err());
    assert!(session.take_likeliest(&[1], 1).is_err());
}

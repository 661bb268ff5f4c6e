//! Logits of tiny checkpoints against Hugging Face transformers (tests/golden/make.py): every config switch.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_format::Checkpoint;
use lacuna_model::{Cache, Decoder, Execution, family};
use safetensors::SafeTensors;

struct Reference {
    tokens: Vec<Vec<u32>>,
    /// `[batch][token][vocab]`, flat
    logits: Vec<f32>,
    vocab: usize,
}

fn reference(dir: &Path) -> Reference {
    let bytes = fs::read(dir.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (tokens, logits) = (file.tensor("tokens").unwrap(), file.tensor("logits").unwrap());
    let ids: Vec<u32> =
        tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let values = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let tokens = ids.chunks_exact(tokens.shape()[1]).map(<[u32]>::to_vec).collect();
    Reference { tokens, logits: values, vocab: logits.shape()[2] }
}

fn cases() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<PathBuf> = fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(cases.len() >= 9, "golden checkpoints are missing");
    cases
}

/// Rounding alone moves these logits by at most 2.4e-5 (f64 against f32 in make.py); a wrong switch by 0.7 or more.
const TOLERANCE: f32 = 2e-4;

fn check(dir: &Path, got: &lacuna_core::Matrix, want: &Reference, what: &str) {
    for (i, want) in want.logits.chunks_exact(want.vocab).enumerate() {
        for (v, w) in want.iter().enumerate() {
            let off = (got.row(v)[i] - w).abs();
            assert!(off <= TOLERANCE, "{}, {what}: token {i}, logit {v} is {off} off", dir.display());
        }
    }
}

fn compare(dir: &Path) {
    let want = reference(dir);
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = family::decoder(&checkpoint).unwrap();
    let model = Decoder::load(&checkpoint, &config, Execution::EXACT).unwrap();
    let all: Vec<usize> = (0..want.tokens.iter().map(Vec::len).sum()).collect();

    // The whole batch at once …
    let mut caches: Vec<Cache> = want.tokens.iter().map(|_| Cache::new(&config)).collect();
    let mut batch: Vec<_> = want.tokens.iter().map(Vec::as_slice).zip(&mut caches).collect();
    let hidden = model.forward(&mut batch);
    check(dir, &model.logits(&hidden, &all), &want, "prefill");

    // … and in unequal steps through the cache.
    let lengths: Vec<usize> = want.tokens.iter().map(Vec::len).collect();
    let mut caches: Vec<Cache> = want.tokens.iter().map(|_| Cache::new(&config)).collect();
    let mut got = lacuna_core::Matrix::zeros(config.vocab_size, all.len());
    for (from, to) in [(0, 5), (5, 6), (6, 7), (7, 15), (15, lengths[0])] {
        let mut batch: Vec<_> = want.tokens.iter().map(|t| &t[from..to]).zip(&mut caches).collect();
        let hidden = model.forward(&mut batch);
        let logits = model.logits(&hidden, &(0..hidden.cols()).collect::<Vec<_>>());
        for v in 0..logits.rows() {
            for (i, logit) in logits.row(v).iter().enumerate() {
                let (sequence, step) = (i / (to - from), i % (to - from));
                got.row_mut(v)[sequence * lengths[0] + from + step] = *logit;
            }
        }
    }
    check(dir, &got, &want, "cached steps");
}

#[test]
fn logits_are_those_of_transformers() {
    for dir in cases() {
        compare(&dir);
    }
}

#[test]
fn older_config_files_mean_the_same() {
    let mut seen = 0;
    for dir in cases().iter().filter(|dir| dir.join("config.legacy.json").exists()) {
        let copy = tempfile::tempdir().unwrap();
        for file in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(dir.join("config.legacy.json"), copy.path().join("config.json")).unwrap();
        compare(copy.path());
        seen += 1;
    }
    assert!(seen >= 2);
}

//! Outputs of tiny encoders against Hugging Face transformers and timm (tests/golden_encoders/make.py): every config
//! switch, every layout of names.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{Config, Execution, TextEncoder, VisionEncoder, family};
use safetensors::SafeTensors;

/// Rounding alone moves these outputs by at most 1e-5 (f64 against f32 in make.py); a wrong switch by 0.01 or more.
const TOLERANCE: f32 = 1e-4;

struct Reference(Vec<u8>);

impl Reference {
    fn of(dir: &Path) -> Self {
        Self(fs::read(dir.join("reference.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Some((tensor.shape().to_vec(), values))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        tensor.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
    }
}

fn cases() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_encoders");
    let mut cases: Vec<PathBuf> = fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|path| path.join("config.json").is_file());
    cases.sort();
    assert!(cases.len() >= 21, "golden checkpoints are missing");
    cases
}

fn close(got: f32, want: f32, what: &str) {
    assert!((got - want).abs() <= TOLERANCE, "{what}: {got}, not {want}");
}

/// Holds columns of a feature-major result against rows of `want[.., features]`.
fn check(got: &Matrix, columns: impl Iterator<Item = (usize, usize)>, want: &[f32], what: &str) {
    let features = got.rows();
    for (column, row) in columns {
        for k in 0..features {
            close(got.row(k)[column], want[row * features + k], &format!("{what}, token {row}, feature {k}"));
        }
    }
}

fn check_text(checkpoint: &Checkpoint, config: &lacuna_model::TextConfig, reference: &Reference, what: &str) {
    let (shape, hidden) = reference.floats("hidden").unwrap();
    let (tokens, lengths) = (reference.ids("tokens"), reference.ids("lengths"));
    let texts: Vec<&[u32]> =
        tokens.chunks_exact(shape[1]).zip(&lengths).map(|(text, &len)| &text[..len as usize]).collect();
    let encoder = TextEncoder::load(checkpoint, config, Execution::EXACT).unwrap();
    let got = encoder.forward(&texts);
    let padded = shape[1];
    let places = texts.iter().enumerate().flat_map(|(i, text)| (0..text.len()).map(move |t| i * padded + t));
    check(&got, places.enumerate(), &hidden, what);
}

fn check_images(checkpoint: &Checkpoint, config: &lacuna_model::VisionConfig, reference: &Reference, what: &str) {
    let (shape, pixels) = reference.floats("pixels").unwrap();
    let images: Vec<&[f32]> = pixels.chunks_exact(shape[1..].iter().product()).collect();
    let encoder = VisionEncoder::load(checkpoint, config, Execution::EXACT).unwrap();
    if let Some((_, hidden)) = reference.floats("hidden") {
        let got = encoder.forward(&images);
        check(&got, (0..got.cols()).map(|i| (i, i)), &hidden, what);
    }
    if let Some((_, logits)) = reference.floats("logits") {
        check(&encoder.logits(&images), (0..images.len()).map(|i| (i, i)), &logits, &format!("{what}, logits"));
    }
}

#[test]
fn outputs_are_those_of_transformers_and_timm() {
    for dir in cases() {
        let reference = Reference::of(&dir);
        for name in ["config.json", "config.minimal.json"].into_iter().filter(|name| dir.join(name).is_file()) {
            // The weights beside each of the configs.
            let copy = tempfile::tempdir().unwrap();
            fs::copy(dir.join(name), copy.path().join("config.json")).unwrap();
            fs::copy(dir.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
            let checkpoint = Checkpoint::open(copy.path()).unwrap();
            let what = format!("{} with {name}", dir.display());
            match family::config(&checkpoint).unwrap_or_else(|e| panic!("{what}: {e}")) {
                Config::Text(config) => check_text(&checkpoint, &config, &reference, &what),
                Config::Vision(config) => check_images(&checkpoint, &config, &reference, &what),
                Config::Decoder(_) => panic!("{what}: not an encoder"),
            }
        }
    }
}

#[test]
fn vectors_are_pooled_as_sentence_transformers_does() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_encoders/sentence-bert");
    let reference = Reference::of(&dir);
    let (tokens, lengths) = (reference.ids("tokens"), reference.ids("lengths"));
    let width = tokens.len() / lengths.len();
    let texts: Vec<&[u32]> =
        tokens.chunks_exact(width).zip(&lengths).map(|(text, &len)| &text[..len as usize]).collect();
    for kind in ["mean", "cls", "max", "mean_sqrt_len"] {
        let (shape, want) = reference.floats(&format!("embedding_{kind}")).unwrap();
        // sentence-transformers 6 spells its files in another way.
        let spellings = ["", ".v6"];
        for (spelling, (modules, normalised)) in
            spellings.iter().flat_map(|s| [("modules", true), ("modules.unnormalised", false)].map(|m| (s, m)))
        {
            let copy = tempfile::tempdir().unwrap();
            for file in ["config.json", "model.safetensors"] {
                fs::copy(dir.join(file), copy.path().join(file)).unwrap();
            }
            fs::copy(dir.join(format!("{modules}{spelling}.json")), copy.path().join("modules.json")).unwrap();
            fs::create_dir(copy.path().join("1_Pooling")).unwrap();
            let kind_in_name = if kind == "mean" { String::new() } else { format!(".{kind}") };
            let pooling = dir.join(format!("1_Pooling/config{kind_in_name}{spelling}.json"));
            fs::copy(pooling, copy.path().join("1_Pooling/config.json")).unwrap();
            let checkpoint = Checkpoint::open(copy.path()).unwrap();
            let config = family::text_encoder(&checkpoint).unwrap();
            let encoder = TextEncoder::load(&checkpoint, &config, Execution::EXACT).unwrap();
            for (got, want) in encoder.embed(&texts).iter().zip(want.chunks_exact(shape[1])) {
                let length = want.iter().map(|v| v * v).sum::<f32>().sqrt();
                for (got, want) in got.iter().zip(want) {
                    close(*got, if normalised { want / length } else { *want }, &format!("{kind}, {modules}"));
                }
            }
        }
    }
}

//! The golden checkpoints of lacuna-model, dense as they are and pruned to a mixture of patterns and types of values.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_core::{Packed, Pattern, ValueType};
use lacuna_format::{Checkpoint, METHOD, OutTensor, SPARSITY_KEY, VERSION, pack_tensors};
use lacuna_model::{Config, Sample, family};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::random_mask;

/// Patterns of all kinds; where there is none, the layer stays dense.
pub const MIXTURE: [Option<&str>; 6] =
    [Some("16:2:5"), Some("64:2:8"), Some("16:2:4"), None, Some("32:2:8@all"), Some("128:2:6")];

/// Folders of the decoders, or of the encoders.
pub fn folders(kind: &str) -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-model/tests").join(kind);
    let mut folders: Vec<PathBuf> = fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.join("config.json").is_file());
    folders.sort();
    assert!(folders.len() >= 9, "golden checkpoints are missing");
    folders
}

/// A pruned copy of a checkpoint, layers under some patterns in turn. Which weights are kept is drawn.
pub fn pruned(folder: &Path, values: ValueType, patterns: &[Option<&str>]) -> tempfile::TempDir {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = family::config(&checkpoint).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut layers, mut packed) = (serde_json::Map::new(), vec![]);
    let blocks = config.blocks();
    let linears = (0..blocks.layers).flat_map(|layer| blocks.linears(layer));
    for (spec, pattern) in linears.zip(patterns.iter().cycle()) {
        let Some(text) = *pattern else { continue };
        let pattern: Pattern = text.parse().unwrap();
        let weight = checkpoint.matrix(&spec.weight(), spec.rows, spec.cols).unwrap();
        let mask = random_mask(&mut rng, pattern, spec.rows, spec.cols);
        packed.push((spec.name.clone(), Packed::pack(&weight, mask, values, None).unwrap()));
        layers.insert(spec.name, json!({ "shape": [spec.rows, spec.cols], "pattern": text }));
    }
    let kept = checkpoint
        .tensors()
        .iter()
        .filter(|(name, _)| !name.strip_suffix(".weight").is_some_and(|module| layers.contains_key(module)));
    let mut tensors: Vec<_> = packed.iter().flat_map(|(name, packed)| pack_tensors(name, packed)).collect();
    for (name, info) in kept {
        let bytes = checkpoint.raw(name).unwrap().bytes().to_vec();
        tensors.push((name.clone(), OutTensor::new(info.dtype, info.shape.clone(), bytes)));
    }
    let copy = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize_to_file(views, None, &copy.path().join("model.safetensors")).unwrap();
    let mut config: Value = checkpoint.config().clone();
    let mut sparsity = json!({
        "quant_method": METHOD, "version": VERSION, "pattern": "16:2:5", "criterion": "magnitude", "recipe": {},
        "source_sha256": {}, "layers": layers,
    });
    if let Some((_, group)) = values.integers() {
        sparsity["scale_group"] = json!(group.values());
    }
    config[SPARSITY_KEY] = sparsity;
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    copy
}

/// Inputs that a model takes, where it can of different lengths.
pub fn samples(config: &Config, count: usize) -> Vec<Sample> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut tokens = |lengths: [usize; 3], vocab: usize| -> Vec<Sample> {
        let text = |len: usize| Sample::Tokens((0..len).map(|_| rng.random_range(0..vocab as u32)).collect());
        lengths.into_iter().cycle().take(count).map(text).collect()
    };
    match config {
        Config::Decoder(config) => tokens([13, 6, 1], config.vocab_size),
        Config::Text(config) => tokens([11, 3, 1], config.vocab_size),
        Config::Vision(config) => (0..count)
            .map(|_| Sample::Pixels((0..config.pixels()).map(|_| rng.random_range(-1.0..1.0)).collect()))
            .collect(),
    }
}

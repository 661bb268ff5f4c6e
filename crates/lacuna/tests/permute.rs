//! `lacuna permute`: the reordered model is the same function, and a plain mask keeps more of it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{FAILED, Run, Tiny, USAGE, read_checkpoint, read_files, refuses};
use lacuna::permute::rewrite;
use lacuna_core::{Matrix, Permutation};
use lacuna_format::Checkpoint;
use lacuna_model::{
    BlockConfig, BlockOrders, Cache, ChannelOrders, Config, Decoder, Execution, TextEncoder, VisionEncoder, family,
};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::Dtype;

fn random(len: usize, rng: &mut ChaCha8Rng) -> Permutation {
    let mut order: Vec<u32> = (0..len as u32).collect();
    order.shuffle(rng);
    Permutation::new(order).unwrap()
}

/// Orders that differ wherever they may.
fn random_orders(config: &BlockConfig, rng: &mut ChaCha8Rng) -> ChannelOrders {
    let heads = |rng: &mut ChaCha8Rng| (0..config.kv_heads).map(|_| random(config.head_dim, rng)).collect();
    let mut blocks = vec![];
    for _ in 0..config.layers {
        let mut block = BlockOrders::identity(config);
        block.inner = random(config.intermediate_size, rng);
        block.heads = random(config.kv_heads, rng);
        block.values = heads(rng);
        if !config.rotates() {
            block.keys = heads(rng);
        }
        blocks.push(block);
    }
    ChannelOrders::new(config, random(config.hidden_size, rng), blocks).unwrap()
}

fn golden(folder: &str, at_least: usize) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-model/tests").join(folder);
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.join("config.json").is_file());
    cases.sort();
    assert!(cases.len() >= at_least, "golden checkpoints are missing");
    cases
}

/// What a model makes of some inputs, and whether these are features of the residual stream.
fn outputs(dir: &Path) -> (Matrix, bool) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    match family::config(&checkpoint).unwrap() {
        Config::Decoder(config) => {
            let tokens: Vec<u32> = (0..12).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
            let model = Decoder::load(&checkpoint, &config, Execution::EXACT).unwrap();
            let hidden = model.forward(&mut [(&tokens, &mut Cache::new(&config))]);
            (model.logits(&hidden, &(0..tokens.len()).collect::<Vec<_>>()), false)
        }
        Config::Text(config) => {
            let tokens: Vec<u32> = (0..7).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
            (TextEncoder::load(&checkpoint, &config, Execution::EXACT).unwrap().forward(&[&tokens]), true)
        }
        Config::Vision(config) => {
            let pixels: Vec<f32> = (0..config.pixels()).map(|_| rng.random_range(-1.0..1.0)).collect();
            let model = VisionEncoder::load(&checkpoint, &config, Execution::EXACT).unwrap();
            let stream = config.names.heads.is_empty();
            (if stream { model.forward(&[&pixels]) } else { model.logits(&[&pixels]) }, stream)
        }
    }
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |most, v| most.max(v.abs()))
}

fn difference(a: &Matrix, b: &Matrix) -> f32 {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()));
    largest(a.data().iter().zip(b.data()).map(|(a, b)| a - b))
}

#[test]
fn any_legal_orders_leave_every_family_the_same_function() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for dir in golden("golden", 9).into_iter().chain(golden("golden_encoders", 21)) {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = family::config(&checkpoint).unwrap();
        let orders = random_orders(config.blocks(), &mut rng);
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("ordered");
        rewrite(&checkpoint, &config, &orders, &output, false).unwrap();
        let (want, stream) = outputs(&dir);
        let (mut got, _) = outputs(&output);
        // Without the right order on the way out nothing would agree, so this is also the test that something moved.
        if stream {
            assert!(difference(&got, &want) > 0.01, "{}: the stream has its old order", dir.display());
            got = orders.residual().inverse().permute_rows(&got).unwrap();
        }
        // The same products summed in another order: these outputs are of size 1, and make.py of the goldens finds that
        // rounding alone moves them by less than 3e-5.
        let off = difference(&got, &want);
        assert!(off < 2e-4 * largest(want.data().iter().copied()).max(1.0), "{}: {off} off", dir.display());
        assert_ne!(read_checkpoint(&output), read_checkpoint(&dir), "{}", dir.display());
    }
}

#[test]
fn orders_that_would_change_the_model_are_refused() {
    let Config::Decoder(config) = config_of(&golden("golden", 9)[0]) else { panic!("not a decoder") };
    let blocks = &config.blocks;
    let with = |change: fn(&mut BlockOrders)| {
        let mut orders = vec![BlockOrders::identity(blocks); blocks.layers];
        change(&mut orders[0]);
        ChannelOrders::new(blocks, Permutation::identity(blocks.hidden_size), orders).map_err(|e| e.to_string())
    };
    assert!(with(|_| {}).is_ok());
    // Rotation belongs to the place of a feature.
    let rotated = with(|block| {
        let mut order: Vec<u32> = (0..block.keys[0].len() as u32).collect();
        order.swap(0, 1);
        block.keys[0] = Permutation::new(order).unwrap();
    });
    assert!(rotated.unwrap_err().contains("rotary"));
    assert!(with(|block| block.inner = Permutation::identity(3)).unwrap_err().contains("order of an MLP"));
    assert!(with(|block| block.values.truncate(0)).unwrap_err().contains("orders of values"));
    assert!(ChannelOrders::new(blocks, Permutation::identity(1), vec![]).is_err());
}

fn config_of(dir: &Path) -> Config {
    family::config(&Checkpoint::open(dir).unwrap()).unwrap()
}

/// Features of keys that change places under rotary embedding: what the refusal above is for.
#[test]
fn rotated_keys_cannot_be_moved() {
    let tiny = Tiny::new();
    let (before, _) = outputs(&tiny.path("model"));
    tiny.edit_tensors(common::WEIGHTS, |tensors| {
        for name in ["q_proj", "k_proj"] {
            let tensor = tensors.get_mut(&format!("model.layers.0.self_attn.{name}.weight")).unwrap();
            let row = tensor.shape[1] * 4;
            // Features 0 and 1 of the first key/value head and of its two query heads.
            for head in if name == "q_proj" { vec![0, 16] } else { vec![0] } {
                let (first, second) = tensor.data[head * row..].split_at_mut(row);
                first.swap_with_slice(&mut second[..row]);
            }
        }
    });
    assert!(difference(&outputs(&tiny.path("model")).0, &before) > 1e-3);
}

fn gain(run: Run) -> (f64, f64) {
    let report = run.json();
    (report["retained_before"].as_f64().unwrap(), report["retained_after"].as_f64().unwrap())
}

#[test]
fn a_decoder_keeps_more_and_says_the_same() {
    for (dtype, shards) in [(Dtype::F32, 1), (Dtype::BF16, 3)] {
        let tiny = Tiny::with(dtype, shards);
        let command = "permute model out --pattern 16:2:8 --calibration text.txt --calibration-length 32 --json";
        let (before, after) = gain(tiny.lacuna(command));
        assert!(after > before * 1.01, "{before} to {after}");
        let names = |dir: &str| read_files(&tiny.path(dir)).into_keys().collect::<Vec<_>>();
        assert_eq!(names("out"), names("model"), "the same files");
        assert!(tiny.entries().iter().all(|name| !name.contains("partial")));
        let (old, new) = (read_checkpoint(&tiny.path("model")), read_checkpoint(&tiny.path("out")));
        for (name, tensor) in &old {
            let other = &new[name];
            assert_eq!((tensor.dtype, &tensor.shape), (other.dtype, &other.shape), "{name}");
        }
        let (want, got) = (outputs(&tiny.path("model")).0, outputs(&tiny.path("out")).0);
        let off = difference(&got, &want);
        assert!(off < 2e-4 * largest(want.data().iter().copied()).max(1.0), "{off} off");
        // What follows: a plain pattern, which the export obeys without an order of its own.
        for dir in ["model", "out"] {
            tiny.lacuna(&format!("prune {dir} {dir}-sparse --pattern 16:2:8 --recipe ria --ria-exponent 0")).ok();
            tiny.lacuna(&format!("verify {dir}-sparse")).ok();
            tiny.lacuna(&format!("export {dir}-sparse {dir}-zeros")).ok();
        }
        assert!(read_checkpoint(&tiny.path("out-sparse")).keys().all(|name| !name.ends_with("row_order")));
    }
}

#[test]
fn encoders_keep_the_features_that_they_give_out() {
    let tiny = Tiny::text_encoder("bert");
    let (before, after) = gain(tiny.lacuna("permute model out --pattern 4:2:5 --calibration sentences.txt --json"));
    assert!(after > before, "{before} to {after}");
    assert!(difference(&outputs(&tiny.path("out")).0, &outputs(&tiny.path("model")).0) < 2e-4);
    // Asked for, vectors come in another order, and by cosines are the same.
    tiny.lacuna("permute model other --pattern 4:2:5 --embeddings").ok();
    assert!(difference(&outputs(&tiny.path("other")).0, &outputs(&tiny.path("model")).0) > 0.01);
    let spearman =
        |dir: &str| tiny.lacuna(&format!("eval {dir} --data sts.csv --json")).json()["value"].as_f64().unwrap();
    assert!((spearman("other") - spearman("model")).abs() < 1e-6);

    for case in ["timm-vit", "deit"] {
        let tiny = Tiny::image_classifier(case);
        let (before, after) = gain(tiny.lacuna("permute model out --pattern 4:2:5 --calibration images --json"));
        assert!(after > before, "{case}: {before} to {after}");
        assert!(difference(&outputs(&tiny.path("out")).0, &outputs(&tiny.path("model")).0) < 2e-4);
    }
}

#[test]
fn the_same_command_writes_the_same_bytes_on_any_number_of_threads() {
    let tiny = Tiny::new();
    for threads in [1, 3] {
        tiny.lacuna(&format!("permute model out{threads} --pattern 16:2:5 --threads {threads}")).ok();
    }
    assert_eq!(read_files(&tiny.path("out1")), read_files(&tiny.path("out3")));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let tiny = Tiny::pruned();
    refuses(&tiny, "permute sparse out --pattern 16:2:8", FAILED, &["already pruned", "dense checkpoint"]);
    refuses(&tiny, "permute model out --pattern 16:2:128", USAGE, &["16:2:128", "q_proj"]);
    refuses(&tiny, "permute model sparse --pattern 16:2:8", USAGE, &["sparse", "--force"]);
    refuses(&tiny, "permute model model/out --pattern 16:2:8", USAGE, &["different directories"]);
    refuses(&tiny, "permute absent out --pattern 16:2:8", FAILED, &["absent"]);
    tiny.edit_tensors(common::WEIGHTS, |tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("model.something.weight".to_owned(), norm);
    });
    refuses(&tiny, "permute model out --pattern 16:2:8", FAILED, &["model.something.weight", "not known"]);
}

//! `--device cuda`: what it says where there is no GPU, and that evaluation, generation and benchmarks on a machine of
//! lacuna-cuda, here the emulated one, are those of the CPU.

mod common;
#[path = "../../lacuna-cuda/tests/support/emulator.rs"]
mod emulator;

use std::path::Path;
use std::sync::Arc;

use common::{Tiny, refuses};
use emulator::Emulator;
use lacuna::ProgressBar;
use lacuna::bench::{self, bench};
use lacuna::calibrate::Calibration;
use lacuna::device::Device;
use lacuna::eval::{Details, Settings, evaluate};
use lacuna::models::{DecoderModel, TextModel};
use lacuna::modules::Selector;
use lacuna::prune::{Job, Options, Patterns};
use lacuna::recipe::Recipe;
use lacuna_cuda::{Limits, launch};
use lacuna_format::Checkpoint;
use lacuna_model::{Execution, Sampling, family};
use lacuna_prune::Update;
use serde_json::{Value, json};

const LIMITS: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 20, bulk: false };

fn emulated() -> Option<Device> {
    Some(Device::Cuda(Arc::new(Emulator::start(LIMITS)?)))
}

#[test]
fn a_missing_gpu_is_one_line_that_points_to_doctor() {
    let tiny = Tiny::pruned();
    let activations = "--device cuda --activations f32";
    for command in ["run sparse word", "eval sparse --data held.jsonl", "bench sparse"] {
        refuses(&tiny, &format!("{command} {activations}"), 2, &["--activations f32 is for the CPU"]);
    }
    let found = launch::found();
    if found.driver.is_some() {
        eprintln!("SKIPPED: there is a driver, so nothing says that it is missing");
        return;
    }
    let prune = "prune model out --pattern 16:2:8 --calibration text.txt";
    for command in ["run sparse word", "eval sparse --data held.jsonl", "bench sparse", prune] {
        let missing = ["--device cuda", "the NVIDIA driver (libcuda) was not found", "lacuna doctor"];
        refuses(&tiny, &format!("{command} --device cuda"), 1, &missing);
        refuses(&tiny, &format!("{command} --device gpu"), 2, &["--device", "cpu, cuda"]);
    }
}

/// The figure of a model, the finer one where there are two.
fn figure(model: &Path, data: &Path, device: &Device) -> f64 {
    let settings = Settings { device: device.clone(), context: Some(10), ..Settings::default() };
    let score = evaluate(model, data, &settings, &ProgressBar::hidden()).unwrap();
    match score.details {
        Details::Perplexity { nll, .. } => nll,
        Details::Images { cross_entropy, .. } => cross_entropy,
        Details::Sts { pearson } => pearson,
    }
}

#[test]
fn evaluation_finds_what_it_finds_on_the_cpu() {
    let Some(device) = emulated() else { return };
    let decoder = Tiny::pruned();
    let text = Tiny::text_encoder("sentence-bert");
    text.lacuna("prune model sparse --pattern 16:2:5 --recipe magnitude").ok();
    let vision = Tiny::image_classifier("deit-teacher");
    vision.lacuna("prune model sparse --pattern 16:2:5 --recipe magnitude").ok();
    for (tiny, data) in [(&decoder, "held.jsonl"), (&text, "sts.csv"), (&vision, "images")] {
        for model in ["model", "sparse"] {
            let [cpu, gpu] = [&Device::Cpu, &device].map(|device| figure(&tiny.path(model), &tiny.path(data), device));
            // Logits and vectors in f16 are off by up to 0.6 % of themselves (crates/lacuna-cuda/tests/model.rs). A
            // cross-entropy moves by at most twice what the logits do, whose size is about 1, and a cosine by at most twice
            // what the vectors do; means move by less.
            assert!((cpu - gpu).abs() <= 0.012, "{model} on {data}: {cpu} on the CPU, {gpu} on the GPU");
            // And it was not the CPU.
            assert!(cpu.to_bits() != gpu.to_bits(), "{model} on {data}: the same bits");
        }
    }
}

#[test]
fn texts_are_continued_as_on_the_cpu() {
    let Some(device) = emulated() else { return };
    let tiny = Tiny::pruned();
    let checkpoint = Checkpoint::open(&tiny.path("sparse")).unwrap();
    let config = family::decoder(&checkpoint).unwrap();
    let prompts = [vec![5, 9, 4, 21], vec![7, 3]];
    for (temperature, seed) in [(0.0, 0), (0.7, 3)] {
        let sampling = Sampling { temperature, top_k: None, top_p: 1.0, seed };
        let [cpu, gpu] = [&Device::Cpu, &device].map(|device| {
            let model = DecoderModel::load(device, &checkpoint, &config, Execution::EXACT).unwrap();
            let mut told = 0;
            let made = model.generate(&prompts, 7, sampling, |_, _| told += 1).unwrap().tokens;
            assert_eq!(told, made.iter().map(Vec::len).sum::<usize>());
            made
        });
        assert_eq!(cpu, gpu, "temperature {temperature}");
    }
}

#[test]
fn a_layer_that_no_kernel_takes_is_named() {
    let Some(device) = emulated() else { return };
    let tiny = Tiny::new();
    tiny.lacuna("prune model sparse --pattern 8:2:5 --recipe magnitude").ok();
    let checkpoint = Checkpoint::open(&tiny.path("sparse")).unwrap();
    let config = family::decoder(&checkpoint).unwrap();
    let refused = DecoderModel::load(&device, &checkpoint, &config, Execution::EXACT).err().unwrap().to_string();
    let words = ["model.layers.0.self_attn.q_proj: ", "V = 8", "prune with another --pattern"];
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
}

#[test]
fn texts_are_embedded_as_on_the_cpu() {
    let Some(device) = emulated() else { return };
    let tiny = Tiny::text_encoder("sentence-bert");
    let checkpoint = Checkpoint::open(&tiny.path("model")).unwrap();
    let config = family::text_encoder(&checkpoint).unwrap();
    let texts: [&[u32]; 3] = [&[5, 9, 4, 21, 7], &[7], &[3, 30, 2]];
    let [cpu, gpu] = [&Device::Cpu, &device].map(|device| {
        let model = TextModel::load(device, &checkpoint, &config, Execution::EXACT).unwrap();
        model.embed(&texts).unwrap()
    });
    assert_eq!((cpu.len(), gpu.len()), (3, 3));
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let off = norm(&mut cpu.iter().zip(gpu).map(|(a, b)| a - b));
        // As above.
        assert!(off <= 0.006 * norm(&mut cpu.iter().copied()), "{off} off");
    }
}

#[test]
fn pruning_multiplies_on_the_gpu_what_it_multiplies_on_the_cpu() {
    // Sums of f32 in another order: the last bits of the weights, which are f32 too.
    prune_on_both(Update::Lsq, 1e-3);
    // Last bits decide on a mask of ALPS here and there, and on those that follow from it.
    prune_on_both(Update::Alps, 0.1);
}

fn prune_on_both(update: Update, tolerance: f64) {
    let Some(device) = emulated() else { return };
    let tiny = Tiny::new();
    for (output, device) in [("cpu", Device::Cpu), ("gpu", device)] {
        let options = Options {
            patterns: Patterns::Uniform("16:2:5".parse().unwrap()),
            // Masks that no last bit of a sum decides on.
            recipe: Recipe { update, ..Recipe::named("magnitude").unwrap() },
            values: None,
            layers: Selector::default(),
            calibration: Some(Calibration {
                data: tiny.path("text.txt"),
                samples: Some(40),
                length: Some(12),
                seed: 0,
            }),
            device,
            force: false,
        };
        Job::new(&tiny.path("model"), options).unwrap().run(&tiny.path(output), &ProgressBar::hidden()).unwrap();
    }
    let device = |output: &str| {
        let config = tiny.read_json(&format!("{output}/config.json"));
        config["quantization_config"]["recipe"]["calibration"]["device"].clone()
    };
    assert_eq!((device("cpu"), device("gpu")), (Value::Null, json!("cuda")));
    let [cpu, gpu] = ["cpu", "gpu"].map(|model| figure(&tiny.path(model), &tiny.path("held.jsonl"), &Device::Cpu));
    assert!((cpu - gpu).abs() <= tolerance, "{update:?}: {cpu} from the CPU's sums, {gpu} from the GPU's");
    let dense = figure(&tiny.path("model"), &tiny.path("held.jsonl"), &Device::Cpu);
    assert!((dense - cpu).abs() > 1e-2, "pruning changes nothing that this would see");
}

#[test]
fn dense_and_sparse_are_timed_side_by_side() {
    let Some(device) = emulated() else { return };
    let tiny = Tiny::pruned();
    let settings = bench::Settings { device, prompt: 3, decode: 2, batch: 1, rounds: 1, ..bench::Settings::default() };
    let rows = bench(&tiny.path("sparse"), &settings, &ProgressBar::hidden()).unwrap();
    let names: Vec<(&str, &str)> = rows.iter().map(|row| (row.phase, &row.variant[..])).collect();
    assert_eq!(names, [("prefill", "dense"), ("prefill", "sparse"), ("decode", "dense"), ("decode", "sparse")]);
    assert!(rows.iter().all(|row| row.tokens_per_second > 0.0 && row.tokens_per_second.is_finite()));
    let rivals = bench::Settings { engines: vec!["none".to_owned()], ..settings };
    let refused = bench(&tiny.path("sparse"), &rivals, &ProgressBar::hidden()).unwrap_err().to_string();
    assert!(refused.contains("--engine times rivals on the CPU"), "{refused}");
}

//! `lacuna recover`: the model in training is the model that runs, every method keeps the pattern and learns, and a run that is
//! killed ends with the bytes of one that is not.
#![cfg(feature = "train")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{Run, Tiny, USAGE, read_checkpoint, read_files, refuses};
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Config, Execution, Positions, Sample, family};
use lacuna_train::{MicroBatch, Setup, Trainer};

/// Trained for so few steps that it takes a second.
fn recover(tiny: &Tiny, output: &str, flags: &str) -> Run {
    tiny.lacuna(&format!("recover sparse {output} --dense model --data text.txt --batch 4 --length 16 {flags}"))
}

fn golden(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-model/tests").join(folder);
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.join("config.json").is_file());
    cases.sort();
    assert!(cases.len() >= 7, "golden checkpoints are missing");
    cases
}

#[test]
fn every_family_in_training_is_the_family_that_runs() {
    let tiny = Tiny::new();
    for (i, model) in [golden("golden"), golden("golden_encoders")].concat().iter().enumerate() {
        let sparse = tiny.path(&format!("sparse-{i}"));
        let paths = [model, &sparse].map(|path| path.to_str().unwrap().to_owned());
        tiny.lacuna_args(&["prune", &paths[0], &paths[1], "--pattern", "4:2:6", "--recipe", "magnitude"]).ok();
        let checkpoint = Checkpoint::open(&sparse).unwrap();
        let config = family::config(&checkpoint).unwrap();
        let samples: Vec<Sample> = match &config {
            Config::Vision(vision) => {
                let image = |seed: usize| (0..vision.pixels()).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect();
                (0..2).map(|seed| Sample::Pixels(image(seed))).collect()
            }
            Config::Decoder(_) | Config::Text(_) => {
                vec![Sample::Tokens(vec![1, 5, 9, 2, 7, 8, 4]), Sample::Tokens(vec![3, 8])]
            }
        };
        let tokens = samples.iter().flat_map(|sample| match sample {
            Sample::Tokens(tokens) => &tokens[..],
            Sample::Pixels(_) => &[],
        });
        let tokens = tokens.copied().collect();
        let (mut hidden, lengths) = config.embed(&checkpoint, &samples).unwrap();
        let recipe = lacuna::recover::recipe("masked").unwrap();
        let setup = Setup {
            pruned: &checkpoint,
            dense: None,
            config: &config,
            recipe: &recipe,
            steps: 1,
            seed: 0,
            bf16: false,
            recompute: false,
        };
        let batch = MicroBatch::new(hidden.clone(), tokens, lengths.clone(), vec![]);
        let got = Trainer::new(&setup).unwrap().stream(&batch).unwrap();
        for layer in 0..config.blocks().layers {
            let block = Block::load(&checkpoint, config.blocks(), layer, Execution::EXACT).unwrap();
            block.forward(&mut hidden, &Positions::whole(config.blocks(), &lengths), None, &mut |_, _| {});
        }
        let largest = hidden.data().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let far = got.data().iter().zip(hidden.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 2e-5 * (1.0 + largest), "{}: {far} of {largest}", model.display());
    }
}

/// Layers by name with the places of their zeros.
fn zeros(tiny: &Tiny, model: &str) -> Vec<(String, Vec<bool>)> {
    let dense = format!("{model}-zeros");
    tiny.lacuna(&format!("export {model} {dense}")).ok();
    let tensors = read_checkpoint(&tiny.path(&dense)).into_iter().filter(|(name, _)| name.contains("_proj"));
    tensors.map(|(name, tensor)| (name, tensor.f32s().iter().map(|&v| v == 0.0).collect())).collect()
}

const FIXED: [&str; 4] = ["masked", "squarehead", "lora", "blockwise"];
const MOVING: [&str; 8] = ["ste", "sr-ste", "ast", "mdgf", "step", "dsd", "maskllm", "joint"];

#[test]
fn every_method_keeps_the_pattern_and_learns() {
    let tiny = Tiny::pruned();
    let before = zeros(&tiny, "sparse");
    for method in [&FIXED[..], &MOVING, &["lora3", "lora-beside"]].concat() {
        let report = recover(&tiny, method, &format!("--method {method} --steps 40 --json")).json();
        tiny.lacuna(&format!("verify {method}")).ok();
        let (first, last) = (report["first"]["total"].as_f64().unwrap(), report["last"]["total"].as_f64().unwrap());
        // Where weights are dense for a while, what is lost grows when they are pruned.
        let from_dense = ["lora3", "mdgf", "step", "dsd"].contains(&method);
        assert!(last.is_finite() && (from_dense || last < first), "{method}: {first} -> {last}");
        let after = zeros(&tiny, method);
        assert_eq!(before == after, FIXED.contains(&method) || method == "lora-beside", "{method}: places of zeros");
        assert_eq!(report["flipped"].as_f64().unwrap() > 0.0, before != after, "{method}");
        let lines = fs::read_to_string(tiny.path(&format!("{method}/recovery.jsonl"))).unwrap();
        assert_eq!(lines.lines().count(), 40, "{method}");
        assert!(fs::read_to_string(tiny.path(&format!("{method}/recovery.svg"))).unwrap().contains("polyline"));
        let recipe = &tiny.read_json(&format!("{method}/config.json"))["quantization_config"]["recipe"]["recovery"];
        assert_eq!((recipe["method"].as_str(), recipe["steps"].as_u64()), (Some(method), Some(40)));
        assert!(!tiny.path(&format!("{method}.lacuna-training")).exists());
    }
}

#[test]
fn masks_with_windows_are_selected_again() {
    let tiny = Tiny::new();
    tiny.lacuna("prune model sparse --pattern 4:2:6@12 --recipe magnitude --selection assignment").ok();
    for method in ["ste", "lora3", "dsd"] {
        let report = recover(&tiny, method, &format!("--method {method} --steps 40 --json")).json();
        tiny.lacuna(&format!("verify {method}")).ok();
        assert!(report["flipped"].as_f64().unwrap() > 0.0, "{method}");
    }
    let recipe = include_str!("../recipes/recover/ste.json").replacen('{', r#"{"selection": "exact","#, 1);
    fs::write(tiny.path("exact.json"), recipe).unwrap();
    let command = "recover sparse out --dense model --data text.txt --method exact.json --steps 40";
    refuses(&tiny, command, 1, &["selection exact", "4:2:6@12", "choose the selection"]);
    assert!(!tiny.path("out").exists());
}

#[test]
fn an_adapter_stays_beside_its_layer_as_peft_has_it() {
    let tiny = Tiny::pruned();
    recover(&tiny, "out", "--method lora-beside --steps 5").ok();
    let config = tiny.read_json("out/adapter_config.json");
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(16)));
    let adapter = common::read_tensors(&tiny.path("out/adapter_model.safetensors"));
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let [a, b] = ["A", "B"].map(|part| &adapter[&format!("{q}.lora_{part}.weight")]);
    assert_eq!((a.shape[0], b.shape[1]), (16, 16));
    assert!(b.f32s().iter().any(|&v| v != 0.0), "an adapter that learned nothing");
    // The layers themselves stay as they were.
    let weights =
        |dir: &str| read_checkpoint(&tiny.path(dir)).remove("model.layers.0.self_attn.q_proj.values").unwrap();
    assert_eq!(weights("out").data, weights("sparse").data);
}

#[test]
fn only_targets_are_trained() {
    let tiny = Tiny::pruned();
    for (method, recipe) in [
        ("masked", include_str!("../recipes/recover/masked.json")),
        ("ste", include_str!("../recipes/recover/ste.json")),
        ("lora3", include_str!("../recipes/recover/lora3.json")),
        ("lora-beside", include_str!("../recipes/recover/lora-beside.json")),
    ] {
        let recipe = recipe.replacen('{', r#"{"targets": ["q_proj", "mlp.up_proj"],"#, 1);
        fs::write(tiny.path("some.json"), recipe).unwrap();
        recover(&tiny, method, "--method some.json --steps 20").ok();
        tiny.lacuna(&format!("verify {method}")).ok();
        let [before, after] = ["sparse", method].map(|dir| read_checkpoint(&tiny.path(dir)));
        for (name, tensor) in before.iter().filter(|(name, _)| name.ends_with(".values")) {
            let target = name.contains(".q_proj.") || name.contains(".up_proj.");
            assert_eq!(after[name].data != tensor.data, target && method != "lora-beside", "{method}: {name}");
        }
    }
    assert_eq!(tiny.read_json("lora-beside/adapter_config.json")["target_modules"].as_array().unwrap().len(), 2);
}

/// Beside the embeddings a head is stored, so it has values of its own from then on whatever config.json said before.
#[test]
fn embeddings_norm_and_head_are_trained_with_the_blocks() {
    let tiny = Tiny::new();
    let mut config = tiny.read_json("model/config.json");
    config["tie_word_embeddings"] = true.into();
    tiny.write_json("model/config.json", &config);
    tiny.lacuna("prune model sparse --pattern 4:2:6 --recipe magnitude").ok();
    for (method, trained) in [("masked", true), ("lora", false)] {
        recover(&tiny, method, &format!("--method {method} --steps 5")).ok();
        let [before, after] = ["sparse", method].map(|dir| read_checkpoint(&tiny.path(dir)));
        for name in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] {
            assert_eq!(before[name].data != after[name].data, trained, "{method}: {name}");
        }
        let tied = &tiny.read_json(&format!("{method}/config.json"))["tie_word_embeddings"];
        assert_eq!(tied.as_bool(), Some(!trained), "{method}");
        tiny.lacuna(&format!("eval {method} --data held.jsonl")).ok();
    }
}

#[test]
fn a_seed_decides_everything_and_memory_nothing() {
    let tiny = Tiny::pruned();
    let flags = "--method ste --steps 12";
    for (output, more) in [("a", ""), ("b", "--threads 1"), ("c", "--recompute"), ("d", "--seed 1")] {
        recover(&tiny, output, &format!("{flags} {more}")).ok();
    }
    let weights = |dir: &str| read_checkpoint(&tiny.path(dir));
    let of = |dir: &str| weights(dir).into_iter().map(|(name, t)| (name, t.data)).collect::<Vec<_>>();
    assert!(of("a") == of("b") && of("a") == of("c"));
    assert!(of("a") != of("d"));
}

#[test]
fn a_training_killed_again_and_again_ends_with_the_same_bytes() {
    let tiny = Tiny::pruned();
    let flags = "--method sr-ste --steps 60 --save-every 5 --data self --self-samples 8";
    recover(&tiny, "whole", flags).ok();
    let (mut kills, mut patience) = (0, 0.03);
    loop {
        assert!(patience < 300.0, "{kills} kills");
        let command = format!("recover sparse out --dense model --data text.txt --batch 4 --length 16 {flags}");
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_lacuna"));
        run.args(command.split(' ')).current_dir(tiny.root()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = run.spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(patience));
        patience *= 1.2;
        let done = run.try_wait().unwrap().is_some();
        run.kill().unwrap();
        run.wait().unwrap();
        kills += usize::from(!done);
        if tiny.path("out").exists() {
            break;
        }
    }
    if tiny.path("out.lacuna-training").exists() {
        fs::remove_dir_all(tiny.path("out.lacuna-training")).unwrap();
    }
    assert!(kills >= 3, "only {kills} kills");
    let (out, whole) = (read_files(&tiny.path("out")), read_files(&tiny.path("whole")));
    assert_eq!(out.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (name, bytes) in &out {
        assert!(*bytes == whole[name], "{name} differs after {kills} kills");
    }
}

#[test]
fn a_soup_is_the_mean_of_its_trainings() {
    let tiny = Tiny::pruned();
    let flags = "--method masked --steps 6";
    recover(&tiny, "soup", &format!("{flags} --soup 2")).ok();
    recover(&tiny, "a", flags).ok();
    recover(&tiny, "b", &format!("{flags} --seed 1")).ok();
    tiny.lacuna("verify soup").ok();
    let name = "model.layers.1.mlp.up_proj.values";
    let [soup, a, b] = ["soup", "a", "b"].map(|dir| read_checkpoint(&tiny.path(dir)).remove(name).unwrap().f32s());
    assert!(a != b);
    for ((soup, a), b) in soup.iter().zip(&a).zip(&b) {
        assert!((soup - 0.5 * (a + b)).abs() < 1e-6, "{soup} of {a} and {b}");
    }
}

#[test]
fn encoders_learn_from_sentences_and_images() {
    for (tiny, data, method, head) in [
        (Tiny::text_encoder("bert"), "sentences.txt", "text-encoder", None),
        (Tiny::image_classifier("vit"), "images", "image-classifier --bf16", Some(("classifier.weight", false))),
        (Tiny::image_classifier("timm-vit"), "images", "masked", Some(("head.weight", true))),
    ] {
        tiny.lacuna(&format!("prune model sparse --pattern 8:2:5 --calibration {data}")).ok();
        let flags = format!("--dense model --data {data} --batch 4 --steps 60 --method {method}");
        tiny.lacuna(&format!("recover sparse out {flags}")).ok();
        tiny.lacuna("verify out").ok();
        let lines = fs::read_to_string(tiny.path("out/recovery.jsonl")).unwrap();
        let lost = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["total"].as_f64().unwrap();
        let lost: Vec<f64> = lines.lines().map(lost).collect();
        // Crops differ from step to step.
        let (first, last) = (lost[..15].iter().sum::<f64>(), lost[45..].iter().sum::<f64>());
        assert!(last < 0.95 * first, "{method}: {first} -> {last}");
        if let Some((head, trained)) = head {
            let [before, after] = ["sparse", "out"].map(|dir| read_checkpoint(&tiny.path(dir)).remove(head).unwrap());
            assert_eq!(before != after, trained, "{method}: {head}");
        }
    }
}

#[test]
fn bfloat16_learns_too() {
    let tiny = Tiny::pruned();
    let report = recover(&tiny, "out", "--steps 40 --bf16 --json").json();
    let (first, last) = (report["first"]["total"].as_f64().unwrap(), report["last"]["total"].as_f64().unwrap());
    assert!(last < 0.9 * first, "{first} -> {last}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let tiny = Tiny::pruned();
    let common = "--data text.txt --steps 2 --length 16";
    refuses(&tiny, &format!("recover sparse out {common}"), USAGE, &["method masked", "--dense DIR"]);
    refuses(&tiny, &format!("recover model out --dense model {common}"), 1, &["model", "lacuna prune"]);
    refuses(&tiny, &format!("recover sparse out --dense sparse {common}"), 1, &["sparse", "is pruned"]);
    let flags = format!("--dense model {common}");
    refuses(&tiny, &format!("recover sparse out {flags} --method magic"), USAGE, &["magic", "masked", "lora3"]);
    refuses(&tiny, &format!("recover sparse out {flags} --method ste --soup 2"), USAGE, &["--soup", "masks"]);
    refuses(&tiny, &format!("recover sparse out {flags} --lr 0"), USAGE, &["--lr", "positive"]);
    refuses(&tiny, "recover sparse out --dense model --data text.txt --length 999", USAGE, &["--length", "999"]);
    refuses(&tiny, "recover sparse out --dense model --data nowhere.txt", 1, &["nowhere.txt"]);
    tiny.write_json(
        "bad.json",
        &serde_json::json!({ "trains": "weights", "phases": [], "loss": { "kl": 1 }, "optimizer": { "lr": 1 } }),
    );
    refuses(&tiny, &format!("recover sparse out {flags} --method bad.json"), USAGE, &["bad.json", "phases"]);
    let blocks = include_str!("../recipes/recover/blockwise.json").replacen('{', r#"{"ends": true,"#, 1);
    fs::write(tiny.path("blocks.json"), blocks).unwrap();
    refuses(&tiny, &format!("recover sparse out {flags} --method blocks.json"), USAGE, &["blocks.json", "ends"]);
    let targets = include_str!("../recipes/recover/lora.json").replacen('{', r#"{"targets": ["roj"],"#, 1);
    fs::write(tiny.path("targets.json"), targets).unwrap();
    refuses(&tiny, &format!("recover sparse out {flags} --method targets.json"), USAGE, &["targets.json", "roj"]);
    assert_eq!(
        tiny.entries(),
        ["bad.json", "blocks.json", "held.jsonl", "model", "sparse", "targets.json", "text.txt"]
    );
}

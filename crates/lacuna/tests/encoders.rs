//! Encoders through the whole command: tiny golden BERTs and ViTs pruned, verified, evaluated, run, timed and exported.

mod common;

use std::fs;

use common::{CLASSES, FAILED, IMAGES, PAIRS, Tensor, Tiny, USAGE, read_checkpoint, refused, refuses};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

const TEXTS: &str = "eval --data sts.csv";
const PICTURES: &str = "eval --data images --split held-out";
/// Sparse and dense kernels add up in different orders. Rounding of single precision moves what these encoders give by at
/// most 2e-5 (`golden_encoders/make.py`), here it is compared with itself.
const ROUNDING: f64 = 4e-5;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn names(layers: &Value) -> Vec<&str> {
    layers.as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap()).collect()
}

/// All numbers in a value, in order.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        Value::Object(values) => values.values().flat_map(numbers).collect(),
        value => value.as_f64().into_iter().collect(),
    }
}

/// The same shape, and the same numbers but for rounding.
fn same(one: &Value, other: &Value) {
    let (a, b) = (numbers(one), numbers(other));
    assert!(!a.is_empty() && a.len() == b.len(), "{one} and {other}");
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= ROUNDING), "{one} and {other}");
}

/// Prunes `model` to `sparse`, checks it and its dense export, and gives the report. `eval` and `run` lack the model.
fn whole_way(tiny: &Tiny, prune: &str, eval: &str, run: &str) -> Value {
    let report = tiny.lacuna(&format!("prune model sparse --json --force {prune}")).json();
    let verdict = tiny.lacuna("verify sparse --json").json();
    assert_eq!(verdict["violations"], 0);
    assert_eq!(names(&verdict["layers"]), sorted(names(&report["layers"])));
    assert_eq!(tiny.lacuna("inspect sparse --json").json()["model_type"], inspected(tiny)["model_type"]);
    tiny.lacuna("export sparse dense --force").ok();
    let pattern = report["layers"][0]["pattern"].as_str().unwrap();
    // A dense file does not say which layers were pruned, heads are not looked at; nor does it have the orders of rows and
    // the windows of the default recipe.
    if !prune.contains("--include") && prune.contains("--recipe") {
        tiny.lacuna(&format!("verify dense --pattern {pattern}")).ok();
    }
    let of = |command: &str, model: &str| {
        let (verb, flags) = command.split_once(' ').unwrap();
        tiny.lacuna(&format!("{verb} {model} {flags} --json")).json()
    };
    let (sparse, dense) = (of(eval, "sparse"), of(eval, "dense"));
    assert_ne!(sparse, of(eval, "model"), "nothing was pruned");
    same(&sparse, &dense);
    same(&of(run, "sparse")["outputs"], &of(run, "dense")["outputs"]);
    let (original, export) = (read_checkpoint(&tiny.path("model")), read_checkpoint(&tiny.path("dense")));
    assert!(original.keys().eq(export.keys()));
    for (name, tensor) in &export {
        let pruned = names(&report["layers"]).iter().any(|layer| *name == format!("{layer}.weight"));
        assert_eq!((tensor.dtype, &tensor.shape), (original[name].dtype, &original[name].shape), "{name}");
        assert_eq!(tensor != &original[name], pruned, "{name}");
    }
    assert_eq!(tiny.read_json("dense/config.json"), tiny.read_json("model/config.json"));
    report
}

fn sorted(mut names: Vec<&str>) -> Vec<&str> {
    names.sort_unstable();
    names
}

fn inspected(tiny: &Tiny) -> Value {
    tiny.lacuna("inspect model --json").json()
}

#[test]
fn text_encoders_go_the_whole_way() {
    let run = "run --file sentences.txt";
    for case in ["bert", "bert-f16", "bert-mlm", "bert-bf16", "roberta", "roberta-mlm", "xlm-roberta", "sentence-bert"]
    {
        let tiny = Tiny::text_encoder(case);
        // bf16 checkpoints are run with bf16 activations, which a last bit of difference rounds another way.
        let run = if case == "bert-bf16" { "run --activations f32 --file sentences.txt" } else { run };
        let report = whole_way(&tiny, "--pattern 16:2:8 --calibration sts.csv", TEXTS, run);
        assert_eq!(names(&report["layers"]).len(), 12, "{case}");
        assert!(report["calibration_tokens"].as_u64().unwrap() > 2 * 2 * PAIRS as u64, "{case}");
    }
}

#[test]
fn sentences_of_every_kind_of_file_calibrate_alike() {
    let tiny = Tiny::text_encoder("sentence-bert");
    let prune = |flags: &str| {
        let flags = format!("--pattern 8:2:5 {flags}");
        whole_way(&tiny, &flags, TEXTS, "run ba")["layers"].clone()
    };
    let magnitude = prune("--recipe magnitude");
    // All hold the same sentences in the same order; lines without any do not count.
    tiny.edit_bytes("sentences.txt", |bytes| bytes.splice(0..0, *b" \n\n").for_each(drop));
    let [text, lines, pairs] =
        ["sentences.txt", "sentences.jsonl", "sts.csv"].map(|file| prune(&format!("--calibration {file}")));
    assert_eq!((&text, &lines), (&lines, &pairs));
    assert_ne!(magnitude, text);
    let few = prune("--calibration sts.csv --calibration-samples 2 --seed 3");
    assert_ne!(few, pairs);
    let recipe = &tiny.read_json("sparse/config.json")["quantization_config"]["recipe"]["calibration"];
    assert_eq!((&recipe["file"], &recipe["samples"], &recipe["seed"]), (&json!("sts.csv"), &json!(2), &json!(3)));
}

#[test]
fn image_classifiers_go_the_whole_way() {
    for (case, layers) in [
        ("vit", 12),
        ("vit-new-names", 12),
        ("deit", 12),
        ("deit-teacher", 12),
        ("timm-vit", 8),
        ("timm-deit-distilled", 8),
        ("timm-vit-no-qkv-bias-f16", 12),
    ] {
        let tiny = Tiny::image_classifier(case);
        let report = whole_way(&tiny, "--pattern 16:2:8 --calibration images", PICTURES, "run images");
        assert_eq!(names(&report["layers"]).len(), layers, "{case}");
        let magnitude = whole_way(&tiny, "--pattern 8:2:5 --recipe magnitude", PICTURES, "run images/0/a.png");
        assert_eq!(magnitude["calibration_tokens"], 0);
    }
}

#[test]
fn queries_keys_and_values_are_pruned_as_the_checkpoint_has_them() {
    let block = |case: &str, prefix: &str| {
        let tiny = Tiny::image_classifier(case);
        let found = inspected(&tiny)["layers"].clone();
        tiny.lacuna("prune model sparse --pattern 8:2:4 --recipe magnitude").ok();
        let pruned = tiny.lacuna("verify sparse --json").json()["layers"].clone();
        let of = |layers: &Value| -> Vec<String> {
            let own = names(layers).into_iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned);
            own.collect()
        };
        let (mut found, mut pruned) = (of(&found), of(&pruned));
        found.sort();
        pruned.sort();
        assert_eq!(found, pruned, "{case}");
        found
    };
    assert_eq!(block("timm-vit", "blocks.0."), ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"]);
    let apart = ["key", "query", "value"].map(|name| format!("attention.attention.{name}"));
    let rest = ["attention.output.dense", "intermediate.dense", "output.dense"].map(str::to_owned);
    assert_eq!(block("vit", "vit.encoder.layer.0."), [&apart[..], &rest].concat());
}

#[test]
fn heads_are_pruned_only_when_named() {
    for (case, heads) in [
        ("vit", &["classifier"][..]),
        ("deit-teacher", &["cls_classifier", "distillation_classifier"]),
        ("timm-deit-distilled", &["head", "head_dist"]),
    ] {
        let tiny = Tiny::image_classifier(case);
        let layers = inspected(&tiny)["layers"].clone();
        let of = |prunable: bool| -> Vec<&str> {
            let layers = layers.as_array().unwrap().iter().filter(|layer| layer["prunable"] == prunable);
            layers.map(|layer| layer["name"].as_str().unwrap()).collect()
        };
        assert_eq!(of(false), heads, "{case}");
        let include: String = heads.iter().map(|head| format!(" --include {head}")).collect();
        let report =
            whole_way(&tiny, &format!("--pattern 5:2:4 --calibration images{include}"), PICTURES, "run images");
        assert_eq!(names(&report["layers"]), heads, "{case}");
        let found = &tiny.lacuna("inspect sparse --json").json()["layers"];
        let head = found.as_array().unwrap().iter().find(|layer| layer["name"] == heads[0]).unwrap();
        assert_eq!((&head["pattern"], &head["shape"][0]), (&json!("5:2:4"), &json!(CLASSES)));
    }
}

#[test]
fn images_of_the_calibration_are_left_out_of_the_evaluation() {
    let tiny = Tiny::image_classifier("vit");
    let report = tiny.lacuna("prune model sparse --pattern 8:2:5 --calibration images --json").json();
    tiny.lacuna("prune model blind --pattern 8:2:5 --recipe magnitude").ok();
    let recipe = tiny.read_json("sparse/config.json")["quantization_config"]["recipe"]["calibration"].clone();
    assert_eq!((&recipe["split"], &recipe["samples"]), (&json!("calibration"), &json!(IMAGES / 5)));
    // 6 patches and the class token.
    assert_eq!(report["calibration_tokens"], IMAGES / 5 * 7);
    let eval = |flags: &str| tiny.lacuna(&format!("eval --data images --json {flags}")).json();
    let [all, calibration, held_out] =
        ["all", "calibration", "held-out"].map(|split| eval(&format!("sparse --split {split}")));
    for (score, split, samples) in
        [(&all, "all", IMAGES), (&calibration, "calibration", IMAGES / 5), (&held_out, "held-out", IMAGES - IMAGES / 5)]
    {
        assert_eq!(
            keys(score),
            ["metric", "value", "stderr", "samples", "cross_entropy", "cross_entropy_stderr", "split"]
        );
        assert_eq!(
            (&score["metric"], &score["split"], &score["samples"]),
            (&json!("top1"), &json!(split), &json!(samples))
        );
        let share = number(score, "value");
        let stderr = (share * (1.0 - share) / (samples as f64 - 1.0)).sqrt();
        assert!((number(score, "stderr") - stderr).abs() < 1e-12, "{score}");
    }
    // Sums over the parts are sums over all.
    for key in ["value", "cross_entropy"] {
        let sum = |score: &Value| number(score, key) * number(score, "samples");
        assert!((sum(&all) - sum(&calibration) - sum(&held_out)).abs() < 1e-9, "{key}");
    }
    // Held out as soon as one of two models has seen some; all of them where none has.
    assert_eq!(eval("sparse"), held_out);
    let beside = eval("model --baseline sparse");
    assert_eq!((&beside["baseline"], &beside["split"]), (&held_out, &json!("held-out")));
    let gap = number(&beside, "value") - number(&held_out, "value");
    assert!((number(&beside, "gap") - gap).abs() < 1e-12);
    for model in ["model", "blind"] {
        assert_eq!(eval(model)["split"], "all");
    }
    let text = tiny.lacuna("eval sparse --data images --baseline model").ok().stdout;
    assert!(text.contains("images: held-out\n") && text.contains(" top1\n"), "{text}");
}

#[test]
fn accuracy_is_how_often_the_class_of_the_folder_comes_first() {
    for case in ["vit", "timm-deit-distilled"] {
        let tiny = Tiny::image_classifier(case);
        let score = tiny.lacuna("eval model --task classify-images --data images --json").json();
        let shown = tiny.lacuna("run model --task classify images --json").json();
        assert_eq!(keys(&shown), ["outputs", "images_per_second", "preprocessing_seconds"]);
        let outputs = shown["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), IMAGES);
        let (mut right, mut loss) = (0, 0.0);
        for (i, output) in outputs.iter().enumerate() {
            let (class, top) = (i / 3, output["top"].as_array().unwrap());
            assert_eq!(output["file"], format!("images/{class}/{}.png", ["a", "b", "c"][i % 3]));
            let probabilities: Vec<f64> = top.iter().map(|entry| number(entry, "probability")).collect();
            assert!(top.len() == CLASSES && probabilities.is_sorted_by(|a, b| a >= b), "{output}");
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{output}");
            right += usize::from(top[0]["class"] == class);
            loss -= number(top.iter().find(|entry| entry["class"] == class).unwrap(), "probability").ln();
        }
        assert!((number(&score, "value") - right as f64 / IMAGES as f64).abs() < 1e-12, "{case}: {score}");
        assert!((number(&score, "cross_entropy") - loss / IMAGES as f64).abs() < ROUNDING, "{case}: {score}");
    }
    // A label names a class as its number does.
    let tiny = Tiny::image_classifier("vit");
    let eval = || tiny.lacuna("eval model --data images --json").json();
    let by_number = eval();
    (0..CLASSES).for_each(|class| {
        fs::rename(tiny.path(&format!("images/{class}")), tiny.path(&format!("images/LABEL_{class}"))).unwrap();
    });
    assert_eq!(eval(), by_number);
    let text = tiny.lacuna("run model images/LABEL_3/a.png").ok().stdout;
    assert!(text.starts_with("images/LABEL_3/a.png\n") && text.contains(" %  LABEL_"), "{text}");
    assert_eq!(text.lines().count(), 1 + CLASSES, "{text}");
}

#[test]
fn correlation_is_that_of_the_vectors() {
    for case in ["bert", "sentence-bert"] {
        let tiny = Tiny::text_encoder(case);
        let score = tiny.lacuna("eval model --task embed-sts --data sts.csv --json").json();
        assert_eq!(keys(&score), ["metric", "value", "stderr", "samples", "pearson"]);
        assert_eq!((&score["metric"], &score["samples"]), (&json!("spearman"), &json!(PAIRS)));
        let vectors = vectors(&tiny, "run model --task embed --file sts.csv");
        assert_eq!(vectors.len(), 2 * PAIRS);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine =
            |pair: &[Vec<f64>]| dot(&pair[0], &pair[1]) / (dot(&pair[0], &pair[0]) * dot(&pair[1], &pair[1])).sqrt();
        let cosines: Vec<f64> = vectors.chunks(2).map(cosine).collect();
        // The score of pair i is i/2, so its rank is i.
        let ranks: Vec<f64> = (0..PAIRS).map(|i| i as f64).collect();
        let rank = |of: &f64| cosines.iter().filter(|other| *other < of).count() as f64;
        let own_ranks: Vec<f64> = cosines.iter().map(rank).collect();
        let centred = |values: &[f64]| -> Vec<f64> {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.iter().map(|value| value - mean).collect()
        };
        let correlation = |a: &[f64], b: &[f64]| {
            let (a, b) = (centred(a), centred(b));
            dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        };
        assert!((number(&score, "value") - correlation(&own_ranks, &ranks)).abs() < 1e-9, "{case}: {score}");
        assert!((number(&score, "pearson") - correlation(&cosines, &ranks)).abs() < 1e-6, "{case}: {score}");
    }
}

fn vectors(tiny: &Tiny, command: &str) -> Vec<Vec<f64>> {
    let outputs = tiny.lacuna(&format!("{command} --json")).json()["outputs"].clone();
    outputs.as_array().unwrap().iter().map(|output| numbers(&output["vector"])).collect()
}

#[test]
fn vectors_are_written_as_numpy_reads_them() {
    let tiny = Tiny::text_encoder("sentence-bert");
    let wanted = vectors(&tiny, "run model ba be --file sentences.jsonl");
    let shown = tiny.lacuna("run model ba be --file sentences.jsonl --output vectors.npy --json").json();
    assert_eq!(keys(&shown), ["outputs", "texts_per_second", "tokens_per_second"]);
    assert_eq!(shown["outputs"][1], json!({ "text": "be", "tokens": 3 }));
    let bytes = fs::read(tiny.path("vectors.npy")).unwrap();
    // NumPy's format, version 1.0.
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(start % 64, 0);
    let header = std::str::from_utf8(&bytes[10..start]).unwrap();
    let shape = format!("({}, 16)", 2 + 2 * PAIRS);
    assert_eq!(header.trim_end(), format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"));
    assert!(header.ends_with('\n'));
    let values: Vec<f64> =
        bytes[start..].chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    assert_eq!(values.len(), wanted.len() * 16);
    // JSON has the shortest decimals of single precision.
    assert!(values.iter().zip(wanted.concat()).all(|(a, b)| (*a as f32).to_bits() == (b as f32).to_bits()));
    // modules.json asks for vectors of length 1.
    assert!(wanted.iter().all(|vector| (vector.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-5));
    // Nothing else is left, and what was there is replaced.
    tiny.lacuna("run model ba --output vectors.npy").ok();
    assert_eq!(tiny.entries(), ["model", "sentences.jsonl", "sentences.txt", "sts.csv", "vectors.npy"]);
}

#[test]
fn texts_are_cut_where_the_model_or_the_user_says() {
    let tiny = Tiny::text_encoder("sentence-bert");
    tiny.write("long.txt", ["ba be bi"; 7].join(" ").as_bytes());
    let tokens = |flags: &str| {
        tiny.lacuna(&format!("run model --file long.txt --json {flags}")).json()["outputs"][0]["tokens"].clone()
    };
    // max_seq_length of sentence_bert_config.json, which asks for less than the 20 positions.
    assert_eq!(tokens(""), 12);
    assert_eq!(tokens("--max-tokens 5"), 5);
    // The three words that are left, and [CLS] and [SEP] around them.
    assert_eq!(vectors(&tiny, "run model --max-tokens 5 --file long.txt").len(), 1);
    tiny.write("short.txt", b"ba be bi");
    let all = vectors(&tiny, "run model --file short.txt");
    assert_eq!(all, vectors(&tiny, "run model --max-tokens 5 --file long.txt"));
    let text = tiny.lacuna("run model --file short.txt").ok().stdout;
    assert_eq!(serde_json::from_str::<Vec<f64>>(text.trim()).unwrap(), all[0]);
    fs::remove_file(tiny.path("model/sentence_bert_config.json")).unwrap();
    assert_eq!(tokens(""), 20);
    for max in ["2", "21"] {
        refuses(&tiny, &format!("run model ba --max-tokens {max}"), USAGE, &["--max-tokens is", "takes 3 to 20"]);
    }
}

#[test]
fn encoders_are_timed_and_have_kernels() {
    for (tiny, prompt) in [(Tiny::text_encoder("bert"), 9), (Tiny::image_classifier("timm-vit"), 13)] {
        tiny.lacuna("prune model sparse --pattern 16:2:8 --recipe magnitude").ok();
        let timed = tiny.lacuna("bench sparse --prompt-tokens 9 --rounds 2 --batch 3 --threads 1 --json").json();
        assert_eq!((&timed["threads"], &timed["batch"]), (&json!(1), &json!(3)));
        let rows = timed["rows"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| row["variant"].as_str().unwrap()).collect::<Vec<_>>(), ["dense", "sparse"]);
        for row in rows {
            assert_eq!((&row["phase"], &row["engine"]), (&json!("encode"), &json!("lacuna")));
            assert!(
                (number(row, "tokens_per_second") / number(row, "items_per_second") - f64::from(prompt)).abs() < 1e-6
            );
            assert!(number(row, "ratio_to_dense") > 0.0 && row.get("ratio_to_rival").is_none());
        }
        let listed = tiny.lacuna("kernels sparse --json").json()["layers"].clone();
        assert!(
            listed.as_array().unwrap().iter().filter(|layer| layer["pattern"] == "16:2:8").count() >= 8,
            "{listed}"
        );
    }
}

/// Offers f32; puts `logits` where it is asked to.
#[cfg(unix)]
const ENGINE: &str = r#"
    echo '{"engine": "fake", "version": "1", "value_types": ["f32"], "threads": 1}'
    while read -r request; do
        echo "$request" >> requests
        output=$(echo "$request" | sed -n 's/.*"output":"\([^"]*\)".*/\1/p')
        [ -z "$output" ] || cp logits "$output"
        echo '{"seconds": 2e-9, "minimum": 1e-9, "repetitions": 5, "variant": "eager"}'
    done"#;

#[cfg(unix)]
#[test]
fn a_rival_is_timed_only_if_its_answer_is_ours() {
    let tiny = Tiny::image_classifier("vit");
    // Logits that are known: those of the bias.
    let logits = [1.0, -2.0, 0.5, 4.0, 3.0];
    tiny.edit_tensors("model/model.safetensors", |tensors| {
        tensors.insert("classifier.weight".to_owned(), Tensor::of_f32(&[5, 24], Dtype::F32, &[0.0; 5 * 24]));
        tensors.insert("classifier.bias".to_owned(), Tensor::of_f32(&[5], Dtype::F32, &logits));
    });
    tiny.lacuna("prune model sparse --pattern 8:2:5 --recipe magnitude").ok();
    tiny.write("engine.sh", ENGINE.as_bytes());
    let answer = |scale: f32, images: usize| {
        let values = logits.map(|logit| (logit * scale).to_le_bytes()).concat();
        tiny.write("logits", &values.repeat(images));
    };
    let bench = "bench sparse --batch 2 --rounds 2 --json --engine";
    let args = |engine| bench.split(' ').chain([engine]).collect::<Vec<_>>();
    // 1e-3 is the limit for f32.
    answer(1.0005, 2);
    let rows = tiny.lacuna_args(&args("sh engine.sh")).json()["rows"].clone();
    let rival = &rows[2];
    assert_eq!((&rival["engine"], &rival["variant"]), (&json!("fake"), &json!("f32, eager")));
    assert!((number(rival, "difference") - 0.0005).abs() < 1e-6, "{rival}");
    // Two images in 2 ns.
    assert!((number(rival, "items_per_second") / 1e9 - 1.0).abs() < 1e-9, "{rival}");
    assert_eq!(rival["ratio_to_rival"], 1.0);
    assert!(number(&rows[1], "ratio_to_rival") < 1.0 && number(rival, "ratio_to_dense") > 1.0);
    let requests = fs::read_to_string(tiny.path("requests")).unwrap();
    let last: Value = serde_json::from_str(requests.lines().last().unwrap()).unwrap();
    // Once to be checked, then in each round.
    assert_eq!((requests.lines().count(), last), (3, json!({ "value_type": "f32", "batch": 2, "min_seconds": 0 })));
    for (scale, images, words) in [(1.002, 2, ["answers 0.0020 off", "dense export"]), (1.0, 1, ["5 values", "10"])] {
        answer(scale, images);
        refused(&tiny, &tiny.lacuna_args(&args("sh engine.sh")), FAILED, &[&["engine 'fake' "], &words[..]].concat());
    }
    let decoder = Tiny::new();
    refuses(
        &decoder,
        "bench model --prompt-tokens 8 --decode-tokens 4 --engine none",
        USAGE,
        &["--engine with a model is for encoders"],
    );
}

//! `lacuna plan` on tiny checkpoints.

mod common;

use common::{FAILED, Q, Tensor, Tiny, USAGE, WEIGHTS, refused, refuses};
use lacuna::plan::PlanFile;
use lacuna::recipe::Recipe;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

const BY: [&str; 6] = ["diversity", "retained", "sensitivity", "owl", "alpha", "atp"];
const LAYERS: usize = 14;

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} of {value}"))
}

/// Large enough for sparse kernels to be faster whatever else the machine does.
fn large() -> Tiny {
    let tiny = Tiny::new();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    tiny.edit_tensors(WEIGHTS, |tensors| {
        for (name, tensor) in tensors.iter_mut() {
            // Sizes grow eightfold, the vocabulary and the number of blocks stay.
            let grow = |&side: &usize| if side == common::VOCAB { side } else { 8 * side };
            let shape: Vec<usize> = tensor.shape.iter().map(grow).collect();
            let mut value = || if name.contains("norm") { 1.0 } else { rng.random_range(-0.05..0.05) };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
            *tensor = Tensor::of_f32(&shape, Dtype::F32, &values);
        }
    });
    tiny.edit_config(|config| {
        for key in ["hidden_size", "intermediate_size"] {
            config[key] = json!(8 * config[key].as_u64().unwrap());
        }
        config["max_position_embeddings"] = json!(512);
    });
    tiny
}

#[test]
fn every_way_keeps_to_a_density() {
    let tiny = Tiny::new();
    // Outliers for OWL to find.
    tiny.edit_tensors(WEIGHTS, |tensors| (0..90).for_each(|i| tensors.get_mut(Q).unwrap().set_f32(40 * i, 6.0)));
    for by in BY {
        let command = format!("plan model plan.json --density 0.3 --by {by} --calibration text.txt --force --json");
        let out = tiny.lacuna(&command).json();
        assert_eq!(tiny.read_json("plan.json"), out["plan"], "{by}");
        let plan = PlanFile::read(&tiny.path("plan.json")).unwrap();
        assert_eq!((plan.layers.len(), plan.by.as_str(), plan.cases.len()), (LAYERS, by, 0));
        assert!(plan.density <= 0.3, "{by}: {}", plan.density);
        // Nothing is left that could be kept: options lie close together.
        assert!(plan.density > 0.25, "{by}: {}", plan.density);
        assert!(plan.distance.unwrap() > 0.0, "{by}");
        // The density is that of the patterns, in the windows of the recipe.
        let recipe = Recipe::named("default").unwrap();
        let weights = |l: &lacuna::plan::PlannedLayer| (l.shape[0] * l.shape[1]) as f64;
        let kept = plan.layers.iter().map(|layer| {
            let [rows, cols] = layer.shape;
            let grid = layer.pattern.map(|pattern| recipe.widen(pattern).grid(rows, cols).unwrap());
            grid.map_or(weights(layer), |grid| grid.kept() as f64)
        });
        let density = kept.sum::<f64>() / plan.layers.iter().map(weights).sum::<f64>();
        assert!((density - plan.density).abs() < 1e-12, "{by}");
        let uniform = ["diversity", "retained"].contains(&by);
        let mut patterns: Vec<String> = plan.layers.iter().filter_map(|l| Some(l.pattern?.to_string())).collect();
        patterns.sort();
        patterns.dedup();
        assert_eq!(uniform, patterns.len() == 1, "{by}: {patterns:?}");
        assert_eq!(plan.layers.iter().all(|layer| layer.sensitivity.is_some()), by == "sensitivity");
        for candidate in list(&out, "candidates") {
            let chosen = patterns.iter().any(|pattern| candidate["pattern"] == pattern.as_str());
            assert_eq!(chosen, candidate["rejected"].is_null(), "{by}: {candidate}");
            assert_eq!(chosen, candidate["layers"] != 0, "{by}: {candidate}");
        }
    }
}

#[test]
fn the_most_diverse_pattern_that_will_do() {
    let tiny = Tiny::new();
    let out = tiny.lacuna("plan model plan.json --density 0.26 --json").json();
    // By the formula: 16:2:8 is the most diverse of those that keep a quarter, and of all that keep less.
    let reasons: Vec<(&str, &str)> = list(&out, "candidates")
        .iter()
        .filter_map(|c| Some((c["pattern"].as_str()?, c["rejected"].as_str()?)))
        .collect();
    let reason = |pattern: &str| reasons.iter().find(|(p, _)| *p == pattern).map(|(_, reason)| *reason);
    assert_eq!(reason("16:2:8"), None);
    assert!(reason("2:4").unwrap().starts_with("keeps 0.5000 of 0.2600"));
    assert_eq!(reason("64:2:8"), Some("less diverse than 16:2:8"));
    assert_eq!(reason("16:2:10"), Some("less diverse than 16:2:8"));
}

#[test]
fn bytes_are_those_that_prune_writes() {
    let tiny = Tiny::new();
    let pruned = tiny.lacuna("prune model out --pattern 16:2:8 --recipe magnitude --json").json();
    let after = pruned["bytes_after"].as_u64().unwrap();
    let out = tiny
        .lacuna(&format!("plan model plan.json --recipe magnitude --patterns 16:2:8 --bytes {after} --json"))
        .json();
    assert_eq!(out["plan"]["bytes_after"], after);
    assert_eq!(out["plan"]["bytes_before"], pruned["bytes_before"]);
    assert!(list(&out["plan"], "layers").iter().all(|layer| layer["pattern"] == "16:2:8"));
    // With a little more room the smallest layers stay dense.
    let more = after + 20_000;
    let flags = "--recipe magnitude --patterns 16:2:8 --json --force";
    let out = tiny.lacuna(&format!("plan model plan.json --bytes {more} {flags}")).json();
    let dense = list(&out["plan"], "layers").iter().filter(|layer| layer["pattern"] == "dense").count();
    let bytes = out["plan"]["bytes_after"].as_u64().unwrap();
    assert!(dense > 0 && after < bytes && bytes <= more, "{dense} dense layers, {bytes} of {more} bytes");
    let kib = tiny.lacuna("plan model plan.json --bytes 150KiB --json --force").json();
    assert!(kib["plan"]["bytes_after"].as_u64().unwrap() <= 150 * 1024);
}

#[test]
fn a_plan_does_not_depend_on_the_number_of_threads() {
    let tiny = Tiny::new();
    for by in ["sensitivity", "owl", "alpha", "retained"] {
        let plan = |threads: usize| {
            let flags = format!("--by {by} --density 0.35 --calibration text.txt --threads {threads}");
            tiny.lacuna(&format!("plan model plan.json {flags} --json --force")).json()["plan"].clone()
        };
        let (one, mut two) = (plan(1), plan(2));
        assert_eq!((&one["threads"], &two["threads"]), (&json!(1), &json!(2)));
        two["threads"] = json!(1);
        assert_eq!(one, two, "{by}");
    }
}

#[test]
fn a_layer_that_does_not_matter_is_pruned_most() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| {
        // Queries of 0 make attention an average, whatever keys are: neither matters.
        let tensor = tensors.get_mut(Q).unwrap();
        *tensor = Tensor::of_f32(&tensor.shape.clone(), Dtype::F32, &[0.0; 64 * 64]);
    });
    let flags = "--by sensitivity --density 0.4 --calibration text.txt";
    let out = tiny.lacuna(&format!("plan model plan.json {flags} --json")).json();
    for layer in list(&out["plan"], "layers") {
        let name = layer["name"].as_str().unwrap();
        let dead = ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"].iter().any(|n| name.ends_with(n));
        assert_eq!(number(layer, "sensitivity") == 0.0, dead || layer["pattern"] == "dense", "{layer}");
        if dead {
            assert_eq!(layer["pattern"], "64:2:32", "{layer}");
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "kernels with debug assertions gain too little: cargo test --release")]
fn a_speedup_is_measured_and_reached() {
    let tiny = large();
    let flags = "--speedup 1.2 --phase prefill --batch 1,2 --patterns 64:2:8,64:2:16,64:2:32";
    let out = tiny.lacuna(&format!("plan model plan.json {flags} --json")).json();
    let plan = PlanFile::read(&tiny.path("plan.json")).unwrap();
    assert_eq!(
        plan.cases.iter().map(|case| (case.case.batch, case.case.tokens)).collect::<Vec<_>>(),
        [(1, 256), (2, 256)]
    );
    for case in &plan.cases {
        assert!(case.measured_speedup >= 1.19 && case.dense_seconds > 0.0, "{case:?}");
    }
    for layer in &plan.layers {
        assert_eq!((layer.dense_seconds.len(), layer.seconds.len()), (2, 2));
        if layer.pattern.is_none() {
            assert_eq!(layer.dense_seconds, layer.seconds);
        }
    }
    for candidate in list(&out, "candidates") {
        assert_eq!(list(candidate, "speedups").len(), 2);
    }
    let report = tiny.lacuna("prune model out --plan plan.json --recipe magnitude --json").json();
    let planned = plan.layers.iter().filter_map(|layer| Some((layer.name.clone(), layer.pattern?.to_string())));
    let pruned = list(&report, "layers").iter().map(|l| (text(l, "name"), text(l, "pattern")));
    assert!(pruned.eq(planned));
    assert_eq!(list(&report, "reached").len(), 2);
    for case in list(&report, "reached") {
        assert!((number(case, "target") - 1.2).abs() < 1e-12 && number(case, "speedup") > 1.0, "{case}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "kernels with debug assertions gain too little: cargo test --release")]
fn a_speedup_is_reached_by_layers_that_matter_least() {
    let tiny = large();
    let flags = "--speedup 1.2 --by sensitivity --calibration text.txt --phase prefill --patterns 64:2:8,64:2:16";
    let out = tiny.lacuna(&format!("plan model plan.json {flags} --json")).json();
    let plan = PlanFile::read(&tiny.path("plan.json")).unwrap();
    assert!(plan.cases.iter().all(|case| case.measured_speedup >= 1.19), "{out}");
    assert!(plan.layers.iter().all(|layer| layer.sensitivities.len() == 2), "{out}");
    // As fast again from what was measured, another target too.
    let again = "--speedup 1.3 --by sensitivity --measured plan.json --phase prefill --patterns 64:2:8,64:2:16";
    let faster = tiny.lacuna(&format!("plan model faster.json {again} --json")).json();
    assert!(number(&list(&faster["plan"], "cases")[0], "measured_speedup") >= 1.29, "{faster}");
}

#[test]
fn a_plan_is_carried_out_layer_by_layer() {
    let tiny = Tiny::new();
    let flags = "--by sensitivity --patterns 2:4,16:2:8,16:2:16 --density 0.3 --calibration text.txt";
    tiny.lacuna(&format!("plan model plan.json {flags}")).ok();
    let mut plan = tiny.read_json("plan.json");
    plan["layers"][0]["pattern"] = "16:2:8".into();
    plan["layers"][1]["pattern"] = "2:4".into();
    plan["layers"][2]["pattern"] = "dense".into();
    tiny.write("plan.json", plan.to_string().as_bytes());
    tiny.lacuna("prune model out --plan plan.json --calibration text.txt").ok();
    let verdict = tiny.lacuna("verify out --json").json();
    assert_eq!(verdict["violations"], 0);
    let dense = text(&plan["layers"][2], "name");
    assert!(list(&verdict, "dense_layers").iter().any(|name| *name == *dense), "{verdict}");
    let of = |i: usize| {
        let name = text(&plan["layers"][i], "name");
        text(list(&verdict, "layers").iter().find(|layer| text(layer, "name") == name).unwrap(), "pattern")
    };
    // The recipe widens the window of all but plain 2:4.
    assert!(of(0).starts_with("16:2:8@") && of(1) == "2:4", "{} {}", of(0), of(1));
    plan["layers"][0]["name"] = "model.layers.9.mlp".into();
    tiny.write("plan.json", plan.to_string().as_bytes());
    let refused = tiny.lacuna("prune model out --force --plan plan.json --calibration text.txt");
    assert!(refused.stderr.contains("model.layers.9.mlp"), "{}", refused.stderr);
}

#[test]
fn values_and_recipe_of_a_plan_are_those_of_the_prune() {
    let tiny = Tiny::new();
    // The default recipe stores an order of the rows too.
    for (recipe, calibration) in [("magnitude", ""), ("default", "--calibration text.txt")] {
        let flags = format!("--patterns 16:2:8 --values int8 --scale-group 64 --recipe {recipe} --force --json");
        let plan = tiny.lacuna(&format!("plan model plan.json --density 0.26 {flags}")).json()["plan"].clone();
        assert_eq!(
            (&plan["values"], &plan["scale_group"], &plan["recipe"]),
            (&json!("int8"), &json!(64), &json!(recipe))
        );
        let pruned = tiny.lacuna(&format!("prune model out --plan plan.json {calibration} --force --json")).json();
        assert_eq!(pruned["bytes_after"], plan["bytes_after"], "{recipe}");
        assert!(list(&pruned, "layers").iter().all(|layer| number(layer, "quantization_error") > 0.0), "{recipe}");
    }
    // Integers beside dense integers of the same type.
    let flags = "--speedup 1.2 --phase prefill --patterns 64:2:16,64:2:32 --values int8 --json";
    let plan = large().lacuna(&format!("plan model plan.json {flags}")).json()["plan"].clone();
    assert!(number(&list(&plan, "cases")[0], "measured_speedup") >= 1.19, "{plan}");
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

#[test]
fn what_was_measured_serves_for_other_targets() {
    let tiny = Tiny::new();
    let by = "--by sensitivity --patterns 2:4,16:2:8,16:2:16 --json";
    tiny.lacuna(&format!("plan model first.json --density 0.4 --calibration text.txt {by}")).ok();
    let anew = tiny.lacuna(&format!("plan model anew.json --density 0.2 --calibration text.txt {by}")).json();
    let again = tiny.lacuna(&format!("plan model again.json --density 0.2 --measured first.json {by}")).json();
    assert_eq!(again["plan"]["layers"], anew["plan"]["layers"]);
    let own = |layer: &Value| layer["sensitivities"][text(layer, "pattern")] == layer["sensitivity"];
    assert!(list(&again["plan"], "layers").iter().filter(|layer| layer["pattern"] != "dense").all(own));
    // Without samples there is nothing to measure the whole by.
    assert!(again["plan"]["distance"].is_null() && number(&anew["plan"], "distance") > 0.0);

    let command = "plan model out --density 0.3 --measured first.json";
    let wrong = [
        ("", "--measured is for --by sensitivity, not diversity"),
        ("--by sensitivity --recipe high", "pass --recipe default"),
        ("--by sensitivity --values int8", "values of type f32, not int8"),
    ];
    for (flags, word) in wrong {
        refuses(&tiny, &format!("{command} {flags}"), USAGE, &[word]);
    }
    let words = ["no sensitivity of", "q_proj", "under 64:2:8"];
    refuses(&tiny, &format!("{command} --by sensitivity --patterns 64:2:8"), FAILED, &words);
}

#[test]
fn encoders_are_planned_by_their_answers() {
    for (tiny, data) in [(Tiny::text_encoder("bert"), "sts.csv"), (Tiny::image_classifier("vit"), "images")] {
        let flags = format!("--by sensitivity --patterns 2:4,16:2:8 --density 0.4 --calibration {data}");
        let plan = &tiny.lacuna(&format!("plan model plan.json {flags} --json")).json()["plan"];
        assert!(number(plan, "density") <= 0.4 && number(plan, "distance") > 0.0, "{plan}");
        assert!(list(plan, "layers").iter().any(|layer| number(layer, "sensitivity") > 0.0));
    }
}

#[test]
fn explaining_ranks_figures() {
    let tiny = Tiny::new();
    let command = "plan model --explain --patterns 2:4,16:2:5,16:2:8,64:2:16 --calibration text.txt";
    let out = tiny.lacuna(&format!("{command} --json")).json();
    let patterns: Vec<&str> = list(&out, "patterns").iter().map(|p| p["pattern"].as_str().unwrap()).collect();
    assert_eq!(patterns, ["2:4", "16:2:5", "16:2:8", "64:2:16"]);
    for pair in list(&out, "patterns").windows(2) {
        for key in ["density", "diversity", "retained_score"] {
            assert!(number(&pair[0], key) > number(&pair[1], key), "{key}: {pair:?}");
        }
        for key in ["layer_error", "sensitivity"] {
            assert!(number(&pair[0], key) < number(&pair[1], key), "{key}: {pair:?}");
        }
    }
    let distances: Vec<f64> = list(&out, "patterns").iter().map(|p| number(p, "distance")).collect();
    assert!(distances.iter().all(|&d| d > 0.0));
    let predictors = list(&out, "predictors");
    assert_eq!(predictors.len(), 5);
    // All figures rank these alike, so all correlate alike with quality.
    for predictor in predictors {
        assert_eq!(
            (&predictor["spearman"], &predictor["kendall"]),
            (&predictors[0]["spearman"], &predictors[0]["kendall"])
        );
    }
    let text = tiny.lacuna(command).ok().stdout;
    assert!(text.contains("Spearman") && text.contains("mask diversity"), "{text}");
}

// What must be refused.

#[test]
fn targets_that_are_none_or_two() {
    let wrong = [
        ("plan model out", "--speedup"),
        ("plan model out --speedup 1.5 --density 0.5", "--density"),
        ("plan model out --bytes 1M --density 0.5", "--density"),
        ("plan model out --speedup 1", "more than 1"),
        ("plan model out --speedup nan", "more than 1"),
        ("plan model out --density 0", "more than 0"),
        ("plan model out --density 1", "less than 1"),
        ("plan model out --bytes 12XB", "number of bytes"),
        ("plan model out --bytes -1", "--bytes"),
        ("plan model out --speedup 1.5 --batch 0", "--batch"),
        ("plan model out --speedup 1.5 --batch 1,0", "--batch"),
        ("plan model out --density 0.5 --batch 2", "--batch"),
        ("plan model --density 0.5", "OUTPUT"),
        ("plan model --explain", "--calibration"),
        ("plan model out --explain --calibration text.txt", "--explain"),
        ("plan model out --density 0.5 --by best", "--by"),
        ("plan model out --speedup 1.5 --phase encode", "--phase encode"),
        ("plan model out --speedup 1.5 --prompt-tokens 60", "--prompt-tokens asks for 60; this model takes 48"),
        ("plan model out --density 0.5 --include *.qq_proj", "lacuna inspect"),
        ("plan model out --density 0.5 --include lm_head", "lm_head lies behind the blocks"),
    ];
    for (command, word) in wrong {
        refuses(&Tiny::new(), command, USAGE, &[word]);
    }
    for by in ["retained", "sensitivity", "owl"] {
        let words = ["--calibration", by];
        refuses(&Tiny::new(), &format!("plan model out --density 0.5 --by {by}"), USAGE, &words);
    }
}

#[test]
fn targets_out_of_reach() {
    let tiny = Tiny::new();
    let command = "plan model out --patterns 2:4 --density 0.3";
    refuses(&tiny, command, USAGE, &["--density 0.3 is out of reach", "the least is 0.5000"]);
    let command = "plan model out --bytes 1000 --by sensitivity --calibration text.txt --patterns 16:2:8";
    refuses(&tiny, command, USAGE, &["--bytes 1000 is out of reach", "the least is", "bytes"]);
    let command = "plan model out --speedup 500 --patterns 64:2:16";
    refuses(&tiny, command, USAGE, &["--speedup 500 is out of reach", "the largest measured", "decode, batch 1"]);
}

#[test]
fn models_and_outputs_that_will_not_do() {
    let tiny = Tiny::pruned();
    refuses(&tiny, "plan sparse out --density 0.3", FAILED, &["sparse: already pruned"]);
    refuses(&tiny, "plan model held.jsonl --density 0.3", USAGE, &["held.jsonl already exists", "--force"]);
    refuses(&tiny, "plan model missing/out --density 0.3", FAILED, &["missing/out"]);
    let run = tiny.lacuna("plan model out --density 0.3 --by retained --calibration text.txt --calibration-samples 1");
    refused(&tiny, &run, FAILED, &["single sample"]);
}

//! Recipes by name, by effort and setting by setting: what comes out obeys its pattern and says how it was made.

mod common;

use common::Tiny;
use serde_json::{Value, json};

const NAMES: [&str; 10] =
    ["low", "default", "high", "magnitude", "wanda", "ria", "paper", "sparsegpt", "alps", "dsnot"];

/// Prunes, verifies, and gives the recipe as the output has it.
fn saved(tiny: &Tiny, pattern: &str, flags: &str) -> Value {
    let prune = format!("prune model out --pattern {pattern} --calibration text.txt --force --json {flags}");
    let report = tiny.lacuna(&prune).json();
    assert_eq!(report["layers"].as_array().unwrap().len(), 14, "{flags}");
    let verdict = tiny.lacuna("verify out --json").json();
    assert_eq!(verdict["violations"], 0, "{pattern} {flags}");
    let mut recipe = tiny.read_json("out/config.json")["quantization_config"]["recipe"].clone();
    assert!(recipe["calibration"]["tokens"].as_u64().unwrap() > 0, "{recipe}");
    for other in ["calibration", "values"] {
        recipe.as_object_mut().unwrap().remove(other);
    }
    recipe
}

#[test]
fn every_recipe_keeps_to_the_pattern_and_is_saved() {
    let tiny = Tiny::new();
    let recipes = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    for name in NAMES {
        let file = std::fs::read_to_string(recipes.join(format!("{name}.json"))).unwrap();
        let file: Value = serde_json::from_str(&file).unwrap();
        for pattern in ["16:2:8", "2:4"] {
            let saved = saved(&tiny, pattern, &format!("--recipe {name}"));
            for (setting, value) in file.as_object().unwrap() {
                assert_eq!(saved[setting], *value, "{name}: {setting}");
            }
        }
    }
}

#[test]
fn efforts_are_recipes() {
    let tiny = Tiny::new();
    for name in ["low", "default", "high"] {
        let [effort, recipe] = ["effort", "recipe"].map(|flag| saved(&tiny, "16:2:5", &format!("--{flag} {name}")));
        assert_eq!(effort, recipe);
    }
    assert_eq!(saved(&tiny, "16:2:5", ""), saved(&tiny, "16:2:5", "--effort default"));
}

#[test]
fn a_flag_changes_its_setting_and_no_other() {
    let tiny = Tiny::new();
    let flags = [
        ("--criterion wanda", "criterion", json!("wanda")),
        ("--ria-parts row --ria-exponent 0.25", "criterion", json!({ "ria": { "parts": "row", "exponent": 0.25 } })),
        ("--permute rows", "permute", json!("rows")),
        ("--permute paper", "permute", json!("paper")),
        ("--selection exact", "selection", json!("exact")),
        ("--selection top", "selection", json!("top")),
        ("--selection assignment", "selection", json!("assignment")),
        ("--update lsq", "update", json!("lsq")),
        ("--update sparsegpt", "update", json!("sparsegpt")),
        ("--update alps", "update", json!("alps")),
        ("--update dsnot", "update", json!("dsnot")),
        ("--aim 0.25", "aim", json!(0.25)),
        ("--order layer", "order", json!("layer")),
    ];
    let plain = saved(&tiny, "16:2:8", "--recipe ria");
    for (flag, setting, value) in flags {
        let mut changed = saved(&tiny, "16:2:8", &format!("--recipe ria {flag}"));
        assert_ne!(plain[setting], value, "{flag}");
        assert_eq!(changed[setting], value, "{flag}");
        changed[setting] = plain[setting].clone();
        let without_null = |recipe: &Value| -> Vec<(String, Value)> {
            let settings = recipe.as_object().unwrap().clone().into_iter();
            settings.filter(|(_, value)| !value.is_null()).collect()
        };
        assert_eq!(without_null(&changed), without_null(&plain), "{flag}");
    }
    assert_eq!(saved(&tiny, "16:2:8", "--recipe low --window 32")["window"], 32);
}

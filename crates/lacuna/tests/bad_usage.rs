//! Every request that `lacuna` must refuse: wrong flags, checkpoints of the wrong kind, outputs not to be written.

mod common;

use common::{FAILED, PRUNE, Tiny, USAGE, WEIGHTS, refused, refuses};
use serde_json::json;

// Flags.

#[test]
fn pattern_syntax() {
    let no_numbers = ["64", "64:8", "2:8", "a:2:8", "64:2:8:1", "64:2:", "-1:2:8", "64:2:99999999999999999999"];
    let out_of_range = ["64:4:8", "0:2:8", "64:2:3", "1:2:99999"];
    for pattern in no_numbers.iter().chain(&out_of_range) {
        for command in ["prune model out", "verify model"] {
            refuses(&Tiny::new(), &format!("{command} --pattern={pattern}"), USAGE, &["--pattern", pattern, "M"]);
        }
    }
}

#[test]
fn pattern_that_cannot_fit() {
    let command = "prune model out --pattern 16:2:65 --recipe magnitude";
    refuses(&Tiny::new(), command, USAGE, &["layer model.layers.0.self_attn.q_proj:", "16:2:65", "smaller M"]);
}

#[test]
fn module_pattern_that_matches_nothing() {
    for flag in ["--include", "--exclude"] {
        for pattern in ["*.qq_proj", "re:layers\\.7\\."] {
            refuses(&Tiny::new(), &format!("{PRUNE} {flag} {pattern}"), USAGE, &[pattern, "lacuna inspect"]);
        }
    }
    refuses(&Tiny::new(), &format!("{PRUNE} --exclude *"), USAGE, &["leave no layer to prune"]);
}

#[test]
fn recipes_that_are_none() {
    let tiny = Tiny::new();
    let prune = "prune model out --pattern 16:2:8 --calibration text.txt";
    let refuse = |flags: &str, words: &[&str]| refuses(&tiny, &format!("{prune} {flags}"), USAGE, words);
    refuse("--recipe best", &["recipe best", "default"]);
    refuse("--recipe ria --effort high", &["--recipe", "--effort"]);
    refuse("--aim 1.5", &["aim is 1.5", "0 to 1"]);
    refuse("--recipe wanda --ria-exponent 1", &["--ria-exponent", "wanda"]);
    refuse("--permute paper", &["permute paper", "window"]);
    refuse("--max-memory 1M", &["--max-memory", "--calibration-samples"]);
    for (recipe, words) in [
        ("{", &["recipe.json"][..]),
        (r#"{"criterion": "wanda", "selection": "exact", "update": "luck"}"#, &["recipe.json", "luck"]),
        (r#"{"criterion": "wanda", "selection": "exact", "update": "lsq", "luck": 1}"#, &["recipe.json", "luck"]),
        (
            r#"{"criterion": "wanda", "selection": "exact", "update": "lsq", "window": 0}"#,
            &["recipe.json", "window is 0"],
        ),
    ] {
        tiny.write("recipe.json", recipe.as_bytes());
        refuse(&format!("--recipe {}", tiny.path("recipe.json").display()), words);
    }
    refuses(&tiny, "prune model out --calibration text.txt", USAGE, &["--pattern"]);
    refuses(&tiny, "prune model out --plan nowhere.json --calibration text.txt", FAILED, &["nowhere.json"]);
}

#[test]
fn module_pattern_that_is_none() {
    for pattern in ["re:(", "re:(a{999}){999}", "a[", "{a"] {
        refuses(&Tiny::new(), &format!("{PRUNE} --include {pattern}"), USAGE, &[pattern, "not a module pattern"]);
    }
}

#[test]
fn numbers_out_of_range() {
    let wrong = [
        ("prune model out --pattern 2:4 --ria-exponent nan --calibration text.txt", "--ria-exponent"),
        ("prune model out --pattern 2:4 --calibration text.txt --calibration-length 65", "--calibration-length"),
        ("prune model out --pattern 2:4 --calibration text.txt --calibration-length 1", "--calibration-length"),
        ("prune model out --pattern 2:4 --calibration text.txt --calibration-samples 0", "--calibration-samples"),
        ("prune model out --pattern 2:4 --threads 0", "--threads"),
        ("eval model --data held.jsonl --context 65", "--context is 65; this model takes 2 to 64"),
        ("eval model --data held.jsonl --context 1", "--context is 1"),
        ("eval model --data text.txt --stride 65", "--stride is 65"),
        ("eval model --data text.txt --stride 0", "--stride is 0"),
        ("bench model --prompt-tokens 60 --decode-tokens 5", "--prompt-tokens"),
        ("bench model --batch 0", "--batch"),
        ("run model ba --temperature=-1", "--temperature"),
        ("run model ba --top-p 0", "--top-p"),
        ("run model ba --top-k 0", "--top-k"),
    ];
    for (command, word) in wrong {
        refuses(&Tiny::new(), command, USAGE, &[word]);
    }
}

#[test]
fn commands_that_lack_something_or_have_too_much() {
    let wrong = [
        ("prune model out --recipe magnitude", "--pattern"),
        ("prune model --pattern 2:4", "OUTPUT"),
        ("prune model out --pattern 2:4 --criterion best", "--criterion"),
        ("prune model out --pattern 2:4 --fast", "--fast"),
        ("eval model", "--data"),
        ("shrink model", "shrink"),
    ];
    for (command, word) in wrong {
        refuses(&Tiny::new(), command, USAGE, &[word, "--help"]);
    }
}

#[test]
fn scale_groups_without_integers_or_of_no_such_size() {
    for values in ["", "--values f32", "--values f16", "--values bf16"] {
        let command = format!("{PRUNE} {values} --scale-group 64");
        refuses(&Tiny::new(), &command, USAGE, &["--scale-group is for integers", "--values int8 or int4"]);
    }
    for group in ["0", "16", "33", "256", "-32", "64.0", ""] {
        let command = format!("{PRUNE} --values int8 --scale-group={group}");
        refuses(&Tiny::new(), &command, USAGE, &["--scale-group"]);
    }
    refuses(&Tiny::new(), &format!("{PRUNE} --values int2"), USAGE, &["int2", "--values"]);
}

#[test]
fn prompts_that_the_model_cannot_take() {
    let tiny = Tiny::new();
    let long = ["ba"; 64].join(" ");
    refused(&tiny, &tiny.lacuna_args(&["run", "model", &long]), USAGE, &["prompt", "65 tokens", "64"]);
    tiny.write_json("model/tokenizer_config.json", &json!({ "add_bos_token": false }));
    refused(&tiny, &tiny.lacuna_args(&["run", "model", ""]), USAGE, &["prompt is empty"]);
}

// Checkpoints of the wrong kind.

#[test]
fn pruning_what_is_pruned() {
    let command = "prune sparse out --pattern 2:4 --recipe magnitude";
    refuses(&Tiny::pruned(), command, FAILED, &["sparse: already pruned", "start from the dense"]);
}

#[test]
fn verifying_and_exporting_what_is_dense() {
    refuses(&Tiny::new(), "verify model", FAILED, &["model: not a pruned checkpoint", "prune it first"]);
    refuses(&Tiny::new(), "export model out", FAILED, &["model: not a pruned checkpoint"]);
    refuses(&Tiny::pruned(), "verify sparse --pattern 2:4", USAGE, &["sparse: ", "leave --pattern out"]);
}

#[test]
fn exporting_a_layer_that_lost_its_values() {
    let tiny = Tiny::pruned();
    let shard = "sparse/model-00001-of-00003.safetensors";
    tiny.edit_tensors(shard, |tensors| drop(tensors.remove("model.layers.0.self_attn.q_proj.values")));
    tiny.write_index("sparse");
    refuses(&tiny, "export sparse out", FAILED, &["q_proj.values: missing"]);
}

// Outputs.

#[test]
fn output_exists() {
    let tiny = Tiny::pruned();
    for command in ["prune model held.jsonl --pattern 2:4 --recipe magnitude", "export sparse held.jsonl"] {
        let before = tiny.entries();
        refuses(&tiny, command, USAGE, &["held.jsonl already exists", "another output", "--force"]);
        assert_eq!(tiny.entries(), before);
    }
}

#[test]
fn force_replaces_nothing_but_a_checkpoint() {
    let tiny = Tiny::pruned();
    std::fs::create_dir(tiny.path("home")).unwrap();
    tiny.write("home/letter.txt", b"dear");
    let command = "prune model home --pattern 2:4 --recipe magnitude --force";
    let run = tiny.lacuna(command);
    refused(&tiny, &run, USAGE, &["home is no checkpoint", "remove it"]);
    assert_eq!(std::fs::read(tiny.path("home/letter.txt")).unwrap(), b"dear");
}

#[test]
fn output_is_the_input_or_inside_it_or_around_it() {
    let tiny = Tiny::pruned();
    let absolute = tiny.path("model/out");
    let absolute = absolute.to_str().unwrap();
    let before = (tiny.entries(), common::read_files(&tiny.path("model")));
    for output in ["model --force", "./model/../model --force", "model/out", "./model/a/b", absolute, ". --force"] {
        let command = format!("prune model {output} --pattern 2:4 --recipe magnitude");
        refuses(&tiny, &command, USAGE, &["output ", "model", "must be different directories"]);
    }
    refuses(&tiny, "export sparse sparse/out", USAGE, &["must be different directories"]);
    assert_eq!((tiny.entries(), common::read_files(&tiny.path("model"))), before);
}

#[cfg(unix)]
#[test]
fn output_is_the_input_by_another_name() {
    let tiny = Tiny::new();
    std::os::unix::fs::symlink(tiny.path("model"), tiny.path("alias")).unwrap();
    let command = "prune model alias/out --pattern 2:4 --recipe magnitude";
    refuses(&tiny, command, USAGE, &["must be different directories"]);
}

#[test]
fn unfinished_output_of_other_settings() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| {
        tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().set_f32(0, f32::NAN);
    });
    refuses(&tiny, PRUNE, FAILED, &["up_proj"]);
    let other = "prune model out --pattern 16:2:5 --recipe magnitude";
    refuses(&tiny, other, FAILED, &["out.lacuna-partial: unfinished output", "other settings", "--force"]);
    refuses(&tiny, &format!("{other} --force"), FAILED, &["up_proj"]);
}

#[test]
fn output_that_another_run_is_writing() {
    let tiny = Tiny::new();
    let other = std::fs::File::create(tiny.path("out.lacuna-partial.lock")).unwrap();
    other.lock().unwrap();
    std::fs::create_dir(tiny.path("out.lacuna-partial")).unwrap();
    tiny.write("out.lacuna-partial/shard", b"half");
    for flags in ["", "--force"] {
        refuses(&tiny, &format!("{PRUNE} {flags}"), FAILED, &["out: another lacuna is writing", "wait"]);
        assert_eq!(std::fs::read(tiny.path("out.lacuna-partial/shard")).unwrap(), b"half");
    }
    drop(other);
    tiny.lacuna(PRUNE).ok();
}

#[cfg(unix)]
#[test]
fn disk_full() {
    for (command, blocks) in [(PRUNE, 2), (PRUNE, 20), ("export sparse out", 20)] {
        let tiny = Tiny::pruned();
        let run = tiny.lacuna_on_a_full_disk(blocks, command);
        refused(&tiny, &run, FAILED, &["out.lacuna-partial", "free some space", "again"]);
        assert_eq!(run.stderr.matches("os error").count(), 1, "says it twice: {}", run.stderr);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written() {
    for (output, word) in [("/proc/lacuna", "check the path"), ("/sys/lacuna", "choose another place")] {
        let command = format!("prune model {output} --pattern 2:4 --recipe magnitude");
        refuses(&Tiny::new(), &command, FAILED, &[output, word]);
    }
    refuses(&Tiny::new(), "prune model held.jsonl/out --pattern 2:4 --recipe magnitude", FAILED, &["held.jsonl"]);
}

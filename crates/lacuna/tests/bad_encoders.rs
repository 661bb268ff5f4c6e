//! What the command must refuse of encoders: architectures and modules that it does not run, images and pairs of sentences
//! that are none, data and tasks of another kind of model.

mod common;

use std::fs;

use common::{FAILED, Tensor, Tiny, USAGE, refuses};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

const PRUNE: &str = "prune model out --pattern 8:2:4";
const EVAL_TEXT: &str = "eval model --data sts.csv";
const EVAL_IMAGES: &str = "eval model --data images";
const WEIGHTS: &str = "model/model.safetensors";

// Architectures.

/// Whatever is done with the checkpoint.
fn all_refuse(tiny: &Tiny, words: &[&str]) {
    for command in [&format!("{PRUNE} --recipe magnitude"), "inspect model", EVAL_TEXT, "run model ba", "bench model"] {
        refuses(tiny, command, FAILED, words);
    }
}

fn config(tiny: Tiny, key: &str, value: &Value, words: &[&str]) -> Tiny {
    tiny.edit_config(|config| config[key] = value.clone());
    all_refuse(&tiny, &[&["model/config.json: "], words].concat());
    tiny
}

#[test]
fn other_architectures() {
    let swin = ["model_type swin is not supported", "supported are llama, mistral", "bert", "vit, deit"];
    config(Tiny::image_classifier("vit"), "model_type", &json!("swin"), &swin);
    let swin = "swin_tiny_patch4_window7_224";
    let words = [swin, "is not supported", "vit_* and deit_*"];
    config(Tiny::image_classifier("timm-vit"), "architecture", &json!(swin), &words);
}

#[test]
fn berts_that_are_something_else() {
    let bert = |key: &str, value: Value, words: &[&str]| drop(config(Tiny::text_encoder("bert"), key, &value, words));
    bert("position_embedding_type", json!("relative_key"), &["position_embedding_type relative_key", "absolute"]);
    bert("is_decoder", json!(true), &["is_decoder is true", "encoder"]);
    bert("hidden_act", json!("mish"), &["hidden_act mish", "supported are gelu"]);
    bert("num_attention_heads", json!(5), &["hidden_size 24", "num_attention_heads 5"]);
}

#[test]
fn arguments_of_timm_that_change_the_architecture() {
    let edit = |edit: fn(&mut Value), words: &[&str]| {
        let tiny = Tiny::image_classifier("timm-vit");
        tiny.edit_config(edit);
        all_refuse(&tiny, &[&["model/config.json: "], words].concat());
    };
    edit(|config| config["model_args"]["init_values"] = json!(1e-5), &["model_args has init_values", "not supported"]);
    edit(|config| config["model_args"]["global_pool"] = json!("avg"), &["global_pool avg", "model_args", "token"]);
    edit(|config| config["global_pool"] = json!("map"), &["global_pool map", "token"]);
}

#[test]
fn tensors_that_would_go_unused() {
    for (case, name) in [
        ("timm-vit", "blocks.0.ls1.gamma"),
        ("timm-vit", "blocks.1.attn.q_norm.weight"),
        ("vit", "vit.encoder.layer.1.layer_scale1.lambda1"),
    ] {
        let tiny = Tiny::image_classifier(case);
        tiny.edit_tensors(WEIGHTS, |tensors| {
            tensors.insert(name.to_owned(), Tensor::of_f32(&[24], Dtype::F32, &[1.0; 24]));
        });
        all_refuse(&tiny, &[&format!("tensor {name}: is no part of a block")]);
    }
}

#[test]
fn modules_of_sentence_transformers() {
    let tiny = Tiny::text_encoder("sentence-bert");
    let pooling = tiny.read_json("model/1_Pooling/config.json");
    let pool = |modes: &[&str], words: &[&str]| {
        tiny.edit_json("model/1_Pooling/config.json", |config| {
            *config = pooling.clone();
            config["pooling_mode_mean_tokens"] = json!(false);
            for mode in modes {
                config[format!("pooling_mode_{mode}")] = json!(true);
            }
        });
        all_refuse(&tiny, &[&["model/1_Pooling/config.json: "], words].concat());
    };
    pool(&["weightedmean_tokens"], &["pooling mode weightedmean_tokens", "supported are mean"]);
    pool(&["cls_token", "max_tokens"], &["several pooling modes", "cls_token", "max_tokens"]);
    tiny.write_json("model/1_Pooling/config.json", &pooling);
    let dense = json!({ "idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense" });
    tiny.edit_json("model/modules.json", |modules| modules[2] = dense);
    let words = ["model/modules.json: ", "sentence_transformers.models.Dense is not supported", "Pooling, Normalize"];
    all_refuse(&tiny, &words);
}

// Images.

#[test]
fn images_that_are_none() {
    let jpeg = [&b"\xff\xd8\xff\xe0\0\x10JFIF"[..], &[7; 300]].concat();
    for (name, bytes, word) in [
        ("d.jpg", &jpeg[..], "not a usable image"),
        ("d.jpeg", b"\xff\xd8", "not a usable image"),
        ("d.png", b"\x89PNG\r\n\x1a\n", "not a usable image"),
        ("d.PNG", b"GIF89a", "neither JPEG nor PNG; convert"),
        ("d.jpg", b"", "neither JPEG nor PNG; convert"),
    ] {
        let tiny = Tiny::image_classifier("vit");
        // The sixteenth by name, so of the calibration split.
        tiny.write(&format!("images/4/{name}"), bytes);
        let image = format!("images/4/{name}");
        let words = [&format!("{image}: "), word];
        for command in [EVAL_IMAGES, "run model images", &format!("run model {image}"), &calibrated("images")] {
            refuses(&tiny, command, FAILED, &words);
        }
    }
}

fn calibrated(data: &str) -> String {
    format!("{PRUNE} --calibration {data}")
}

#[test]
fn folders_without_images() {
    let tiny = Tiny::image_classifier("vit");
    fs::create_dir_all(tiny.path("empty/deeper/still")).unwrap();
    tiny.write("empty/readme.txt", b"none here");
    tiny.write("empty/deeper/still/a.png", b"too deep");
    let words = ["empty: holds no .jpg, .jpeg or .png files", "give a folder with some"];
    for command in ["eval model --data empty", "run model empty", &calibrated("empty")] {
        refuses(&tiny, command, FAILED, &words);
    }
    for command in ["eval model --data nowhere", "run model nowhere", &calibrated("nowhere")] {
        refuses(&tiny, command, FAILED, &["nowhere: ", "No such file"]);
    }
    // One image is of the calibration split.
    fs::create_dir(tiny.path("one")).unwrap();
    fs::copy(tiny.path("images/0/a.png"), tiny.path("one/0.png")).unwrap();
    refuses(&tiny, "eval model --data one --split held-out", FAILED, &["one: holds no ", "held-out"]);
    assert_eq!(tiny.lacuna("eval model --data one --json").json()["stderr"], Value::Null);
}

#[test]
fn images_of_unknown_classes() {
    for folder in ["5", "LABEL_5", "label_0", "-1", "cats"] {
        let tiny = Tiny::image_classifier("vit");
        fs::rename(tiny.path("images/0"), tiny.path(&format!("images/{folder}"))).unwrap();
        let image = format!("images/{folder}/a.png: its class is not known");
        refuses(&tiny, EVAL_IMAGES, FAILED, &[&image, "the number of its class or its label", "the model has 5"]);
        // Only evaluation has to know.
        tiny.lacuna("run model images").ok();
        tiny.lacuna(&calibrated("images")).ok();
    }
}

#[test]
fn image_processors_that_do_not_fit() {
    let file = "model/preprocessor_config.json";
    let refuse = |tiny: &Tiny, words: &[&str]| {
        for command in [EVAL_IMAGES, "run model images/0/a.png", &calibrated("images")] {
            refuses(tiny, command, FAILED, words);
        }
    };
    let tiny = Tiny::image_classifier("vit");
    tiny.edit_json(file, |config| config["size"]["height"] = json!(24));
    refuse(&tiny, &["model: its image processor makes [3, 24, 24]", "[3, 16, 24]", "preprocessor_config.json"]);
    tiny.edit_json(file, |config| config["image_processor_type"] = json!("DonutImageProcessor"));
    refuse(&tiny, &["preprocessor_config.json: ", "DonutImageProcessor is not supported"]);
    fs::remove_file(tiny.path(file)).unwrap();
    refuse(&tiny, &["preprocessor_config.json: missing", "copy"]);
    // timm's own says how images are prepared, but only for square ones.
    let tiny = Tiny::image_classifier("timm-vit");
    fs::remove_file(tiny.path(file)).unwrap();
    refuse(&tiny, &["model/config.json: input_size 12 x 16 is not supported"]);
}

#[test]
fn encoders_of_images_without_a_classifier() {
    let tiny = Tiny::image_classifier("vit-model");
    for command in [EVAL_IMAGES, "run model images"] {
        refuses(&tiny, command, FAILED, &["model: has no classifier", "give a checkpoint with one"]);
    }
    tiny.lacuna(&calibrated("images")).ok();
}

// Pairs of sentences.

#[test]
fn pairs_that_are_none() {
    for line in
        ["a\tb\tc\td\t1.0\tba be", "a\tb\tc\td\thigh\tba\tbe", "a\tb\tc\td\tnan\tba\tbe", "ba be bi", "score,a,b"]
    {
        let tiny = Tiny::text_encoder("bert");
        let good = String::from_utf8(fs::read(tiny.path("sts.csv")).unwrap()).unwrap();
        tiny.write("sts.csv", format!("{good}\n{line}\n").as_bytes());
        for command in [EVAL_TEXT, &calibrated("sts.csv")] {
            // Eight pairs and a line between.
            refuses(&tiny, command, FAILED, &["sts.csv: line 10 is no STS pair", "between tabs", "make it one"]);
        }
    }
}

#[test]
fn too_few_pairs() {
    let tiny = Tiny::text_encoder("bert");
    let pair = "a\tb\tc\td\t1.0\tba\tbe\n";
    for (text, word) in [("", "holds no pairs"), ("\n \n", "holds no pairs"), (&pair.repeat(3), "holds 3 pairs")] {
        tiny.write("sts.csv", text.as_bytes());
        refuses(&tiny, EVAL_TEXT, FAILED, &["sts.csv: ", word]);
    }
    tiny.write("sts.csv", pair.repeat(4).as_bytes());
    // Where nothing varies, nothing correlates.
    assert_eq!(tiny.lacuna(&format!("{EVAL_TEXT} --json")).json()["value"], 0.0);
}

#[test]
fn sentences_without_a_token() {
    let tiny = Tiny::text_encoder("bert");
    // Nothing around a text: an empty one has no vector.
    tiny.edit_json("model/tokenizer.json", |json| json["post_processor"] = Value::Null);
    tiny.write("empty.csv", "a\tb\tc\td\t1.0\tba\t \n".repeat(4).as_bytes());
    refuses(&tiny, "eval model --data empty.csv", FAILED, &["empty.csv: ", "no tokens"]);
    let run = tiny.lacuna_args(&["run", "model", "ba", " "]);
    common::refused(&tiny, &run, USAGE, &["' '", "no tokens"]);
    tiny.write("blank.csv", "a\tb\tc\td\t1.0\t\t \n".repeat(4).as_bytes());
    for command in [&calibrated("blank.csv"), "run model --file blank.csv"] {
        refuses(&tiny, command, FAILED, &["blank.csv: holds no text", "give a file with some"]);
    }
    refuses(&Tiny::new(), "run model --file nowhere.txt", FAILED, &["nowhere.txt"]);
}

// Data and tasks of another kind of model.

#[test]
fn tasks_of_another_kind_of_model() {
    for (tiny, does, own, others) in [
        (Tiny::new(), "writes text", "perplexity", ["classify-images", "embed-sts"]),
        (Tiny::text_encoder("bert"), "embeds text", "embed-sts", ["perplexity", "classify-images"]),
        (Tiny::image_classifier("deit"), "classifies images", "classify-images", ["perplexity", "embed-sts"]),
    ] {
        for task in others {
            let words = [&format!("--task {task} does not fit model: it {does}"), "try", own];
            refuses(&tiny, &format!("eval model --task {task} --data model"), USAGE, &words);
        }
        let (generate, embed, classify) = ("generate", "embed", "classify");
        for task in [generate, embed, classify].into_iter().filter(|task| !own.starts_with(task)) {
            if (own, task) != ("perplexity", generate) {
                refuses(&tiny, &format!("run model ba --task {task}"), USAGE, &["--task", "does not fit model", does]);
            }
        }
    }
}

#[test]
fn texts_for_images_and_images_for_texts() {
    let images = Tiny::image_classifier("timm-vit");
    images.write("text.txt", b"ba be bi");
    for command in ["eval model --data text.txt", &calibrated("text.txt")] {
        refuses(&images, command, FAILED, &["text.txt: ", "folder"]);
    }
    refuses(&images, "run model text.txt", FAILED, &["text.txt: neither JPEG nor PNG"]);
    refuses(&images, "run model images --file text.txt", USAGE, &["--file text.txt", "folder"]);
    refuses(&images, PRUNE, USAGE, &["update lsq", "--calibration DIR"]);

    let text = Tiny::text_encoder("bert");
    fs::create_dir(text.path("images")).unwrap();
    for command in [EVAL_IMAGES, &calibrated("images"), "run model --file images"] {
        refuses(&text, command, FAILED, &["images: ", "folder"]);
    }
    text.write("image.png", b"\x89PNG\r\n\x1a\n");
    refuses(&text, "run model --file image.png", FAILED, &["image.png: ", "UTF-8"]);
    refuses(&text, PRUNE, USAGE, &["update lsq", "--calibration FILE"]);
    refuses(&text, "run model ba --output vectors.txt", USAGE, &["--output vectors.txt", ".npy"]);
}

#[test]
fn numbers_that_an_encoder_cannot_take() {
    let tiny = Tiny::text_encoder("sentence-bert");
    for (command, words) in [
        (format!("{EVAL_TEXT} --context 2"), ["--context is 2", "takes 3 to 12"]),
        (format!("{EVAL_TEXT} --context 13"), ["--context is 13", "takes 3 to 12"]),
        (format!("{} --calibration-length 13", calibrated("sts.csv")), ["--calibration-length is 13", "2 to 12"]),
        ("bench model --prompt-tokens 21".to_owned(), ["--prompt-tokens asks for 21", "takes 20"]),
    ] {
        refuses(&tiny, &command, USAGE, &words);
    }
}

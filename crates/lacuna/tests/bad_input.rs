//! Every file that `lacuna` must refuse: the exit code, one line that names the culprit and the way out, no output.

mod common;

use common::{FAILED, INDEX, PRUNE, Q, Tensor, Tiny, USAGE, WANDA, WEIGHTS, refuses};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

// Safetensors files that lie.

#[test]
fn truncated_weights() {
    for length in [0, 7, 8, 200, 50_000] {
        let tiny = Tiny::new();
        tiny.edit_bytes(WEIGHTS, |bytes| bytes.truncate(length));
        refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "download"]);
    }
}

#[test]
fn bytes_after_the_last_tensor() {
    let tiny = Tiny::new();
    tiny.edit_bytes(WEIGHTS, |bytes| bytes.push(0));
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "download"]);
}

#[test]
fn header_length_too_long() {
    for length in [1_000_000, 99_999_999, 100_000_001, u64::MAX / 2, u64::MAX - 7, u64::MAX] {
        let tiny = Tiny::new();
        tiny.edit_bytes(WEIGHTS, |bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()));
        refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", &length.to_string(), "download"]);
    }
}

#[test]
fn header_not_utf8() {
    let tiny = Tiny::new();
    tiny.edit_bytes(WEIGHTS, |bytes| bytes[10] = 0xff);
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "UTF-8", "download"]);
}

#[test]
fn header_not_json() {
    let tiny = Tiny::new();
    tiny.edit_bytes(WEIGHTS, |bytes| bytes[8] = b'[');
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "header", "download"]);
}

/// Refused with `word` after an edit of what the header says about one weight.
fn lying_header(word: &str, lie: impl Fn(&mut Value)) {
    let tiny = Tiny::new();
    tiny.edit_header(WEIGHTS, |header| lie(&mut header[Q]));
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "header", word, "download"]);
}

#[test]
fn header_with_an_unknown_dtype() {
    lying_header("F33", |q| q["dtype"] = json!("F33"));
}

#[test]
fn header_with_a_shape_that_does_not_match_the_offsets() {
    lying_header("shape", |q| q["shape"] = json!([64, 65]));
    lying_header("shape", |q| q["shape"] = json!([]));
    lying_header("shape", |q| q["dtype"] = json!("F16"));
}

#[test]
fn header_with_numbers_that_are_no_sizes() {
    lying_header("invalid", |q| q["shape"] = json!([-64, 64]));
    lying_header("invalid", |q| q["shape"] = json!([64.5, 64]));
    lying_header("invalid", |q| q["data_offsets"][0] = json!("0"));
}

#[test]
fn header_with_overflow_in_the_shape() {
    lying_header("overflow", |q| q["shape"] = json!([1_u64 << 40, 1_u64 << 40]));
    lying_header("overflow", |q| q["shape"] = json!([1_u64 << 62, 1]));
}

#[test]
fn header_with_offsets_that_overlap_or_leave_a_gap() {
    lying_header(Q, |q| q["data_offsets"][0] = json!(q["data_offsets"][0].as_u64().unwrap() - 4));
    lying_header(Q, |q| q["data_offsets"][0] = json!(q["data_offsets"][0].as_u64().unwrap() + 4));
    lying_header(Q, |q| q["data_offsets"] = json!([q["data_offsets"][1], q["data_offsets"][0]]));
}

#[test]
fn header_with_two_tensors_in_one_place() {
    let tiny = Tiny::new();
    tiny.edit_header(WEIGHTS, |header| {
        header[Q]["data_offsets"] = header["model.layers.0.self_attn.o_proj.weight"]["data_offsets"].clone();
    });
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "header", "download"]);
}

#[test]
fn header_with_offsets_beyond_the_file() {
    let tiny = Tiny::new();
    tiny.edit_header(WEIGHTS, |header| {
        let end = |info: &Value| info["data_offsets"][1].as_u64().unwrap_or(0);
        let last = header.as_object_mut().unwrap().values_mut().max_by_key(|info| end(info)).unwrap();
        last["data_offsets"][1] = json!(end(last) + 64 * 4);
        let rows = last["shape"][0].as_u64().unwrap();
        last["shape"] = if last["shape"].get(1).is_some() { json!([rows + 1, 64]) } else { json!([rows + 64]) };
    });
    refuses(&tiny, PRUNE, FAILED, &["model.safetensors: ", "truncated", "download"]);
}

#[test]
fn header_with_a_missing_field() {
    for field in ["dtype", "shape", "data_offsets"] {
        lying_header(field, |q| drop(q.as_object_mut().unwrap().remove(field)));
    }
}

// Shards and their index.

const SECOND: &str = "model/model-00002-of-00002.safetensors";

#[test]
fn missing_shard() {
    let tiny = Tiny::with(Dtype::F32, 2);
    std::fs::remove_file(tiny.path(SECOND)).unwrap();
    refuses(&tiny, PRUNE, FAILED, &["model-00002-of-00002.safetensors: ", "download"]);
}

#[test]
fn index_naming_a_tensor_that_is_not_in_the_shard() {
    let lies: [fn(&mut Value); 2] = [
        |map| map["model.layers.9.mlp.up_proj.weight"] = json!("model-00002-of-00002.safetensors"),
        |map| map["lm_head.weight"] = json!("model-00002-of-00002.safetensors"),
    ];
    for lie in lies {
        let tiny = Tiny::with(Dtype::F32, 2);
        tiny.edit_json(INDEX, |index| lie(&mut index["weight_map"]));
        refuses(&tiny, PRUNE, FAILED, &["model-00002-of-00002.safetensors: tensor ", "index", "download"]);
    }
}

#[test]
fn index_that_is_none() {
    let indices = [json!({}), json!([]), json!({ "weight_map": { Q: "../model.safetensors" } })];
    for index in indices {
        let tiny = Tiny::with(Dtype::F32, 2);
        tiny.write_json(INDEX, &index);
        refuses(&tiny, PRUNE, FAILED, &["model.safetensors.index.json: ", "download"]);
    }
}

#[test]
fn tensor_in_two_shards() {
    let tiny = Tiny::with(Dtype::F32, 2);
    tiny.edit_tensors(SECOND, |tensors| drop(tensors.insert("lm_head.weight".to_owned(), zeros(&[60, 64]))));
    refuses(&tiny, PRUNE, FAILED, &["model-00002-of-00002.safetensors: tensor lm_head.weight", "keep one"]);
}

#[test]
fn directory_without_weights_or_config() {
    for (file, word) in [("model.safetensors", "convert"), ("config.json", "config.json: ")] {
        let tiny = Tiny::new();
        std::fs::remove_file(tiny.path("model").join(file)).unwrap();
        refuses(&tiny, PRUNE, FAILED, &["model", word]);
    }
}

#[test]
fn no_such_checkpoint() {
    for command in ["inspect", "verify", "run nowhere", "bench", "eval --data held.jsonl", "export nowhere"] {
        let (command, rest) = command.split_once(' ').unwrap_or((command, ""));
        refuses(&Tiny::new(), &format!("{command} nowhere {rest}"), FAILED, &["nowhere: no such checkpoint"]);
    }
}

// Tensors that cannot be used.

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::of_f32(shape, Dtype::F32, &vec![0.0; shape.iter().product()])
}

#[test]
fn wrong_dtype() {
    let tiny = Tiny::new();
    let integers = Tensor { dtype: Dtype::I64, shape: vec![64, 64], data: vec![0; 64 * 64 * 8] };
    tiny.edit_tensors(WEIGHTS, |tensors| drop(tensors.insert(Q.to_owned(), integers)));
    for command in [PRUNE, "inspect model", "eval model --data held.jsonl"] {
        refuses(&tiny, command, FAILED, &[Q, "I64", "convert"]);
    }
}

#[test]
fn weights_that_are_not_finite() {
    let wanda = format!("{WANDA} text.txt");
    let eval = "eval model --data held.jsonl";
    let of_q = [PRUNE, &wanda, "inspect model", eval].map(|command| (Q, command));
    let of_others = ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"].map(|name| (name, eval));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (name, command) in of_q.iter().chain(&of_others) {
            let tiny = Tiny::new();
            tiny.edit_tensors(WEIGHTS, |tensors| tensors.get_mut(*name).unwrap().set_f32(63, value));
            refuses(&tiny, command, FAILED, &[&format!("tensor {name}: element 63 is "), "damaged"]);
        }
    }
}

#[test]
fn embedding_of_the_calibration_that_is_not_finite() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| {
        let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
        (0..60).for_each(|row| embedding.set_f32(row * 64 + 5, f32::NAN));
    });
    refuses(&tiny, &format!("{WANDA} text.txt"), FAILED, &["tensor model.embed_tokens.weight: ", "damaged"]);
}

#[test]
fn missing_tensor() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| drop(tensors.remove(Q)));
    refuses(&tiny, PRUNE, FAILED, &[&format!("tensor {Q}: missing from model"), "config.json", "download"]);
}

#[test]
fn weights_that_f16_cannot_hold() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| tensors.get_mut(Q).unwrap().set_f32(70, 65_536.0));
    refuses(&tiny, &format!("{PRUNE} --values f16"), FAILED, &["self_attn.q_proj", "65536", "row 1", "wider type"]);
}

#[test]
fn weights_that_bf16_cannot_hold() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| tensors.get_mut(Q).unwrap().set_f32(70, f32::MAX));
    refuses(&tiny, &format!("{PRUNE} --values bf16"), FAILED, &["self_attn.q_proj", "row 1", "bf16", "wider type"]);
}

#[test]
fn weights_that_no_scale_reaches() {
    for values in ["int8", "int4"] {
        let tiny = Tiny::new();
        tiny.edit_tensors(WEIGHTS, |tensors| tensors.get_mut(Q).unwrap().set_f32(70, -1e7));
        let command = format!("{PRUNE} --values {values}");
        refuses(&tiny, &command, FAILED, &["self_attn.q_proj", "-10000000 at row 1", values, "wider type"]);
    }
}

/// With a copy pruned to int8 under `sparse`.
fn integers() -> Tiny {
    let tiny = Tiny::new();
    tiny.lacuna(&format!("{} --values int8 --scale-group 64", PRUNE.replace("out", "sparse"))).ok();
    tiny
}

#[test]
fn scales_that_cannot_be() {
    type Spoil = fn(&mut Tensor, &mut Tensor);
    let layer = Q.strip_suffix(".weight").unwrap();
    let lies: [(Spoil, &str); 4] = [
        (|_, scales| scales.data[..2].copy_from_slice(&[0, 0x7c]), "scale 0 of row 0 is inf"),
        (|_, scales| scales.data[1] |= 0x80, "negative scale"),
        (|_, scales| scales.data[..2].fill(0), "scale 0 of row 0 is 0"),
        (|values, _| values.data[0] = 0x80, "row 0 holds the code -128"),
    ];
    for (spoil, word) in lies {
        let tiny = integers();
        tiny.edit_tensors("sparse/model-00001-of-00003.safetensors", |tensors| {
            let [mut values, mut scales] =
                ["values", "scales"].map(|part| tensors.remove(&format!("{layer}.{part}")).unwrap());
            spoil(&mut values, &mut scales);
            tensors.extend([(format!("{layer}.values"), values), (format!("{layer}.scales"), scales)]);
        });
        for command in ["inspect sparse", "eval sparse --data held.jsonl", "export sparse out"] {
            refuses(&tiny, command, FAILED, &[layer, word, "prune again"]);
        }
        let verdict = tiny.lacuna("verify sparse");
        assert_eq!(verdict.code, Some(1));
        assert!(verdict.stdout.contains(word), "{}", verdict.stdout);
    }
}

#[test]
fn scale_group_that_cannot_be() {
    for (group, words) in [
        (json!(48), ["sparse/config.json: quantization_config", "scale_group is 48, not 32, 64 or 128"]),
        (json!("32"), ["sparse/config.json: quantization_config", "invalid type"]),
        (json!(-32), ["sparse/config.json: quantization_config", "invalid"]),
    ] {
        let tiny = integers();
        tiny.edit_json("sparse/config.json", |config| config["quantization_config"]["scale_group"] = group.clone());
        for command in ["verify sparse", "eval sparse --data held.jsonl", "export sparse out"] {
            refuses(&tiny, command, FAILED, &words);
        }
    }
    let tiny = integers();
    tiny.edit_json("sparse/config.json", |config| {
        config["quantization_config"].as_object_mut().unwrap().shift_remove("scale_group");
    });
    refuses(&tiny, "eval sparse --data held.jsonl", FAILED, &["q_proj.values: type I8 where", "prune again"]);
}

#[test]
fn export_of_integers_beyond_the_type_of_the_embedding() {
    let tiny = Tiny::new();
    tiny.edit_tensors(WEIGHTS, |tensors| {
        tensors.get_mut(Q).unwrap().set_f32(70, 1e6);
        let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
        let bytes = embedding.shape.iter().product::<usize>() * 2;
        *embedding = Tensor { dtype: Dtype::F16, shape: embedding.shape.clone(), data: vec![0; bytes] };
    });
    tiny.lacuna(&format!("{} --values int8", PRUNE.replace("out", "sparse"))).ok();
    refuses(&tiny, "export sparse out", FAILED, &[Q, "row 1 holds", "does not fit f16", "prune again"]);
}

// config.json.

fn config(key: &str, value: Value, words: &[&str]) {
    let tiny = Tiny::new();
    tiny.edit_config(|config| config[key] = value);
    refuses(&tiny, PRUNE, FAILED, words);
}

#[test]
fn config_that_the_shapes_contradict() {
    config("intermediate_size", json!(97), &["mlp.gate_proj.weight: shape [96, 64] ", "[97, 64]", "config.json"]);
    config("num_key_value_heads", json!(4), &["k_proj.weight: shape [32, 64] ", "[64, 64]", "config.json"]);
    config("num_hidden_layers", json!(3), &["tensor model.layers.2.self_attn.q_proj.weight: missing", "config.json"]);
}

#[test]
fn config_values_of_the_wrong_type_or_size() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        for value in [json!("64"), json!(0), json!(-1), json!(1.5), json!(1_u64 << 40), json!([64]), json!({})] {
            config(key, value, &["model/config.json: ", key, "must be a whole number"]);
        }
        config(key, Value::Null, &["model/config.json: ", key, "missing"]);
    }
    config("max_position_embeddings", json!(0), &["model/config.json: ", "max_position_embeddings", "must be"]);
    config("num_key_value_heads", json!(3), &["model/config.json: ", "num_key_value_heads 3", "multiple"]);
    config("rms_norm_eps", json!("small"), &["model/config.json: ", "rms_norm_eps", "must be a number"]);
    config("rope_theta", json!(-1), &["model/config.json: ", "rope_theta", "must be a positive number"]);
    config("tie_word_embeddings", json!("yes"), &["model/config.json: ", "tie_word_embeddings", "must be true or"]);
    config("bos_token_id", json!(-1), &["model/config.json: ", "bos_token_id", "must be a token id"]);
}

#[test]
fn config_that_is_no_json() {
    for text in ["", "{", "[1,", "\u{0}"] {
        let tiny = Tiny::new();
        tiny.write("model/config.json", text.as_bytes());
        refuses(&tiny, PRUNE, FAILED, &["model/config.json: ", "invalid JSON"]);
    }
    let tiny = Tiny::new();
    tiny.write("model/config.json", b"\xff");
    refuses(&tiny, PRUNE, FAILED, &["model/config.json: ", "UTF-8"]);
}

#[test]
fn unknown_architecture() {
    config("model_type", json!("gpt2"), &["model/config.json: ", "gpt2", "supported are llama"]);
    config("model_type", Value::Null, &["model/config.json: ", "model_type", "supported are llama"]);
    config("hidden_act", json!("gelu"), &["model/config.json: ", "gelu", "silu"]);
}

#[test]
fn already_quantised() {
    let key = "quantization_config";
    config(key, json!({ "quant_method": "gptq" }), &["model/config.json: ", "gptq", "start from the unquantised"]);
    config(key, json!({ "bits": 4 }), &["model/config.json: ", "quantised", "start from the unquantised"]);
}

#[test]
fn newer_packed_format() {
    let tiny = Tiny::pruned();
    tiny.edit_json("sparse/config.json", |config| config["quantization_config"]["version"] = json!(2));
    for command in ["verify sparse", "inspect sparse", "eval sparse --data held.jsonl", "export sparse out"] {
        refuses(&tiny, command, FAILED, &["sparse/config.json: ", "version 2", "update"]);
    }
}

#[test]
fn block_of_a_pruned_checkpoint_that_lies() {
    type Lie = (fn(&mut Value), &'static str);
    let lies: [Lie; 5] = [
        (|block| block["version"] = json!("1"), "version"),
        (|block| block["pattern"] = json!("16:2"), "pattern"),
        (|block| block["layers"] = json!([]), "quantization_config"),
        (|block| block["layers"]["model.layers.0.self_attn.q_proj"]["shape"] = json!([64, u64::MAX]), "q_proj"),
        (|block| block["layers"]["model.layers.0.self_attn.q_proj"]["shape"] = json!([64, 4]), "q_proj"),
    ];
    for (lie, word) in lies {
        let tiny = Tiny::pruned();
        tiny.edit_json("sparse/config.json", |config| lie(&mut config["quantization_config"]));
        for command in ["inspect sparse", "eval sparse --data held.jsonl", "export sparse out"] {
            refuses(&tiny, command, FAILED, &[word]);
        }
    }
    let tiny = Tiny::pruned();
    tiny.edit_json("sparse/config.json", |config| drop(config["quantization_config"]["layers"]["lm_head"].take()));
    refuses(&tiny, "verify sparse", FAILED, &["sparse/config.json: quantization_config"]);
}

// Texts.

#[test]
fn calibration_text_that_holds_none() {
    for (name, text) in [("empty.txt", ""), ("blank.txt", " \n\n"), ("blank.jsonl", "{\"text\": \"\"}\n")] {
        let tiny = Tiny::new();
        tiny.write(name, text.as_bytes());
        refuses(&tiny, &format!("{WANDA} {name}"), FAILED, &[&format!("{name}: "), "no text", "give a file"]);
    }
}

#[test]
fn calibration_text_that_is_not_utf8() {
    let tiny = Tiny::new();
    tiny.write("latin1.txt", b"ba be \xe9 bi");
    refuses(&tiny, &format!("{WANDA} latin1.txt"), FAILED, &["latin1.txt: ", "byte 6", "convert"]);
}

#[test]
fn calibration_lines_without_text() {
    for line in ["{\"txt\": \"ba\"}", "{\"text\": 1}", "ba be", "[\"ba\"]"] {
        let tiny = Tiny::new();
        tiny.write("some.jsonl", format!("{{\"text\": \"ba\"}}\n{line}\n").as_bytes());
        refuses(&tiny, &format!("{WANDA} some.jsonl"), FAILED, &["some.jsonl: line 2 ", "{\"text\": ", "make it"]);
    }
}

#[test]
fn calibration_text_that_is_missing() {
    refuses(&Tiny::new(), &format!("{WANDA} nowhere.txt"), FAILED, &["nowhere.txt: ", "No such file"]);
}

#[test]
fn criterion_without_calibration() {
    for criterion in ["wanda", "ria"] {
        let command = format!("prune model out --pattern 16:2:8 --criterion {criterion} --update none");
        refuses(&Tiny::new(), &command, USAGE, &[criterion, "--calibration"]);
    }
}

#[test]
fn evaluation_on_an_empty_text() {
    for (name, text) in [("empty.txt", ""), ("empty.jsonl", "\n"), ("blank.jsonl", "{\"text\": \" \"}")] {
        let tiny = Tiny::new();
        tiny.write(name, text.as_bytes());
        refuses(&tiny, &format!("eval model --data {name}"), FAILED, &[&format!("{name}: "), "give a file"]);
    }
}

// Tokenizers.

#[test]
fn missing_tokenizer() {
    let tiny = Tiny::new();
    std::fs::remove_file(tiny.path("model/tokenizer.json")).unwrap();
    for command in [&format!("{WANDA} text.txt"), "eval model --data held.jsonl", "run model ba"] {
        refuses(&tiny, command, FAILED, &["model/tokenizer.json: missing", "copy"]);
    }
    tiny.lacuna(PRUNE).ok();
}

#[test]
fn tokenizer_with_more_tokens_than_embeddings() {
    let tiny = Tiny::new();
    tiny.edit_json("model/tokenizer.json", |json| json["model"]["vocab"]["more"] = json!(60));
    for command in [&format!("{WANDA} text.txt"), "eval model --data held.jsonl", "run model ba"] {
        refuses(&tiny, command, FAILED, &["model/tokenizer.json: does not match", "token 60", "60 embeddings", "copy"]);
    }
}

#[test]
fn tokenizer_that_is_none() {
    let tiny = Tiny::new();
    tiny.write("model/tokenizer.json", b"{\"model\": {}}");
    refuses(&tiny, "run model ba", FAILED, &["model/tokenizer.json: not a usable tokenizer", "copy"]);
}

#[test]
fn first_token_without_an_embedding() {
    let tiny = Tiny::new();
    tiny.edit_config(|config| config["bos_token_id"] = json!(60));
    for command in [&format!("{WANDA} text.txt"), "eval model --data held.jsonl", "run model ba"] {
        refuses(&tiny, command, FAILED, &["bos_token_id", "token 60", "60 embeddings", "config.json"]);
    }
}

//! Randomly initialised checkpoints of known shapes, sharded: large input for tests of scale and speed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose shapes
    #[arg(long, value_enum)]
    like: Like,
    /// Fewer blocks than it has
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Directory to write
    #[arg(long)]
    output: PathBuf,
    /// Give the head a weight of its own, so that it can be pruned too
    #[arg(long)]
    untied: bool,
    /// Type of the weights
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Like {
    /// 32 layers, hidden 4096: 13 GB
    #[value(name = "llama-2-7b")]
    Llama2x7b,
    /// 24 layers, hidden 896: 1 GB
    #[value(name = "qwen2-0.5b")]
    Qwen2x05b,
    /// 12 layers, hidden 768, with its pooler: 0.2 GB
    BertBase,
    /// 12 layers, hidden 768, images of 224 in patches of 16, a classifier of 1000: 0.2 GB
    DeitBase,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

impl Dtype {
    /// What config.json and a safetensors header call it, and the bytes of a value.
    fn names(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Bf16 => ("bfloat16", "BF16", 2),
            Self::F32 => ("float32", "F32", 4),
        }
    }
}

/// Standard deviation of the weights; uniform values of the same spread do as well here and are quicker to draw.
const STD: f32 = 0.02;

/// Writes one shard a block, so that one block at a time is in memory.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut config = match args.like {
        Like::Llama2x7b => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1,
            "eos_token_id": 2,
        }),
        Like::Qwen2x05b => json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "bos_token_id": 151_643, "eos_token_id": 151_645,
        }),
        Like::BertBase => json!({
            "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
        }),
        // DeiT without distillation is a ViT, and so are its checkpoints.
        Like::DeitBase => json!({
            "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 768,
            "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
            "patch_size": 16, "num_channels": 3, "qkv_bias": true, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
            "id2label": labels(|i, label| (i, json!(label))), "label2id": labels(|i, label| (label, json!(i))),
        }),
    };
    config["torch_dtype"] = json!(args.dtype.names().0);
    if let Some(layers) = args.layers {
        config["num_hidden_layers"] = json!(layers);
    }
    if args.untied {
        config["tie_word_embeddings"] = json!(false);
    }
    if args.output.exists() {
        bail!("{} already exists", args.output.display());
    }
    fs::create_dir_all(&args.output)?;
    let layers = number(&config, "num_hidden_layers");
    let mut map = BTreeMap::new();
    for part in 0..=layers {
        let shard = format!("model-{:05}-of-{:05}.safetensors", part + 1, layers + 1);
        let tensors = if part < layers { block(&config, part) } else { rest(&config) };
        // A stream of its own for each shard: the order of writing does not matter.
        let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
        rng.set_stream(part as u64);
        write_shard(&args.output.join(&shard), &tensors, args.dtype, &mut rng)?;
        map.extend(tensors.into_iter().map(|(name, _)| (name, shard.clone())));
        eprintln!("{shard}");
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(args.output.join("model.safetensors.index.json"), serde_json::to_string_pretty(&index)?)?;
    fs::write(args.output.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    if config["model_type"] == "vit" {
        let preprocessor = json!({
            "image_processor_type": "ViTImageProcessor", "do_resize": true, "size": { "shortest_edge": 256 },
            "resample": 3, "do_center_crop": true, "crop_size": { "height": 224, "width": 224 }, "do_rescale": true,
            "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        });
        fs::write(args.output.join("preprocessor_config.json"), serde_json::to_string_pretty(&preprocessor)?)?;
    }
    Ok(())
}

/// A map over the classes of ImageNet, by number or by name.
fn labels<K: ToString>(entry: impl Fn(usize, String) -> (K, Value)) -> Value {
    (0..1000).map(|i| entry(i, format!("LABEL_{i}"))).map(|(key, value)| (key.to_string(), value)).collect()
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().expect("a number of our own") as usize
}

type Tensor = (String, Vec<usize>);

fn block(config: &Value, layer: usize) -> Vec<Tensor> {
    match config["model_type"].as_str() {
        Some("bert") => encoder_block(config, &format!("encoder.layer.{layer}"), "self", BERT_NORMS),
        Some("vit") => encoder_block(config, &format!("vit.encoder.layer.{layer}"), "attention", VIT_NORMS),
        _ => decoder_block(config, layer),
    }
}

const BERT_NORMS: [&str; 2] = ["attention.output.LayerNorm", "output.LayerNorm"];
const VIT_NORMS: [&str; 2] = ["layernorm_before", "layernorm_after"];

fn encoder_block(config: &Value, prefix: &str, attention: &str, norms: [&str; 2]) -> Vec<Tensor> {
    let (hidden, inner) = (number(config, "hidden_size"), number(config, "intermediate_size"));
    let mut tensors = vec![];
    for part in ["query", "key", "value"] {
        tensors.extend(biased(&format!("{prefix}.attention.{attention}.{part}"), vec![hidden, hidden]));
    }
    tensors.extend(biased(&format!("{prefix}.attention.output.dense"), vec![hidden, hidden]));
    tensors.extend(biased(&format!("{prefix}.intermediate.dense"), vec![inner, hidden]));
    tensors.extend(biased(&format!("{prefix}.output.dense"), vec![hidden, inner]));
    tensors.extend(norms.iter().flat_map(|norm| biased(&format!("{prefix}.{norm}"), vec![hidden])));
    tensors
}

/// A weight and its bias.
fn biased(name: &str, shape: Vec<usize>) -> [Tensor; 2] {
    let bias = vec![shape[0]];
    [(format!("{name}.weight"), shape), (format!("{name}.bias"), bias)]
}

fn decoder_block(config: &Value, layer: usize) -> Vec<Tensor> {
    let (hidden, inner) = (number(config, "hidden_size"), number(config, "intermediate_size"));
    let keys = hidden / number(config, "num_attention_heads") * number(config, "num_key_value_heads");
    let mut tensors = vec![
        ("input_layernorm.weight", vec![hidden]),
        ("post_attention_layernorm.weight", vec![hidden]),
        ("self_attn.q_proj.weight", vec![hidden, hidden]),
        ("self_attn.k_proj.weight", vec![keys, hidden]),
        ("self_attn.v_proj.weight", vec![keys, hidden]),
        ("self_attn.o_proj.weight", vec![hidden, hidden]),
        ("mlp.gate_proj.weight", vec![inner, hidden]),
        ("mlp.up_proj.weight", vec![inner, hidden]),
        ("mlp.down_proj.weight", vec![hidden, inner]),
    ];
    if config["model_type"] == "qwen2" {
        tensors.push(("self_attn.q_proj.bias", vec![hidden]));
        tensors.push(("self_attn.k_proj.bias", vec![keys]));
        tensors.push(("self_attn.v_proj.bias", vec![keys]));
    }
    tensors.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)).collect()
}

fn rest(config: &Value) -> Vec<Tensor> {
    match config["model_type"].as_str() {
        Some("bert") => bert_rest(config),
        Some("vit") => vit_rest(config),
        _ => decoder_rest(config),
    }
}

fn bert_rest(config: &Value) -> Vec<Tensor> {
    let hidden = number(config, "hidden_size");
    let table =
        |kind: &str, rows: &str| (format!("embeddings.{kind}_embeddings.weight"), vec![number(config, rows), hidden]);
    let mut tensors = vec![
        table("word", "vocab_size"),
        table("position", "max_position_embeddings"),
        table("token_type", "type_vocab_size"),
    ];
    tensors.extend(biased("embeddings.LayerNorm", vec![hidden]));
    tensors.extend(biased("pooler.dense", vec![hidden, hidden]));
    tensors
}

fn vit_rest(config: &Value) -> Vec<Tensor> {
    let [hidden, channels, patch] = ["hidden_size", "num_channels", "patch_size"].map(|key| number(config, key));
    let positions = 1 + (number(config, "image_size") / patch).pow(2);
    let classes = config["id2label"].as_object().expect("a map of our own").len();
    let mut tensors = vec![
        ("vit.embeddings.cls_token".to_owned(), vec![1, 1, hidden]),
        ("vit.embeddings.position_embeddings".to_owned(), vec![1, positions, hidden]),
    ];
    tensors.extend(biased("vit.embeddings.patch_embeddings.projection", vec![hidden, channels, patch, patch]));
    tensors.extend(biased("vit.layernorm", vec![hidden]));
    tensors.extend(biased("classifier", vec![classes, hidden]));
    tensors
}

fn decoder_rest(config: &Value) -> Vec<Tensor> {
    let (hidden, vocab) = (number(config, "hidden_size"), number(config, "vocab_size"));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    tensors
}

/// Streams the values, so that memory stays small.
fn write_shard(path: &PathBuf, tensors: &[Tensor], dtype: Dtype, rng: &mut ChaCha8Rng) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let (_, code, bytes) = dtype.names();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * bytes;
        header.insert(name.clone(), json!({ "dtype": code, "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = serde_json::to_string(&header)?.into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let spread = STD * 3.0_f32.sqrt() * 2.0;
    for (name, shape) in tensors {
        // As transformers initialises.
        let constant = match name.to_lowercase() {
            name if name.ends_with("bias") => Some(0.0),
            name if name.contains("norm") => Some(1.0),
            _ => None,
        };
        for _ in 0..shape.iter().product::<usize>() / 2 {
            // Two values from one draw of 32 bits.
            let draw = rng.random::<u32>();
            for bits in [draw & 0xffff, draw >> 16] {
                let uniform = bits as f32 / 65_536.0 - 0.5;
                let value = constant.unwrap_or(uniform * spread);
                match dtype {
                    Dtype::Bf16 => out.write_all(&bf16::from_f32(value).to_le_bytes())?,
                    Dtype::F32 => out.write_all(&value.to_le_bytes())?,
                }
            }
        }
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

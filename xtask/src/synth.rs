//! Randomly initialised checkpoints of known shapes, sharded, bf16: large input for tests of scale.

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
    /// Directory to write
    #[arg(long)]
    output: PathBuf,
    /// Give the head a weight of its own, so that it can be pruned too
    #[arg(long)]
    untied: bool,
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
            "eos_token_id": 2, "torch_dtype": "bfloat16",
        }),
        Like::Qwen2x05b => json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "bos_token_id": 151_643, "eos_token_id": 151_645, "torch_dtype": "bfloat16",
        }),
    };
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
        write_shard(&args.output.join(&shard), &tensors, &mut rng)?;
        map.extend(tensors.into_iter().map(|(name, _)| (name, shard.clone())));
        eprintln!("{shard}");
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(args.output.join("model.safetensors.index.json"), serde_json::to_string_pretty(&index)?)?;
    fs::write(args.output.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(())
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().expect("a number of our own") as usize
}

type Tensor = (String, Vec<usize>);

fn block(config: &Value, layer: usize) -> Vec<Tensor> {
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
fn write_shard(path: &PathBuf, tensors: &[Tensor], rng: &mut ChaCha8Rng) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 2;
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, end] }));
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
        for _ in 0..shape.iter().product::<usize>() / 2 {
            // Two values from one draw of 32 bits.
            let draw = rng.random::<u32>();
            for bits in [draw & 0xffff, draw >> 16] {
                let uniform = bits as f32 / 65_536.0 - 0.5;
                let value = if name.ends_with("norm.weight") { 1.0 } else { uniform * spread };
                out.write_all(&bf16::from_f32(value).to_le_bytes())?;
            }
        }
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

//! Whole models: a small decoder, dense and pruned, against the CPU's; then decoding with layers of LLaMA-2-7B's shapes, dense
//! beside 64:2:8, each step a graph. Weights are drawn.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use lacuna_core::{Dtype, Matrix};
use lacuna_cuda::launch::Device;
use lacuna_cuda::model::{Decoder, Session};
use lacuna_cuda::{HalfType, Machine};
use lacuna_format::{Checkpoint, OutTensor, TensorDtype};
use lacuna_model::{Config, DecoderConfig, PackedAs, Sample, Sequences, family};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::golden::{MIXTURE, pruned};
use crate::record::{Record, median};
use crate::reference::{difference, reference, tolerance};
use crate::{Outcome, Settings};

/// Sizes of a LLaMA.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    layers: usize,
    vocab: usize,
}

const SMALL: Sizes = Sizes { hidden: 256, inner: 688, heads: 8, kv_heads: 2, layers: 2, vocab: 1000 };
/// 4 of the 32 layers: what is measured is time a layer, and the head's.
const LARGE: Sizes = Sizes { hidden: 4096, inner: 11008, heads: 32, kv_heads: 32, layers: 4, vocab: 32000 };
/// Tokens before those that are timed, steps of a measurement, measurements.
const PROMPT: usize = 256;
const STEPS: usize = 64;
const ROUNDS: usize = 7;
const PATTERN: &str = "64:2:8";

const HEAD: &str =
    "model,layers,batch,variant,prefill_tokens_per_second,decode_tokens_per_second,ratio,gigabytes_a_token";

pub fn run(device: &Arc<Device>, settings: &Settings) -> Outcome {
    let mut wrong = 0;
    for half in [HalfType::F16, HalfType::Bf16] {
        let folder = write(SMALL, half.dtype(), settings.seed)?;
        let sparse = pruned(folder.path(), half.dtype().into(), &MIXTURE);
        for (name, folder) in [("dense", folder.path()), ("pruned", sparse.path())] {
            wrong += correct(device, folder, half, &format!("a small decoder, {name}, {}", half.name()))?;
        }
    }
    speed(device, settings)?;
    Ok(wrong)
}

fn open(folder: &Path) -> Result<(Checkpoint, DecoderConfig), Box<dyn std::error::Error>> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = family::decoder(&checkpoint)?;
    Ok((checkpoint, config))
}

/// A whole text at once, and the end of it token by token.
fn correct(device: &Arc<Device>, folder: &Path, half: HalfType, what: &str) -> Outcome {
    let (checkpoint, config) = open(folder)?;
    let text: Vec<u32> = (0..100).map(|i| (i * 7919 + 13) % config.vocab_size as u32).collect();
    let whole = Config::Decoder(config.clone());
    let sample = [Sample::Tokens(text.clone())];
    let [exact, rounded] = [false, true].map(|rounded| reference(&checkpoint, &whole, &sample, half, rounded).ending);
    let model = Decoder::load(device.clone(), &checkpoint, &config, half, PackedAs::Sparse)?;
    let hidden = model.forward(&[(0, &text)], &mut model.cache(1, text.len())?)?;
    let mut session = Session::new(&model, 1, text.len())?;
    let mut by_steps = vec![session.extend(&[(0, &text[..90])])?];
    for i in 90..text.len() {
        by_steps.push(session.extend(&[(0, &text[i..=i])])?);
    }
    let end = |matrix: &Matrix| -> Result<Matrix, lacuna_core::Error> {
        let data = (0..matrix.rows()).flat_map(|row| matrix.row(row)[89..].to_vec()).collect();
        Matrix::new(matrix.rows(), text.len() - 89, data)
    };
    let joined = (0..config.vocab_size).flat_map(|row| by_steps.iter().map(move |step| step.row(row)[0]));
    let joined = Matrix::new(config.vocab_size, by_steps.len(), joined.collect())?;
    let mut wrong = 0;
    for (how, got, exact, rounded) in [
        ("whole", model.logits(&hidden, &(0..text.len()).collect::<Vec<_>>())?, exact.clone(), rounded.clone()),
        ("by steps", joined, end(&exact)?, end(&rounded)?),
    ] {
        let (off, allowed) = (difference(&got, &exact), tolerance(&exact, &rounded));
        println!("{what}, {how}: {:.2} of the tolerance", off / allowed);
        wrong += usize::from(off > allowed || off.is_nan());
    }
    Ok(wrong)
}

fn speed(device: &Arc<Device>, settings: &Settings) -> Result<(), Box<dyn std::error::Error>> {
    let mut record = Record::create(&settings.record, "gpu-models", HEAD, device)?;
    let dense = write(LARGE, Dtype::Bf16, settings.seed)?;
    let sparse = pruned(dense.path(), Dtype::Bf16.into(), &[Some(PATTERN)]);
    let (checkpoint, config) = open(sparse.path())?;
    let load = |packed_as| Decoder::load(device.clone(), &checkpoint, &config, HalfType::Bf16, packed_as);
    let models = [("dense", load(PackedAs::Dense)?), (PATTERN, load(PackedAs::Sparse)?)];
    for batch in [1, 16] {
        let prompts = vec![(0..PROMPT as u32).collect::<Vec<u32>>(); batch];
        let inputs: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
        let mut sessions = vec![];
        for (_, model) in &models {
            let mut session = Session::new(model, batch, PROMPT + 3 + ROUNDS * STEPS)?;
            // Compiled once, then timed.
            Session::new(model, batch, PROMPT)?.extend(&inputs)?;
            let started = Instant::now();
            session.extend(&inputs)?;
            let prefill = started.elapsed().as_secs_f64();
            let next = session.take_likeliest(&vec![1; batch], 3)?;
            sessions.push((session, next, prefill, vec![]));
        }
        // In turn, so that what changes on the GPU changes for both.
        for _ in 0..ROUNDS {
            for (session, next, _, seconds) in &mut sessions {
                let started = Instant::now();
                *next = session.take_likeliest(next, STEPS)?;
                seconds.push(started.elapsed().as_secs_f64() / STEPS as f64);
            }
        }
        let of_dense = median(&mut sessions[0].3.clone());
        for ((name, model), (_, _, prefill, mut seconds)) in models.iter().zip(sessions) {
            let seconds = median(&mut seconds);
            record.row(&format!(
                "llama-2-7b shapes,{},{batch},{name},{:.1},{:.1},{:.3},{:.3}",
                LARGE.layers,
                (batch * PROMPT) as f64 / prefill,
                batch as f64 / seconds,
                of_dense / seconds,
                model.bytes() as f64 / 1e9
            ))?;
        }
    }
    device.synchronize()?;
    Ok(())
}

/// A checkpoint with drawn weights.
fn write(sizes: Sizes, dtype: Dtype, seed: u64) -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let Sizes { hidden, inner, heads, kv_heads, layers, vocab } = sizes;
    let keys = hidden / heads * kv_heads;
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
        ("lm_head".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..layers {
        let parts = [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tensor = |shape: Vec<usize>| {
        let spread = 1.7 / (*shape.last().unwrap_or(&1) as f32).sqrt();
        let bits = (0..shape.iter().product()).map(|_| {
            let value = if shape.len() == 1 { 1.0 } else { rng.random_range(-spread..spread) };
            if dtype == Dtype::Bf16 { bf16::from_f32(value).to_bits() } else { HalfType::F16.round(value) }
        });
        let bytes: Vec<u8> = bits.flat_map(u16::to_le_bytes).collect();
        let stored = if dtype == Dtype::Bf16 { TensorDtype::BF16 } else { TensorDtype::F16 };
        OutTensor::new(stored, shape, bytes)
    };
    let tensors: Vec<(String, OutTensor)> =
        shapes.into_iter().map(|(name, shape)| (format!("{name}.weight"), tensor(shape))).collect();
    let folder = tempfile::tempdir()?;
    let views = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors"))?;
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    fs::write(folder.path().join("config.json"), config.to_string())?;
    Ok(folder)
}

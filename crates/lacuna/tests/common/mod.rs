//! A tiny random LLaMA-like checkpoint in a temporary directory, ways to damage it, a way to run `lacuna` beside it.
#![allow(dead_code, unused_imports)] // each test file uses its own part

mod encoders;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use encoders::{CLASSES, IMAGES, PAIRS};

pub const VOCAB: usize = 60;
pub const CONTEXT: usize = 64;
pub const WEIGHTS: &str = "model/model.safetensors";
pub const INDEX: &str = "model/model.safetensors.index.json";
pub const Q: &str = "model.layers.0.self_attn.q_proj.weight";
pub const PRUNE: &str = "prune model out --pattern 16:2:8 --recipe magnitude";
pub const WANDA: &str = "prune model out --pattern 16:2:8 --recipe wanda --calibration";
/// Asked wrongly.
pub const USAGE: i32 = 2;
/// Everything else.
pub const FAILED: i32 = 1;

const HIDDEN: usize = 64;
const INNER: usize = 96;
const LAYERS: usize = 2;
const KEYS: usize = 32;
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// One tensor of a safetensors file.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Values in an interval around 0 that keeps logits lively.
    fn random(shape: &[usize], dtype: Dtype, rng: &mut ChaCha8Rng) -> Self {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-0.3..0.3)).collect();
        Self::of_f32(shape, dtype, &values)
    }

    /// bf16 by cutting off.
    pub fn of_f32(shape: &[usize], dtype: Dtype, values: &[f32]) -> Self {
        let data = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
            other => panic!("no conversion to {other:?} here"),
        };
        Self { dtype, shape: shape.to_vec(), data }
    }

    pub fn set_f32(&mut self, element: usize, value: f32) {
        assert_eq!(self.dtype, Dtype::F32);
        self.data[element * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn f32s(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::BF16 => {
                let halves = self.data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
                halves.map(|h| f32::from_bits(u32::from(h) << 16)).collect()
            }
            other => panic!("no conversion from {other:?} here"),
        }
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own =
        |view: TensorView| Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() };
    file.iter().map(|(name, view)| (name.to_owned(), own(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// All tensors of a checkpoint directory.
pub fn read_checkpoint(dir: &Path) -> Tensors {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).flat_map(|p| read_tensors(&p)).collect()
}

/// Name and content of every file in a directory.
pub fn read_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap())).collect()
}

/// What a run of the command left behind.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        self
    }

    pub fn json(self) -> Value {
        let run = self.ok();
        serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout))
    }
}

/// The run must have failed with `code` and one line on stderr that holds all of `words`, and must have left no output.
pub fn refused(tiny: &Tiny, run: &Run, code: i32, words: &[&str]) {
    let Run { stdout, stderr, .. } = run;
    assert_eq!(run.code, Some(code), "exit code; stderr: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "not one line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
    assert_eq!(stdout, "", "stdout");
    assert!(!tiny.path("out").exists(), "left output behind; stderr: {stderr}");
}

pub fn refuses(tiny: &Tiny, command: &str, code: i32, words: &[&str]) {
    refused(tiny, &tiny.lacuna(command), code, words);
}

/// A temporary directory with a checkpoint `model` and texts `text.txt` and `held.jsonl`.
pub struct Tiny {
    dir: TempDir,
}

impl Tiny {
    /// f32, one file.
    pub fn new() -> Self {
        Self::with(Dtype::F32, 1)
    }

    /// As many shards as asked for, under an index if there are several.
    pub fn with(dtype: Dtype, shards: usize) -> Self {
        let tiny = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(tiny.path("model")).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let tensors = random_tensors(dtype, &mut rng);
        if shards == 1 {
            write_tensors(&tiny.path(WEIGHTS), &tensors);
        } else {
            let mut parts = vec![Tensors::new(); shards];
            for (i, (name, tensor)) in tensors.into_iter().enumerate() {
                parts[i % shards].insert(name, tensor);
            }
            for (i, part) in parts.iter().enumerate() {
                write_tensors(&tiny.path(&format!("model/model-{:05}-of-{shards:05}.safetensors", i + 1)), part);
            }
            tiny.write_index("model");
        }
        tiny.write_json("model/config.json", &config());
        tiny.write_json("model/tokenizer.json", &tokenizer());
        tiny.write_json("model/tokenizer_config.json", &json!({ "add_bos_token": true }));
        let sentences: Vec<String> = (0..40).map(|_| sentence(&mut rng)).collect();
        tiny.write("text.txt", sentences.join("\n").as_bytes());
        let lines: Vec<String> = (0..6).map(|_| json!({ "text": sentence(&mut rng) }).to_string()).collect();
        tiny.write("held.jsonl", lines.join("\n").as_bytes());
        tiny
    }

    /// With a pruned copy under `sparse`.
    pub fn pruned() -> Self {
        let tiny = Self::new();
        tiny.lacuna("prune model sparse --pattern 16:2:8 --recipe magnitude").ok();
        tiny
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn write_json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    pub fn read_json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Writes the index that the shards of a directory ask for.
    pub fn write_index(&self, dir: &str) {
        let mut map = BTreeMap::new();
        for name in read_files(&self.path(dir)).into_keys().filter(|name| name.ends_with(".safetensors")) {
            let tensors = read_tensors(&self.path(dir).join(&name));
            map.extend(tensors.into_keys().map(|tensor| (tensor, name.clone())));
        }
        self.write_json(&format!("{dir}/model.safetensors.index.json"), &json!({ "weight_map": map }));
    }

    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = self.read_json(name);
        edit(&mut value);
        self.write_json(name, &value);
    }

    pub fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_json("model/config.json", edit);
    }

    pub fn edit_bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        edit(&mut bytes);
        self.write(name, &bytes);
    }

    /// Edits the JSON header of a safetensors file; the data stays as it is.
    pub fn edit_header(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.edit_bytes(name, |bytes| {
            let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let mut header = serde_json::from_slice(&bytes[8..end]).unwrap();
            edit(&mut header);
            let header = header.to_string();
            let length = (header.len() as u64).to_le_bytes();
            *bytes = [&length, header.as_bytes(), &bytes[end..]].concat();
        });
    }

    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut Tensors)) {
        let mut tensors = read_tensors(&self.path(name));
        edit(&mut tensors);
        write_tensors(&self.path(name), &tensors);
    }

    /// Runs `lacuna` with the words of `command`, in the temporary directory.
    pub fn lacuna(&self, command: &str) -> Run {
        self.lacuna_args(&command.split_whitespace().collect::<Vec<_>>())
    }

    pub fn lacuna_args(&self, args: &[&str]) -> Run {
        self.run(Command::new(env!("CARGO_BIN_EXE_lacuna")).args(args))
    }

    /// Runs `lacuna` where no file may grow beyond so many blocks of 512 bytes, as on a disk that is full.
    #[cfg(unix)]
    pub fn lacuna_on_a_full_disk(&self, blocks: usize, command: &str) -> Run {
        let lacuna = env!("CARGO_BIN_EXE_lacuna");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec '{lacuna}' {command}");
        self.run(Command::new("sh").args(["-c", &script]))
    }

    fn run(&self, command: &mut Command) -> Run {
        let output = command.current_dir(self.root()).timeout(Duration::from_secs(300)).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Names of everything in the temporary directory.
    pub fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
}

fn random_tensors(dtype: Dtype, rng: &mut ChaCha8Rng) -> Tensors {
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
        ("lm_head".to_owned(), vec![VOCAB, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let parts = [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEYS, HIDDEN]),
            ("self_attn.v_proj", vec![KEYS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let values = match shape[..] {
            // norms scale by about 1
            [n] => Tensor::of_f32(&shape, dtype, &vec![1.0; n]),
            _ => Tensor::random(&shape, dtype, rng),
        };
        (format!("{name}.weight"), values)
    };
    shapes.into_iter().map(tensor).collect()
}

/// Made-up words of two letters.
fn words() -> impl Iterator<Item = String> {
    let syllables = "bdfgklmnprstvz".chars().flat_map(|c| "aeiou".chars().map(move |v| format!("{c}{v}")));
    syllables.take(VOCAB - SPECIAL.len())
}

pub fn sentence(rng: &mut ChaCha8Rng) -> String {
    let words: Vec<String> = words().collect();
    let length = rng.random_range(10..30);
    (0..length).map(|_| words[rng.random_range(0..words.len())].clone()).collect::<Vec<_>>().join(" ")
}

/// One token a word.
fn tokenizer() -> Value {
    let tokens = SPECIAL.map(str::to_owned).into_iter().chain(words()).enumerate();
    let vocab: serde_json::Map<String, Value> = tokens.map(|(id, token)| (token, json!(id))).collect();
    let special = |(id, token): (usize, &&str)| {
        json!({
            "id": id, "content": token, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
}

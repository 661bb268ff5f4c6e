//! Golden encoders of lacuna-model as checkpoints that the command can use: with a tokenizer, sentences and scored pairs,
//! or with an image processor and images.

use std::fs;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Tiny, words};

/// Tokens of every golden text encoder.
const VOCAB: usize = 40;
const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
/// Pairs of sentences.
pub const PAIRS: usize = 8;
/// Classes of every golden image classifier.
pub const CLASSES: usize = 5;
/// Images, three of each class; every fifth is for calibration.
pub const IMAGES: usize = 3 * CLASSES;

impl Tiny {
    /// A temporary directory with a golden text encoder `model`; `sts.csv`, and its sentences in `sentences.txt` and
    /// `sentences.jsonl`.
    pub fn text_encoder(case: &str) -> Self {
        let tiny = Self::golden(case);
        tiny.write_json("model/tokenizer.json", &tokenizer());
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let pairs: Vec<[String; 2]> = (0..PAIRS).map(|_| [sentence(&mut rng), sentence(&mut rng)]).collect();
        let scored =
            |(i, [a, b]): (usize, &[String; 2])| format!("made\tup\there\t{i}\t{:.3}\t{a}\t{b}\n", i as f64 * 0.5);
        tiny.write("sts.csv", pairs.iter().enumerate().map(scored).collect::<String>().as_bytes());
        let sentences = pairs.concat();
        tiny.write("sentences.txt", sentences.join("\n").as_bytes());
        let lines: Vec<String> = sentences.iter().map(|text| json!({ "text": text }).to_string()).collect();
        tiny.write("sentences.jsonl", lines.join("\n").as_bytes());
        tiny
    }

    /// A temporary directory with a golden image classifier `model`, and `images` in folders named by their class.
    pub fn image_classifier(case: &str) -> Self {
        let tiny = Self::golden(case);
        let config = tiny.read_json("model/config.json");
        let size = config.get("image_size").unwrap_or(&config["model_args"]["img_size"]);
        let size = json!({ "height": size.get(0).unwrap_or(size), "width": size.get(1).unwrap_or(size) });
        let processor = json!({ "image_processor_type": "ViTImageProcessor", "size": size });
        tiny.write_json("model/preprocessor_config.json", &processor);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for class in 0..CLASSES {
            fs::create_dir_all(tiny.path(&format!("images/{class}"))).unwrap();
            for name in ["a", "b", "c"] {
                let size = [rng.random_range(9..40), rng.random_range(9..40)];
                tiny.write(&format!("images/{class}/{name}.png"), &png(size, &mut rng));
            }
        }
        tiny
    }

    fn golden(case: &str) -> Self {
        let tiny = Self { dir: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lacuna-model/tests/golden_encoders");
        copy(&golden.join(case), &tiny.path("model"));
        fs::remove_file(tiny.path("model/reference.safetensors")).unwrap();
        tiny
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for path in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// An image of noise.
fn png([height, width]: [u32; 2], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let levels: Vec<u8> = (0..height * width * 3).map(|_| rng.random()).collect();
    encoder.write_header().unwrap().write_image_data(&levels).unwrap();
    bytes
}

/// Words that the vocabulary has.
fn known() -> Vec<String> {
    words().take(VOCAB - SPECIAL.len()).collect()
}

fn sentence(rng: &mut ChaCha8Rng) -> String {
    let (words, length) = (known(), rng.random_range(3..9));
    (0..length).map(|_| words[rng.random_range(0..words.len())].clone()).collect::<Vec<_>>().join(" ")
}

/// One token a word, between [CLS] and [SEP].
fn tokenizer() -> Value {
    let tokens = SPECIAL.map(str::to_owned).into_iter().chain(known()).enumerate();
    let vocab: serde_json::Map<String, Value> = tokens.map(|(id, token)| (token, json!(id))).collect();
    let special = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let named = |token: &str| json!({ "id": token, "ids": [vocab[token]], "tokens": [token] });
    let template = [special("[CLS]"), json!({ "Sequence": { "id": "A", "type_id": 0 } }), special("[SEP]")];
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": { "[CLS]": named("[CLS]"), "[SEP]": named("[SEP]") },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    })
}

//! Images are decoded, resized, cropped and normalised as transformers and timm do it on Pillow, bit for bit (the goldens
//! of `golden/make_images.py`); what cannot be used is refused with a sentence that names the file.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_format::{ImageProcessor, RgbImage};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// CRC-32 of the header that `broken_images_are_refused_by_name` writes.
const BOMB_CHECKSUM: [u8; 4] = [0x0f, 0xb0, 0xe2, 0x15];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images").join(name)
}

/// A checkpoint that has only `value` in `file`.
fn checkpoint(file: &str, value: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(file), value.to_string()).unwrap();
    dir
}

fn vit(changes: Value) -> Value {
    let mut config = json!({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 6}});
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    config.as_object_mut().unwrap().extend(changes);
    config
}

fn processor(config: &Value) -> ImageProcessor {
    ImageProcessor::open(checkpoint("preprocessor_config.json", config).path()).unwrap()
}

/// The sentence with which a configuration is refused.
fn refusal(file: &str, config: &Value) -> String {
    let dir = checkpoint(file, config);
    let message = ImageProcessor::open(dir.path()).err().expect("refused").to_string();
    assert!(message.contains(file) && message.contains(';') && !message.contains('\n'), "{message}");
    message
}

#[test]
fn as_transformers_and_timm() {
    let cases: Value = serde_json::from_slice(&fs::read(golden("cases.json")).unwrap()).unwrap();
    let bytes = fs::read(golden("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for case in cases.as_array().unwrap() {
        let (name, config) = (case["name"].as_str().unwrap(), &case["config"]);
        let dir = if config["image_processor_type"].is_string() {
            checkpoint("preprocessor_config.json", config)
        } else {
            checkpoint("config.json", &json!({"pretrained_cfg": config}))
        };
        let processor = ImageProcessor::open(dir.path()).unwrap();
        let pixels = processor.pixels(&golden(case["image"].as_str().unwrap())).unwrap();
        let tensor = expected.tensor(name).unwrap();
        let [height, width] = processor.size();
        assert_eq!(tensor.shape(), [3, height, width], "{name}");
        let expected = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        // Equal, not close: one level of difference is a fault in decoding or resizing.
        assert!(pixels.iter().copied().eq(expected), "{name}");
    }
}

#[test]
fn configurations_are_refused_by_name() {
    let file = "preprocessor_config.json";
    for (changes, word) in [
        (json!({"resample": 4}), "resample 4"),
        (json!({"resample": "bicubic"}), "resample"),
        (json!({"image_processor_type": "ConvNextImageProcessor"}), "ConvNextImageProcessor"),
        (json!({"image_processor_type": null}), "image_processor_type"),
        (json!({"size": {"shortest_edge": 8}}), "do_center_crop"),
        (json!({"size": {"shortest_edge": 8, "longest_edge": 9}}), "longest_edge"),
        (json!({"size": {"height": 0, "width": 6}}), "size"),
        (json!({"size": 1_000_000}), "too many"),
        (json!({"do_resize": false}), "do_center_crop"),
        (json!({"do_center_crop": "yes"}), "do_center_crop"),
        (json!({"do_center_crop": true, "crop_size": [1]}), "crop_size"),
        (json!({"do_pad": true}), "do_pad"),
        (json!({"rescale_factor": "a"}), "rescale_factor"),
        (json!({"image_mean": [0.5]}), "image_mean"),
    ] {
        let message = refusal(file, &vit(changes));
        assert!(message.contains(word), "{message}");
    }
    for (changes, word) in [
        (json!({"interpolation": "hamming"}), "hamming"),
        (json!({"crop_mode": "border"}), "border"),
        (json!({"crop_pct": 0}), "crop_pct"),
        (json!({"input_size": [1, 8, 8]}), "input_size"),
        (json!({"input_size": [3, 8, 9]}), "8 x 9"),
    ] {
        let message = refusal("config.json", &json!({"pretrained_cfg": changes}));
        assert!(message.contains(word), "{message}");
    }
    let message = ImageProcessor::open(TempDir::new().unwrap().path()).err().unwrap().to_string();
    assert!(message.contains("preprocessor_config.json: missing"), "{message}");
}

#[test]
fn broken_images_are_refused_by_name() {
    let processor = processor(&vit(json!({})));
    let dir = TempDir::new().unwrap();
    let (jpeg, png) = (fs::read(golden("420.jpg")).unwrap(), fs::read(golden("rgb.png")).unwrap());
    // The PNG's header says 60,000 x 60,000, with a checksum that fits.
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    bomb[29..33].copy_from_slice(&BOMB_CHECKSUM);
    // The first channel of a CMYK image on a finer grid than the others.
    let mut subsampled = fs::read(golden("cmyk.jpg")).unwrap();
    let frame = subsampled.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    subsampled[frame + 11] = 0x22;
    for (name, bytes) in [
        ("subsampled.jpg", &subsampled[..]),
        ("empty.jpg", &[]),
        ("text.png", b"not an image"),
        ("cut.jpg", &jpeg[..jpeg.len() / 2]),
        ("cut.png", &png[..png.len() / 2]),
        ("start.jpg", &jpeg[..2]),
        ("bomb.png", &bomb),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let message = processor.pixels(&path).expect_err(name).to_string();
        assert!(message.contains(name) && message.contains(';') && !message.contains('\n'), "{message}");
        assert_eq!(message.contains("too many"), name.starts_with("bomb"), "{message}");
    }
    let message = processor.pixels(&dir.path().join("absent.jpg")).unwrap_err().to_string();
    assert!(message.contains("absent.jpg"), "{message}");
}

#[test]
fn an_image_that_grows_too_large_is_refused() {
    let crop = json!({"size": {"shortest_edge": 1000}, "do_center_crop": true, "crop_size": 8});
    let thread = RgbImage::new([1, 100_000], vec![0; 300_000]).unwrap();
    let message = processor(&vit(crop)).pixels_of(thread).unwrap_err();
    assert!(message.contains("too many"), "{message}");
    assert!(RgbImage::new([0, 5], vec![]).is_err());
    assert!(RgbImage::new([2, 2], vec![0; 11]).is_err());
}

proptest! {
    /// An even image stays even, whatever the sizes: weights add up to one.
    #[test]
    fn even_images_stay_even(from in [1..60usize, 1..60usize], to in [1..60usize, 1..60usize], resample in 0..4u8, level: u8) {
        let config = json!({"size": to, "resample": resample, "do_rescale": false, "do_normalize": false});
        let image = RgbImage::new(from, vec![level; from[0] * from[1] * 3]).unwrap();
        let pixels = processor(&vit(config)).pixels_of(image).unwrap();
        prop_assert_eq!(pixels, vec![f32::from(level); to[0] * to[1] * 3]);
    }

    /// A damaged file is decoded or refused; nothing panics.
    #[test]
    fn damaged_files_do_not_panic(which in 0..4usize, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = fs::read(golden(["420.jpg", "444-progressive.jpg", "cmyk.jpg", "palette.png"][which])).unwrap();
        for (at, value) in damage {
            *at.get_mut(&mut bytes) = value;
        }
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("damaged"), bytes).unwrap();
        let _ = RgbImage::open(&dir.path().join("damaged"));
    }
}

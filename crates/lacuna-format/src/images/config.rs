//! What is done to an image, read from preprocessor_config.json (Hugging Face) or `pretrained_cfg` (timm).
//!
//! A key that is not there has the default of the image processor's class, as in transformers. What would change an image
//! in a way that is not done here is refused by name.

use serde_json::Value;

use super::resize::Filter;

/// A sentence for people, without the file's name.
type Result<T> = std::result::Result<T, String>;

/// What is done to an image, in this order.
pub(super) struct Steps {
    pub resize: Option<(Target, Filter)>,
    /// `[height, width]` of the centre that is cut out
    pub crop: Option<[usize; 2]>,
    pub rounding: Rounding,
    /// what levels are multiplied with
    pub rescale_factor: Option<f64>,
    /// mean and standard deviation of each channel
    pub normalize: Option<[[f32; 3]; 2]>,
}

/// What an image is resized to.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// `[height, width]`, whatever the image's proportions
    Exact([usize; 2]),
    /// proportions are kept; this is the shorter side
    ShortestEdge(usize),
}

/// Where the centre lies if it cannot be in the middle.
#[derive(Clone, Copy)]
pub(super) enum Rounding {
    /// transformers: towards the beginning
    Floor,
    /// torchvision, hence timm: to the even offset
    HalfToEven,
}

/// A class of image processors in transformers: what it does where the configuration is silent.
struct Class {
    /// its name without `ImageProcessor` or `FeatureExtractor`
    name: &'static str,
    target: Target,
    filter: Filter,
    crop: Option<[usize; 2]>,
    normalize: [[f32; 3]; 2],
}

const HALVES: [[f32; 3]; 2] = [[0.5; 3], [0.5; 3]];
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
const OPENAI_CLIP: [[f32; 3]; 2] =
    [[0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]];

const CLASSES: [Class; 5] = [
    Class { name: "ViT", target: Target::Exact([224; 2]), filter: Filter::Bilinear, crop: None, normalize: HALVES },
    Class {
        name: "DeiT",
        target: Target::Exact([256; 2]),
        filter: Filter::Bicubic,
        crop: Some([224; 2]),
        normalize: HALVES,
    },
    Class {
        name: "CLIP",
        target: Target::ShortestEdge(224),
        filter: Filter::Bicubic,
        crop: Some([224; 2]),
        normalize: OPENAI_CLIP,
    },
    Class {
        name: "Bit",
        target: Target::ShortestEdge(224),
        filter: Filter::Bicubic,
        crop: Some([224; 2]),
        normalize: OPENAI_CLIP,
    },
    Class { name: "Siglip", target: Target::Exact([224; 2]), filter: Filter::Bicubic, crop: None, normalize: HALVES },
];

/// Steps of a preprocessor_config.json.
pub(super) fn huggingface(config: &Value) -> Result<Steps> {
    let class = class(config)?;
    if config["do_pad"].as_bool() == Some(true) {
        return Err("do_pad is not supported; use a checkpoint whose images are resized or cropped".to_owned());
    }
    let target = match &config["size"] {
        Value::Null => class.target,
        Value::Object(size) if size.len() == 1 && size.contains_key("shortest_edge") => {
            Target::ShortestEdge(length(&config["size"]["shortest_edge"], "size")?)
        }
        // A bare number is the shorter side for the classes that keep proportions, and both sides for the others.
        Value::Number(_) if ["CLIP", "Bit", "Siglip"].contains(&class.name) => {
            Target::ShortestEdge(length(&config["size"], "size")?)
        }
        size => Target::Exact(height_and_width(size, "size")?),
    };
    let filter = match config["resample"].as_u64() {
        Some(0) => Filter::Nearest,
        Some(1) => Filter::Lanczos,
        Some(2) => Filter::Bilinear,
        Some(3) => Filter::Bicubic,
        None if config["resample"].is_null() => class.filter,
        _ => {
            let known = "use 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
            return Err(format!("resample {} is not supported; {known}", config["resample"]));
        }
    };
    let crop = match &config["crop_size"] {
        Value::Null => class.crop.unwrap_or([224; 2]),
        size => height_and_width(size, "crop_size")?,
    };
    let rescale_factor = match &config["rescale_factor"] {
        Value::Null => 1.0 / 255.0,
        factor => factor.as_f64().ok_or_else(|| format!("rescale_factor {factor} is not a number; correct it"))?,
    };
    let normalize = [
        channels(&config["image_mean"], "image_mean", class.normalize[0])?,
        channels(&config["image_std"], "image_std", class.normalize[1])?,
    ];
    let wanted = |key: &str, default: bool| match &config[key] {
        Value::Null => Ok(default),
        value => value.as_bool().ok_or_else(|| format!("{key} is {value}; make it true or false")),
    };
    Ok(Steps {
        resize: wanted("do_resize", true)?.then_some((target, filter)),
        crop: wanted("do_center_crop", class.crop.is_some())?.then_some(crop),
        // A class that never crops in transformers has its crop from timm, whose weights it holds.
        rounding: if class.crop.is_some() { Rounding::Floor } else { Rounding::HalfToEven },
        rescale_factor: wanted("do_rescale", true)?.then_some(rescale_factor),
        normalize: wanted("do_normalize", true)?.then_some(normalize),
    })
}

fn class(config: &Value) -> Result<&'static Class> {
    let known = CLASSES.map(|class| format!("{}ImageProcessor", class.name)).join(", ");
    // Before transformers 4.25 image processors were called feature extractors.
    let name = config["image_processor_type"].as_str().or_else(|| config["feature_extractor_type"].as_str());
    let name = name.ok_or_else(|| format!("does not say image_processor_type; add it, one of {known}"))?;
    let stem = name.strip_suffix("Fast").unwrap_or(name);
    let stem = stem.strip_suffix("ImageProcessor").or_else(|| stem.strip_suffix("FeatureExtractor"));
    let class = CLASSES.iter().find(|class| Some(class.name) == stem);
    class.ok_or_else(|| format!("image_processor_type {name} is not supported; use a checkpoint with one of {known}"))
}

/// Steps of timm's evaluation, from `pretrained_cfg`.
pub(super) fn timm(config: &Value) -> Result<Steps> {
    let size = match config["input_size"].as_array().map(Vec::as_slice) {
        None if config["input_size"].is_null() => [224; 2],
        Some([channels, height, width]) if channels.as_u64() == Some(3) => {
            [length(height, "input_size")?, length(width, "input_size")?]
        }
        _ => {
            let found = &config["input_size"];
            return Err(format!("input_size {found} is not supported; use a checkpoint with [3, height, width]"));
        }
    };
    let crop_pct = match &config["crop_pct"] {
        Value::Null => 0.875,
        crop_pct => match crop_pct.as_f64() {
            Some(fraction) if fraction > 0.0 => fraction,
            _ => return Err(format!("crop_pct {crop_pct} is not a positive number; correct it")),
        },
    };
    let resized = size.map(|side| (side as f64 / crop_pct).floor() as usize);
    let target = match config["crop_mode"].as_str() {
        None | Some("center") if resized[0] == resized[1] => Target::ShortestEdge(resized[0]),
        None | Some("center") => {
            let [height, width] = size;
            return Err(format!("input_size {height} x {width} is not supported; use a checkpoint with square images"));
        }
        Some("squash") => Target::Exact(resized),
        Some(mode) => return Err(format!("crop_mode {mode} is not supported; use a checkpoint with center or squash")),
    };
    let filter = match config["interpolation"].as_str() {
        None | Some("bicubic") => Filter::Bicubic,
        Some("bilinear") => Filter::Bilinear,
        Some("lanczos") => Filter::Lanczos,
        Some("nearest") => Filter::Nearest,
        Some(name) => {
            let known = "use a checkpoint with bicubic, bilinear, lanczos or nearest";
            return Err(format!("interpolation {name} is not supported; {known}"));
        }
    };
    Ok(Steps {
        resize: Some((target, filter)),
        crop: Some(size),
        rounding: Rounding::HalfToEven,
        rescale_factor: Some(1.0 / 255.0),
        normalize: Some([
            channels(&config["mean"], "mean", IMAGENET[0])?,
            channels(&config["std"], "std", IMAGENET[1])?,
        ]),
    })
}

/// `[height, width]` from a number (both), a pair, or an object with `height` and `width`.
fn height_and_width(value: &Value, key: &str) -> Result<[usize; 2]> {
    match value {
        Value::Number(_) => length(value, key).map(|side| [side; 2]),
        Value::Array(pair) if pair.len() == 2 => Ok([length(&pair[0], key)?, length(&pair[1], key)?]),
        Value::Object(sides) if sides.len() == 2 && sides.contains_key("height") && sides.contains_key("width") => {
            Ok([length(&sides["height"], key)?, length(&sides["width"], key)?])
        }
        _ => Err(format!("{key} {value} is not supported; use a checkpoint with height and width, or shortest_edge")),
    }
}

/// A positive number of pixels.
fn length(value: &Value, key: &str) -> Result<usize> {
    let pixels = value.as_u64().and_then(|pixels| u32::try_from(pixels).ok()).filter(|&pixels| pixels > 0);
    let pixels = pixels.ok_or_else(|| format!("{key} has {value} for a number of pixels; correct it"))?;
    Ok(pixels as usize)
}

/// Three numbers, or one for all three channels.
fn channels(value: &Value, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let numbers: Option<Vec<f32>> = match value {
        Value::Null => return Ok(default),
        Value::Array(values) => values.iter().map(|value| value.as_f64().map(|number| number as f32)).collect(),
        value => value.as_f64().map(|number| vec![number as f32; 3]),
    };
    let numbers = numbers.and_then(|numbers| <[f32; 3]>::try_from(numbers).ok());
    numbers.ok_or_else(|| format!("{key} {value} is not a number for each of 3 channels; correct it"))
}

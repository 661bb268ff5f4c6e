//! ViT and DeiT from Hugging Face: patches as tokens, LayerNorm before each sublayer, a plain MLP; DeiT adds a token, and
//! with a teacher a second classifier.
//!
//! transformers 5 can also save them by the names of its newer modules, `layers.0.attention.q_proj`; both are read.
//! Defaults of missing keys are those of Hugging Face transformers' `ViTConfig` and `DeiTConfig`.

use lacuna_format::Checkpoint;
use serde_json::Value;

use super::encoder;
use super::keys::{flag, optional};
use crate::{BlockNames, Config, NormPlace, Qkv, VisionConfig, VisionNames};

type Result<T> = std::result::Result<T, String>;

/// ViT, DeiT.
pub(super) fn vit(checkpoint: &Checkpoint) -> Result<Config> {
    let config = checkpoint.config();
    let (image, patch) = (pair(config, "image_size", 224)?, pair(config, "patch_size", 16)?);
    check_patches(image, patch)?;
    // Saved inside a classifier, an encoder's tensors have its name before theirs.
    let class_token = "embeddings.cls_token";
    let prefix = checkpoint.tensors().keys().find_map(|name| name.strip_suffix(class_token));
    let prefix =
        prefix.ok_or_else(|| format!("this checkpoint has no tensor {class_token}, which the family needs"))?;
    let distilled = format!("{prefix}embeddings.distillation_token");
    let tokens = [Some(format!("{prefix}{class_token}")), checkpoint.has(&distilled).then_some(distilled)];
    let heads_by_name = [&["classifier"][..], &["cls_classifier", "distillation_classifier"]];
    let present = |names: &&[&str]| names.iter().all(|name| has_linear(checkpoint, name));
    let head_names = heads_by_name.into_iter().find(present).unwrap_or_default();
    Ok(Config::Vision(VisionConfig {
        blocks: encoder::blocks(
            config,
            NormPlace::BeforeSublayer,
            flag(config, "qkv_bias", true)?,
            block_names(checkpoint, prefix),
        )?,
        names: VisionNames {
            tokens: tokens.into_iter().flatten().collect(),
            positions: format!("{prefix}embeddings.position_embeddings"),
            patches: format!("{prefix}embeddings.patch_embeddings.projection"),
            norm: format!("{prefix}layernorm"),
            heads: head_names.iter().map(|&name| name.to_owned()).collect(),
        },
        channels: optional(config, "num_channels")?.unwrap_or(3),
        image,
        patch,
        labels: labels(config, head_names.first().and_then(|name| rows_of(checkpoint, name))),
    }))
}

fn block_names(checkpoint: &Checkpoint, prefix: &str) -> BlockNames {
    let norms = ["layernorm_before", "layernorm_after"];
    if checkpoint.has(&format!("{prefix}layers.0.layernorm_before.weight")) {
        return BlockNames {
            prefix: format!("{prefix}layers"),
            norms,
            qkv: Qkv::Apart(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
            o: "attention.o_proj",
            gate: None,
            up: "mlp.fc1",
            down: "mlp.fc2",
        };
    }
    BlockNames {
        prefix: format!("{prefix}encoder.layer"),
        norms,
        qkv: Qkv::Apart(["attention.attention.query", "attention.attention.key", "attention.attention.value"]),
        o: "attention.output.dense",
        gate: None,
        up: "intermediate.dense",
        down: "output.dense",
    }
}

/// Whether a checkpoint has a linear layer, dense or packed.
pub(super) fn has_linear(checkpoint: &Checkpoint, name: &str) -> bool {
    rows_of(checkpoint, name).is_some()
}

/// `out_features` of a linear layer, dense or packed.
pub(super) fn rows_of(checkpoint: &Checkpoint, name: &str) -> Option<usize> {
    let packed = checkpoint.sparsity().and_then(|sparsity| sparsity.layer(name)).map(|(_, [rows, _])| rows);
    packed.or_else(|| checkpoint.tensors().get(&format!("{name}.weight"))?.shape.first().copied())
}

/// Refuses images that are no whole number of patches.
pub(super) fn check_patches(image: [usize; 2], patch: [usize; 2]) -> Result<()> {
    let fits = image.iter().zip(patch).all(|(image, patch)| image % patch == 0);
    fits.then_some(()).ok_or_else(|| format!("image_size {image:?} is no multiple of patch_size {patch:?}"))
}

/// Height and width, given as one number or two.
fn pair(config: &Value, key: &str, default: usize) -> Result<[usize; 2]> {
    let Some(Value::Array(sizes)) = config.get(key) else {
        return optional(config, key).map(|size| [size.unwrap_or(default); 2]);
    };
    let sizes: Vec<usize> = sizes.iter().filter_map(Value::as_u64).map(|size| size as usize).collect();
    match sizes[..] {
        [height, width] if (1..=1 << 16).contains(&height) && (1..=1 << 16).contains(&width) => Ok([height, width]),
        _ => Err(format!("{key} is {}; it must be one size, or height and width", config[key])),
    }
}

/// Names of the classes by `id2label`; of those it leaves out, the number.
pub(super) fn labels(config: &Value, classes: Option<usize>) -> Vec<String> {
    let label = |class: usize| {
        let name = config.get("id2label").and_then(|names| names.get(class.to_string())).and_then(Value::as_str);
        name.map_or_else(|| class.to_string(), str::to_owned)
    };
    (0..classes.unwrap_or(0)).map(label).collect()
}

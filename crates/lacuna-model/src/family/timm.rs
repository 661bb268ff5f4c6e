//! ViT and DeiT as timm saves them: queries, keys and values in one weight, its own names, and a config.json that names an
//! architecture. Sizes come from the tensors, since the architecture's name is all that the config says of them.

use lacuna_format::Checkpoint;
use serde_json::Value;

use super::keys::{even_head_dim, optional, text};
use super::vit::{check_patches, has_linear, labels, rows_of};
use crate::{Activation, BlockConfig, BlockNames, Config, NormKind, NormPlace, Qkv, View, VisionConfig, VisionNames};

type Result<T> = std::result::Result<T, String>;

/// Heads by the size in an architecture's name.
const HEADS: [(&str, usize); 5] = [("_tiny_", 3), ("_small_", 6), ("_base_", 12), ("_large_", 16), ("_huge_", 16)];

/// Arguments of timm's VisionTransformer that leave it the architecture that is run here.
const ARGUMENTS: [&str; 11] = [
    "depth",
    "embed_dim",
    "global_pool",
    "img_size",
    "in_chans",
    "mlp_ratio",
    "num_classes",
    "num_heads",
    "patch_size",
    "qkv_bias",
    "distilled",
];

/// An architecture by its name, such as `vit_tiny_patch16_224` or `deit_base_distilled_patch16_224`.
pub(super) fn timm(checkpoint: &Checkpoint, architecture: &str) -> Result<Config> {
    if !(architecture.starts_with("vit_") || architecture.starts_with("deit_")) {
        return Err(format!("architecture {architecture} is not supported; of timm's, vit_* and deit_* are"));
    }
    let config = checkpoint.config();
    let null = Value::Null;
    let args = config.get("model_args").unwrap_or(&null);
    let shape = |name: &str| {
        let info = checkpoint.tensors().get(name);
        info.map(|info| &info.shape[..]).ok_or_else(|| format!("architecture {architecture} needs a tensor {name}"))
    };
    let supported = |key: &String| ARGUMENTS.contains(&key.as_str());
    if let Some(key) = args.as_object().and_then(|args| args.keys().find(|key| !supported(key))) {
        return Err(format!("model_args has {key}, which is not supported; supported are {}", ARGUMENTS.join(", ")));
    }
    for (place, settings) in [("config.json", config), ("model_args", args)] {
        let pool = text(settings, "global_pool", "token")?;
        if pool != "token" {
            return Err(format!("global_pool {pool} in {place} is not supported; this family runs with token"));
        }
    }
    let &[hidden_size, channels, tall, wide] = shape("patch_embed.proj.weight")? else {
        return Err("tensor patch_embed.proj.weight must have 4 dimensions".to_owned());
    };
    let by_name = HEADS.iter().find(|(size, _)| architecture.contains(size)).map(|&(_, heads)| heads);
    let heads = optional(args, "num_heads")?.or(by_name);
    let heads = heads.ok_or_else(|| format!("architecture {architecture} does not say how many heads it has"))?;
    let blocks = (0..).take_while(|layer| checkpoint.has(&format!("blocks.{layer}.norm1.weight")));
    let layers = blocks.count();
    let up = rows_of(checkpoint, "blocks.0.mlp.fc1").ok_or("architecture needs a layer blocks.0.mlp.fc1")?;
    let image = image_size(config, args)?;
    check_patches(image, [tall, wide])?;
    let heads_present = ["head", "head_dist"].into_iter().filter(|name| has_linear(checkpoint, name));
    let head_names: Vec<String> = heads_present.map(str::to_owned).collect();
    let classes = head_names.first().and_then(|name| rows_of(checkpoint, name));
    let tokens = ["cls_token", "dist_token"].into_iter().filter(|name| checkpoint.has(name));
    let tokens: Vec<String> = tokens.map(str::to_owned).collect();
    for (part, problem) in [("norm_pre.weight", "a norm before the blocks"), ("fc_norm.weight", "mean pooling")] {
        if checkpoint.has(part) {
            return Err(format!("architecture {architecture} has {problem} ({part}), which is not supported"));
        }
    }
    if tokens.len() < head_names.len() || checkpoint.has("reg_token") {
        return Err(format!("architecture {architecture} has other tokens than those of class and distillation"));
    }
    Ok(Config::Vision(VisionConfig {
        blocks: BlockConfig {
            hidden_size,
            intermediate_size: up,
            heads,
            kv_heads: heads,
            head_dim: even_head_dim(hidden_size, heads)?,
            norm: NormKind::Layer,
            norm_eps: 1e-6,
            norm_place: NormPlace::BeforeSublayer,
            activation: Activation::GeluErf,
            view: View::All,
            qkv_bias: checkpoint.has("blocks.0.attn.qkv.bias"),
            o_bias: true,
            mlp_bias: true,
            layers,
            names: BlockNames {
                prefix: "blocks".to_owned(),
                norms: ["norm1", "norm2"],
                qkv: Qkv::Together("attn.qkv"),
                o: "attn.proj",
                gate: None,
                up: "mlp.fc1",
                down: "mlp.fc2",
            },
        },
        names: VisionNames {
            tokens,
            positions: "pos_embed".to_owned(),
            patches: "patch_embed.proj".to_owned(),
            norm: "norm".to_owned(),
            heads: head_names,
        },
        channels,
        image,
        patch: [tall, wide],
        labels: labels(config, classes),
    }))
}

/// Height and width: of `model_args`, else of `pretrained_cfg`, else 224.
fn image_size(config: &Value, args: &Value) -> Result<[usize; 2]> {
    let given = args.get("img_size").or_else(|| config.get("pretrained_cfg")?.get("input_size"));
    let sizes: Vec<usize> = match given {
        None | Some(Value::Null) => vec![224],
        Some(Value::Array(sizes)) => sizes.iter().filter_map(Value::as_u64).map(|size| size as usize).collect(),
        Some(size) => size.as_u64().into_iter().map(|size| size as usize).collect(),
    };
    match sizes[..] {
        [size] => Ok([size, size]),
        [height, width] | [_, height, width] => Ok([height, width]),
        _ => Err(format!("the image's size is {}; it must be one size, or height and width", given.unwrap_or(args))),
    }
}

//! Keys of config.json: the errors are sentences that begin with the key.

use serde_json::Value;

use crate::Activation;

type Result<T> = std::result::Result<T, String>;

/// Largest size any key may have: keeps products of two of them inside 64 bits.
const MAX_SIZE: u64 = 1 << 28;
/// Far beyond any model, near enough to be refused at once.
const MAX_LAYERS: usize = 1 << 14;

/// A size, if it is there.
pub(super) fn optional(config: &Value, key: &str) -> Result<Option<usize>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => Err(format!("{key} is {value}; it must be a whole number from 1 to {MAX_SIZE}")),
        },
    }
}

/// A size that must be there.
pub(super) fn required(config: &Value, key: &str) -> Result<usize> {
    optional(config, key)?.ok_or_else(|| format!("{key} is missing"))
}

/// A switch.
pub(super) fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key} is {value}; it must be true or false")),
    }
}

/// Any number.
pub(super) fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| format!("{key} is {value}; it must be a number")),
    }
}

/// One id, a list of them, or null.
pub(super) fn token_ids(config: &Value, key: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{key} holds {value}; it must be a token id"))
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(ids)) => ids.iter().map(one).collect(),
        Some(value) => one(value).map(|id| vec![id]),
    }
}

/// A name.
pub(super) fn text<'a>(config: &'a Value, key: &str, default: &'a str) -> Result<&'a str> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_str().ok_or_else(|| format!("{key} is {value}; it must be a name")),
    }
}

/// How many blocks there are.
pub(super) fn layers(config: &Value) -> Result<usize> {
    match required(config, "num_hidden_layers")? {
        layers if layers <= MAX_LAYERS => Ok(layers),
        layers => Err(format!("num_hidden_layers is {layers}; it must be at most {MAX_LAYERS}")),
    }
}

/// The same, where the family has a default.
pub(super) fn layers_or(config: &Value, default: usize) -> Result<usize> {
    if config.get("num_hidden_layers").is_some() { layers(config) } else { Ok(default) }
}

/// Functions of an encoder's MLP, by Hugging Face's names.
const ACTIVATIONS: [(&str, Activation); 9] = [
    ("gelu", Activation::GeluErf),
    ("gelu_python", Activation::GeluErf),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::GeluSigmoid),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

/// The function of an encoder's MLP.
pub(super) fn activation(config: &Value) -> Result<Activation> {
    let name = text(config, "hidden_act", "gelu")?;
    ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|&(_, activation)| activation).ok_or_else(|| {
        let known: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
        format!("hidden_act {name} is not supported; supported are {}", known.join(", "))
    })
}

/// Features of each of an encoder's heads.
pub(super) fn even_head_dim(hidden_size: usize, heads: usize) -> Result<usize> {
    match hidden_size % heads {
        0 => Ok(hidden_size / heads),
        _ => Err(format!("hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")),
    }
}

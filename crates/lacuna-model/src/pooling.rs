//! How the vectors of a text's tokens become one, as sentence-transformers' module files say.

use std::path::Path;

use lacuna_core::Matrix;
use lacuna_format::{Error, Result, read_json};
use serde_json::Value;

/// What becomes of the vectors of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// how they are joined
    pub kind: PoolingKind,
    /// whether the result is scaled to length 1
    pub normalize: bool,
}

/// How vectors are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingKind {
    /// their mean
    Mean,
    /// their sum by the root of their number
    MeanSqrtLen,
    /// the largest value of each feature
    Max,
    /// that of the first token
    Cls,
}

/// The kinds by name.
const KINDS: [(&str, PoolingKind); 4] = [
    ("mean", PoolingKind::Mean),
    ("mean_sqrt_len", PoolingKind::MeanSqrtLen),
    ("max", PoolingKind::Max),
    ("cls", PoolingKind::Cls),
];

impl Pooling {
    /// Reads modules.json and the files it names; without it, vectors are averaged and left as long as they are. Refuses
    /// modules that are not supported, by name.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut pooling = Self { kind: PoolingKind::Mean, normalize: false };
        let path = dir.join("modules.json");
        if !path.exists() {
            return Ok(pooling);
        }
        let modules = read_json(&path)?;
        for module in modules.as_array().into_iter().flatten() {
            let kind = module["type"].as_str().unwrap_or("(none)");
            match kind.rsplit('.').next().unwrap_or(kind) {
                "Transformer" => {}
                "Normalize" => pooling.normalize = true,
                "Pooling" => {
                    let path = dir.join(module["path"].as_str().unwrap_or("1_Pooling")).join("config.json");
                    pooling.kind = kind_of(&read_json(&path)?).map_err(|problem| Error::file(&path, problem))?;
                }
                _ => {
                    let problem =
                        format!("module {kind} is not supported; supported are Transformer, Pooling, Normalize");
                    return Err(Error::file(&path, problem));
                }
            }
        }
        Ok(pooling)
    }

    /// One vector `[H]` of each sequence of `hidden[H, T]`.
    pub(crate) fn pool(self, hidden: &Matrix, lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut start = 0;
        let mut pool = |&len: &usize| {
            let features = (0..hidden.rows()).map(|k| &hidden.row(k)[start..start + len]);
            let sum = |values: &[f32]| lacuna_core::sum_of(values, |v| v);
            let mut vector: Vec<f32> = match self.kind {
                PoolingKind::Mean => features.map(|f| (sum(f) / len as f64) as f32).collect(),
                PoolingKind::MeanSqrtLen => features.map(|f| (sum(f) / (len as f64).sqrt()) as f32).collect(),
                PoolingKind::Max => features.map(|f| f.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect(),
                PoolingKind::Cls => features.map(|f| f[0]).collect(),
            };
            if self.normalize {
                let length = lacuna_core::sum_of(&vector, |v| v * v).sqrt().max(1e-12) as f32;
                for v in &mut vector {
                    *v /= length;
                }
            }
            start += len;
            vector
        };
        lengths.iter().map(&mut pool).collect()
    }
}

/// The one kind that a config asks for: by a flag each, or since sentence-transformers 6 by name. None is the mean.
fn kind_of(config: &Value) -> std::result::Result<PoolingKind, String> {
    let flags = config.as_object().into_iter().flatten();
    let flags = flags.filter(|(_, value)| value.as_bool() == Some(true)).map(|(key, _)| key.as_str());
    let mut asked: Vec<&str> = flags.filter_map(|key| key.strip_prefix("pooling_mode_")).collect();
    match &config["pooling_mode"] {
        Value::String(name) => asked.push(name),
        Value::Array(names) => asked.extend(names.iter().filter_map(Value::as_str)),
        _ => {}
    }
    match asked[..] {
        [] => Ok(PoolingKind::Mean),
        [name] => {
            let bare = name.trim_end_matches("_tokens").trim_end_matches("_token");
            let kind = KINDS.iter().find(|(known, _)| *known == bare).map(|&(_, kind)| kind);
            kind.ok_or_else(|| {
                format!(
                    "pooling mode {name} is not supported; supported are {}",
                    KINDS.map(|(name, _)| name).join(", ")
                )
            })
        }
        _ => Err(format!("asks for several pooling modes ({}); supported is one of them", asked.join(", "))),
    }
}

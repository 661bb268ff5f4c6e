//! The plan on disk: readable JSON that says which layer gets which pattern, and what that was expected to bring.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lacuna_core::Pattern;
use lacuna_model::LinearSpec;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::case::Case;

/// Value of `format` that marks a file as a plan.
const FORMAT: &str = "lacuna-plan";
/// Version written, and the newest one read.
const VERSION: u32 = 1;
/// How a layer without a pattern is written.
const DENSE: &str = "dense";

/// What a plan is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// so many times as fast as the dense model in each case, at least
    Speedup(f64),
    /// this share of the weights of the planned layers, at most
    Density(f64),
    /// bytes of all weights of the model, at most
    Bytes(u64),
}

/// Which layer gets which pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanFile {
    format: String,
    version: u32,
    /// `model_type` of config.json
    pub model: String,
    /// what was to be reached
    pub target: Target,
    /// how patterns were chosen
    pub by: String,
    /// type of the kept values that was timed
    pub values: String,
    /// where times were taken
    pub cpu: String,
    /// threads that times were taken with
    pub threads: usize,
    /// times of the whole model; none for a target that is no speed-up
    pub cases: Vec<CaseTimes>,
    /// share of the weights of the planned layers that is kept
    pub density: f64,
    /// bytes of all weights of the model
    pub bytes_before: u64,
    /// the same under this plan
    pub bytes_after: u64,
    /// the layers, in the order of a forward pass
    pub layers: Vec<PlannedLayer>,
}

/// Times of the whole model in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseTimes {
    /// the case
    #[serde(flatten)]
    pub case: Case,
    /// seconds of the dense model, for a decoder's decoding of one token of each sequence
    pub dense_seconds: f64,
    /// what the layers' times say about the linear layers together
    pub predicted_linear_speedup: f64,
    /// what they say about the whole model
    pub predicted_speedup: f64,
    /// whole model, dense beside this plan under random masks
    pub measured_speedup: f64,
}

/// One layer of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedLayer {
    /// module name
    pub name: String,
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// none: stays dense
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub pattern: Option<Pattern>,
    /// seconds of the dense layer in each case
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dense_seconds: Vec<f64>,
    /// seconds under its pattern in each case
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<f64>,
    /// how much worse the model is if this layer alone is pruned so
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<f64>,
}

/// What a plan says beside its layers, for whoever makes one.
pub(super) struct Heading {
    pub(super) model: String,
    pub(super) target: Target,
    pub(super) by: String,
    pub(super) values: String,
}

impl PlanFile {
    pub(super) fn new(heading: Heading, layers: Vec<PlannedLayer>) -> Self {
        let Heading { model, target, by, values } = heading;
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            model,
            target,
            by,
            values,
            cpu: crate::kernel_bench::cpu(),
            threads: rayon::current_num_threads(),
            cases: vec![],
            density: 1.0,
            bytes_before: 0,
            bytes_after: 0,
            layers,
        }
    }

    /// Reads a plan. Refuses what is none, newer ones, and layers named twice.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
        let value: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{name}: not JSON; write it with `lacuna plan`"))?;
        if value["format"] != FORMAT {
            bail!("{name}: is no plan; write one with `lacuna plan`");
        }
        match value["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => bail!("{name}: is a plan of version {version}, this lacuna reads {VERSION}; plan again"),
            None => bail!("{name}: version is missing; plan again"),
        }
        let plan: Self = serde_json::from_value(value).with_context(|| name.to_string())?;
        let mut names: Vec<&str> = plan.layers.iter().map(|layer| layer.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{name}: layer {} is there twice; leave one out", twice[0]);
        }
        Ok(plan)
    }

    /// Writes a plan under its final name once it is whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let name = path.display();
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        std::fs::write(&partial, text)
            .and_then(|()| std::fs::rename(&partial, path))
            .with_context(|| name.to_string())?;
        Ok(())
    }

    /// The pattern of each layer by module name; none: it stays dense. Layers that are not named stay dense too.
    pub fn patterns(&self) -> BTreeMap<String, Option<Pattern>> {
        self.layers.iter().map(|layer| (layer.name.clone(), layer.pattern)).collect()
    }

    /// Refuses a plan for other layers than a model's, `layers`, and patterns that do not fit them.
    pub fn check(&self, layers: &[LinearSpec]) -> Result<()> {
        for PlannedLayer { name, shape, pattern, .. } in &self.layers {
            let Some(layer) = layers.iter().find(|layer| layer.name == *name) else {
                bail!("layer {name} of the plan is none of this model's; plan for this model");
            };
            let own = [layer.rows, layer.cols];
            if own != *shape {
                bail!("layer {name} is {shape:?} in the plan and {own:?} in this model; plan for this model");
            }
            if let Some(pattern) = pattern {
                pattern.grid(layer.rows, layer.cols).with_context(|| format!("layer {name} of the plan"))?;
            }
        }
        Ok(())
    }
}

#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)] // the signature is serde's
fn to_text<S: Serializer>(pattern: &Option<Pattern>, serializer: S) -> Result<S::Ok, S::Error> {
    match pattern {
        Some(pattern) => serializer.collect_str(pattern),
        None => serializer.serialize_str(DENSE),
    }
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Pattern>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        DENSE => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

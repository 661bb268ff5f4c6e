//! The plan on disk: readable JSON that says which layer gets which pattern, and what that was expected to bring.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lacuna_core::{Dtype, IntType, Pattern, ScaleGroup, ValueType};
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
    /// the recipe that was planned for, by name or file
    #[serde(default = "default_recipe")]
    pub recipe: String,
    /// type of the kept values that was planned for
    pub values: String,
    /// kept values under one scale, where they are integers
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_group: Option<usize>,
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
    /// how far the answers of a model pruned so are from the dense model's, on samples held back: `KL(dense ‖ pruned)` in
    /// nats, of text encoders 1 − cosine; none without samples
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
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
    /// the same under each pattern that was measured, to plan for other targets by
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sensitivities: BTreeMap<String, f64>,
}

/// What a plan says beside its layers, for whoever makes one.
pub(super) struct Heading {
    pub(super) model: String,
    pub(super) target: Target,
    pub(super) by: String,
    pub(super) recipe: String,
    pub(super) values: ValueType,
}

/// That of plans from before there was a choice.
fn default_recipe() -> String {
    "default".to_owned()
}

impl PlanFile {
    pub(super) fn new(heading: Heading, layers: Vec<PlannedLayer>) -> Self {
        let Heading { model, target, by, recipe, values } = heading;
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            model,
            target,
            by,
            recipe,
            values: values.name().to_owned(),
            scale_group: values.integers().map(|(_, group)| group.values()),
            cpu: crate::kernel_bench::cpu(),
            threads: rayon::current_num_threads(),
            cases: vec![],
            density: 1.0,
            bytes_before: 0,
            bytes_after: 0,
            distance: None,
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
        if let Some([twice, ..]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{name}: layer {twice} is there twice; leave one out");
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

    /// The type of kept values that was planned for.
    pub fn value_type(&self) -> Result<ValueType> {
        let groups = [ScaleGroup::Of32, ScaleGroup::Of64, ScaleGroup::Of128];
        let integers =
            [IntType::Int8, IntType::Int4].into_iter().flat_map(|int| groups.map(|g| ValueType::Int(int, g)));
        let floats = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(ValueType::Float);
        let group = |values: ValueType| values.integers().map(|(_, group)| group.values());
        let found =
            floats.into_iter().chain(integers).find(|v| v.name() == self.values && group(*v) == self.scale_group);
        found.with_context(|| format!("the plan is for values of type {}, which is none; plan again", self.values))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, pattern: Option<&str>) -> PlannedLayer {
        let pattern = pattern.map(|pattern| pattern.parse().unwrap());
        let (dense_seconds, seconds) = (vec![2e-3], vec![1e-3]);
        let sensitivities = BTreeMap::from([("64:2:8".to_owned(), 0.5)]);
        let (name, shape) = (name.to_owned(), [64, 32]);
        PlannedLayer { name, shape, pattern, dense_seconds, seconds, sensitivity: Some(0.5), sensitivities }
    }

    fn plan(layers: Vec<PlannedLayer>) -> PlanFile {
        let heading = Heading {
            model: "llama".to_owned(),
            target: Target::Speedup(1.5),
            by: "diversity".to_owned(),
            recipe: "low".to_owned(),
            values: ValueType::Int(IntType::Int8, ScaleGroup::Of64),
        };
        PlanFile::new(heading, layers)
    }

    fn spec(name: &str, rows: usize) -> LinearSpec {
        LinearSpec { name: name.to_owned(), rows, cols: 32, bias: false, head: false }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let plan = plan(vec![layer("a", Some("64:2:8")), layer("b", None)]);
        plan.write(&path).unwrap();
        assert_eq!(PlanFile::read(&path).unwrap(), plan);
        assert_eq!(plan.value_type().unwrap(), ValueType::Int(IntType::Int8, ScaleGroup::Of64));
        assert!(PlanFile { scale_group: Some(7), ..plan.clone() }.value_type().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "left something behind");
        let patterns = plan.patterns();
        assert_eq!(patterns["a"].unwrap().to_string(), "64:2:8");
        assert_eq!(patterns["b"], None);
    }

    type Edit<'a> = &'a dyn Fn(&mut serde_json::Value);

    #[test]
    fn what_is_no_plan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let good = serde_json::to_value(plan(vec![layer("a", None), layer("b", None)])).unwrap();
        let edited = |edit: Edit| {
            let mut value = good.clone();
            edit(&mut value);
            std::fs::write(&path, value.to_string()).unwrap();
            format!("{:#}", PlanFile::read(&path).unwrap_err())
        };
        let wrong: [(Edit, &str); 6] = [
            (&|v| v["format"] = "other".into(), "is no plan"),
            (&|v| v["version"] = 99.into(), "version 99"),
            (&|v| drop(v.as_object_mut().unwrap().remove("version")), "version is missing"),
            (&|v| v["layers"][0]["pattern"] = "64:8".into(), "64:8"),
            (&|v| v["layers"][1]["name"] = "a".into(), "layer a is there twice"),
            (&|v| drop(v.as_object_mut().unwrap().remove("layers")), "layers"),
        ];
        for (edit, word) in wrong {
            let error = edited(edit);
            assert!(error.contains(word) && error.contains("plan.json"), "{error}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(PlanFile::read(&path).unwrap_err().to_string().contains("not JSON"));
    }

    #[test]
    fn plans_for_other_models_are_refused() {
        let plan = plan(vec![layer("a", Some("64:2:8")), layer("b", None)]);
        plan.check(&[spec("a", 64), spec("b", 64), spec("c", 64)]).unwrap();
        let error = |layers: &[LinearSpec]| format!("{:#}", plan.check(layers).unwrap_err());
        assert!(error(&[spec("a", 64)]).contains("layer b of the plan is none of this model's"));
        assert!(error(&[spec("a", 64), spec("b", 65)]).contains("[64, 32] in the plan and [65, 32] in this model"));
        let wide = PlanFile { layers: vec![layer("a", Some("64:2:40"))], ..plan.clone() };
        assert!(format!("{:#}", wide.check(&[spec("a", 64)]).unwrap_err()).contains("layer a of the plan"));
    }
}

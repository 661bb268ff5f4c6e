//! A training on disk, to go on with: parameters, moments, masks and the number of steps, in a directory that appears whole or
//! not at all. Everything random follows from the seed and the step.

use std::path::Path;

use candle_core::Tensor;
use lacuna_format::{Checkpoint, OutTensor, Sparsity, Staging, pack_tensors, read_json};
use serde_json::{Value, json};

use crate::layer::matrix;
use crate::optimizer::Tensors;
use crate::{Error, Result, Trainer};

const TENSORS: &str = "state.safetensors";

const NUMBERS: &str = "state.json";

/// The file of a layer's mask.
fn masks(layer: usize) -> String {
    format!("mask-{layer:05}.safetensors")
}

impl Trainer {
    /// Writes the training to a directory, in place of what is there.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut staging = Staging::open(dir, true, &json!({ "step": self.step }))?;
        let groups = [("p", &self.student.parameters), ("m", &self.moments.first), ("v", &self.moments.second)];
        let mut tensors = vec![];
        for (kind, group) in groups {
            for (name, tensor) in group {
                let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let out = OutTensor::new(lacuna_format::TensorDtype::F32, tensor.dims().to_vec(), bytes);
                tensors.push((format!("{kind}|{name}"), out));
            }
        }
        staging.write_shard(TENSORS, &tensors, Value::Null)?;
        // A file a layer: of all together the values, which nobody reads, would be as large as the model.
        for (i, (name, layer)) in self.student.layers.iter().enumerate().filter(|(_, (_, layer))| !layer.is_frozen()) {
            let packed = layer.pack(&matrix(self.student.tensor(&layer.spec.weight()))?)?;
            staging.write_shard(&masks(i), &pack_tensors(name, &packed), Value::Null)?;
        }
        let numbers = json!({ "step": self.step, "updates": self.moments.updates });
        staging.write_file(NUMBERS, numbers.to_string().as_bytes())?;
        Ok(staging.finish()?)
    }

    /// Goes on where a training of the same settings was saved. `sparsity` is that of the pruned checkpoint.
    pub fn restore(&mut self, dir: &Path, sparsity: &Sparsity) -> Result<()> {
        let numbers = read_json(&dir.join(NUMBERS))?;
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        let missing = || Error::Settings(format!("{}: no saved training; remove it", dir.join(NUMBERS).display()));
        self.step = number(&numbers["step"]).ok_or_else(missing)?;
        self.moments.updates =
            [number(&numbers["updates"][0]).ok_or_else(missing)?, number(&numbers["updates"][1]).ok_or_else(missing)?];
        let saved = Checkpoint::of_shard(&dir.join(TENSORS), None)?;
        let device = &self.student.device;
        let read = |kind: &str, shapes: &Tensors| -> Result<Tensors> {
            let mut group = Tensors::new();
            for (name, like) in shapes {
                let key = format!("{kind}|{name}");
                if kind == "p" || saved.has(&key) {
                    let values = saved.floats(&key, like.dims())?;
                    group.insert(name.clone(), Tensor::from_vec(values, like.dims(), device)?);
                }
            }
            Ok(group)
        };
        let parameters = read("p", &self.student.parameters)?;
        self.moments.first = read("m", &parameters)?;
        self.moments.second = read("v", &parameters)?;
        self.student.parameters = parameters;
        let layers = self.student.layers.iter_mut().enumerate();
        for (i, (name, layer)) in layers.filter(|(_, (_, layer))| !layer.is_frozen()) {
            let saved = Checkpoint::of_shard(&dir.join(masks(i)), Some(sparsity))?;
            layer.mask = saved.packed(name)?.ok_or_else(missing)?.mask().clone();
        }
        Ok(())
    }
}

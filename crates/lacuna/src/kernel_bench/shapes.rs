//! The weights of known models' linear layers.

use crate::UsageError;

/// A weight to time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// whose it is
    pub name: String,
    /// `out_features`
    pub rows: usize,
    /// `in_features`
    pub cols: usize,
}

/// Layers of the same shape are one entry.
type Model = (&'static str, &'static [(&'static str, usize, usize)]);

/// All but embeddings.
const MODELS: [Model; 6] = [
    ("llama-2-7b", &[("q/k/v/o", 4096, 4096), ("gate/up", 11008, 4096), ("down", 4096, 11008)]),
    ("llama-3-8b", &[("q/o", 4096, 4096), ("k/v", 1024, 4096), ("gate/up", 14336, 4096), ("down", 4096, 14336)]),
    ("qwen2-0.5b", &[("q/o", 896, 896), ("k/v", 128, 896), ("gate/up", 4864, 896), ("down", 896, 4864)]),
    ("bert-base", &ENCODER),
    ("deit-base", &ENCODER),
    ("square-4096", &[("", 4096, 4096)]),
];
/// BERT-base and the base sizes of ViT and DeiT.
const ENCODER: [(&str, usize, usize); 3] = [("q/k/v/o", 768, 768), ("up", 3072, 768), ("down", 768, 3072)];

/// Names that [`Shape::named`] knows.
pub fn known() -> String {
    MODELS.map(|(name, _)| name).join(", ")
}

impl Shape {
    /// The layers of a model by its name, or one weight written as `ROWSxCOLS`.
    pub fn named(name: &str) -> Result<Vec<Self>, UsageError> {
        if let Some((model, layers)) = MODELS.iter().find(|(model, _)| *model == name) {
            let shape = |&(layer, rows, cols): &(&str, usize, usize)| {
                let name = format!("{model} {layer}").trim_end().to_owned();
                Self { name, rows, cols }
            };
            return Ok(layers.iter().map(shape).collect());
        }
        let side = |text: &str| text.parse().ok().filter(|&n: &usize| n >= 1 && text.starts_with(|c| c != '+'));
        match name.split_once('x').map(|(rows, cols)| (side(rows), side(cols))) {
            Some((Some(rows), Some(cols))) => Ok(vec![Self { name: name.to_owned(), rows, cols }]),
            _ => Err(UsageError(format!("'{name}' is no known shape: there are {}, or write ROWSxCOLS", known()))),
        }
    }

    /// Weights of equal shape become one, under all their names: their times would be the same.
    pub fn merged(shapes: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = vec![];
        for shape in shapes {
            match merged.iter_mut().find(|other| (other.rows, other.cols) == (shape.rows, shape.cols)) {
                None => merged.push(shape),
                Some(other) if other.name.split(" + ").any(|name| name == shape.name) => {}
                Some(other) => other.name += &format!(" + {}", shape.name),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shapes_are_timed_once() {
        let names = ["bert-base", "deit-base", "768x768", "deit-base"];
        let shapes = Shape::merged(names.iter().flat_map(|name| Shape::named(name).unwrap()));
        let sizes: Vec<_> = shapes.iter().map(|s| (s.rows, s.cols)).collect();
        assert_eq!(sizes, [(768, 768), (3072, 768), (768, 3072)]);
        assert_eq!(shapes[0].name, "bert-base q/k/v/o + deit-base q/k/v/o + 768x768");
    }

    #[test]
    fn unknown_shapes_name_the_known_ones() {
        for name in ["llama", "", "x", "0x5", "5x", "+5x5", "-5x5", "5x5x5"] {
            let error = Shape::named(name).unwrap_err().to_string();
            assert!(error.contains("qwen2-0.5b") && error.contains(&format!("'{name}'")), "{error}");
        }
    }
}

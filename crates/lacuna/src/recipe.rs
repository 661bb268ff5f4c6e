//! Recipes: everything that shapes masks and weights beside the patterns and the data. Files of JSON, some of them built in.

use std::path::Path;

use lacuna_core::{GROUP_COLUMNS, Pattern, ValueType, Window};
use lacuna_format::read_json;
use lacuna_prune::{Criterion, Method, Permute, Selection, Update};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::UsageError;

/// How to prune a layer, and what to show it before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// how weights are scored
    pub criterion: Criterion,
    /// in which order rows and columns are when masks are chosen
    #[serde(default)]
    pub permute: Permute,
    /// how the columns of a mask are chosen
    pub selection: Selection,
    /// among how many columns at most groups choose; `None` for the pattern's own M. `2:4` stays what it is
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// what becomes of the kept weights
    pub update: Update,
    /// how much of what the layers before have lost an update makes up for, 0 to 1, as far as half of the calibration tokens
    /// foretells that of the others; 0 aims at what the layer's own weights make of the pruned model's activations
    #[serde(default, skip_serializing_if = "is_zero")]
    pub aim: f64,
    /// what a layer has before it in its block when it is calibrated
    #[serde(default)]
    pub order: Order,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
fn is_zero(aim: &f64) -> bool {
    *aim == 0.0
}

/// What a layer has before it in its block when it is calibrated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// dense layers: a block is looked at once
    #[default]
    Block,
    /// pruned ones: a block is looked at again for each of its inputs
    Layer,
}

/// The recipes that are built in.
const BUILT_IN: [(&str, &str); 10] = [
    ("default", include_str!("../recipes/default.json")),
    ("low", include_str!("../recipes/low.json")),
    ("high", include_str!("../recipes/high.json")),
    ("magnitude", include_str!("../recipes/magnitude.json")),
    ("wanda", include_str!("../recipes/wanda.json")),
    ("ria", include_str!("../recipes/ria.json")),
    ("paper", include_str!("../recipes/paper.json")),
    ("sparsegpt", include_str!("../recipes/sparsegpt.json")),
    ("alps", include_str!("../recipes/alps.json")),
    ("dsnot", include_str!("../recipes/dsnot.json")),
];

impl Recipe {
    /// A recipe that is built in, or the one of a file.
    pub fn named(name: &str) -> Result<Self, UsageError> {
        let recipe: Self = read_named("recipe", name, &BUILT_IN)?;
        recipe.checked().map_err(|problem| UsageError(format!("recipe {name}: {problem}")))
    }

    /// Refuses numbers out of range.
    pub fn checked(self) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&self.aim) {
            return Err(format!("aim is {}: it is a share, 0 to 1", self.aim));
        }
        let chooses_itself = matches!(self.update, Update::SparseGpt | Update::Alps);
        if self.permute == Permute::Paper && (self.window.is_some() || chooses_itself) {
            let problem = "permute paper puts columns in order itself: leave window out, and update none, lsq or dsnot";
            return Err(problem.to_owned());
        }
        if self.window == Some(0) {
            return Err("window is 0: it is a number of columns".to_owned());
        }
        Ok(self)
    }

    /// What a recipe looks at beside the weights; `None` if that is nothing.
    pub fn needs_calibration(&self) -> Option<String> {
        if self.update.needs_stats() {
            Some(format!("update {}", self.update.name()))
        } else if self.criterion.needs_stats() {
            Some(format!("criterion {}", self.criterion.name()))
        } else {
            None
        }
    }

    /// How to prune one layer.
    pub fn method(&self, pattern: Pattern, values: ValueType) -> Method {
        Method {
            criterion: self.criterion,
            permute: self.permute,
            selection: self.selection,
            update: self.update,
            pattern: self.widen(pattern),
            values,
        }
    }

    /// The pattern with the window of this recipe, if it has none of its own and keeps less than 2:4. Columns in an order of
    /// their own come from anywhere in the row.
    pub fn widen(&self, pattern: Pattern) -> Pattern {
        match self.window {
            _ if self.permute == Permute::Paper => pattern.with_window(Window::All).unwrap_or(pattern),
            Some(columns) if pattern.is_grouped() && pattern.m() > GROUP_COLUMNS => pattern.with_window_up_to(columns),
            _ => pattern,
        }
    }
}

/// What a file says, or what is built in under that name; `kind` is what the user calls it.
pub(crate) fn read_named<T: DeserializeOwned>(
    kind: &str,
    name: &str,
    built_in: &[(&str, &str)],
) -> Result<T, UsageError> {
    if let Some((_, text)) = built_in.iter().find(|(known, _)| *known == name) {
        return Ok(serde_json::from_str(text).expect("tested"));
    }
    let path = Path::new(name);
    if !path.exists() {
        let known: Vec<&str> = built_in.iter().map(|(name, _)| *name).collect();
        return Err(UsageError(format!("{kind} {name}: neither a file nor one of {}", known.join(", "))));
    }
    let value = read_json(path).map_err(|e| UsageError(e.to_string()))?;
    serde_json::from_value(value).map_err(|e| UsageError(format!("{name}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_can_be_read() {
        for (name, _) in BUILT_IN {
            let recipe = Recipe::named(name).unwrap();
            let text = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe, "{name}");
        }
    }

    #[test]
    fn a_window_leaves_the_plain_pattern_alone() {
        let recipe = Recipe { window: Some(500), ..Recipe::named("alps").unwrap() };
        let widened = |pattern: &str| recipe.widen(pattern.parse().unwrap()).to_string();
        assert_eq!(widened("64:2:8"), "64:2:8@496");
        assert_eq!(widened("64:2:8@16"), "64:2:8@16");
        assert_eq!(widened("2:4"), "2:4");
        assert_eq!(Recipe::named("paper").unwrap().widen("2:4".parse().unwrap()).to_string(), "2:4@all");
    }
}

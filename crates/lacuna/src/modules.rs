//! Which linear layers a command means: `--include` and `--exclude` over module names.

use globset::{GlobBuilder, GlobMatcher};
use lacuna_format::{Checkpoint, Result};
use lacuna_model::{Config, LinearSpec};
use regex::Regex;

use crate::UsageError;

/// One pattern of module names: a glob, or a regular expression after `re:`.
#[derive(Debug, Clone)]
pub enum NamePattern {
    /// `*` and `?` match any characters, dots too
    Glob(GlobMatcher),
    /// matches anywhere in the name
    Regex(Regex),
}

impl NamePattern {
    /// Parses one pattern.
    pub fn new(text: &str) -> std::result::Result<Self, UsageError> {
        let wrong = |e: String| UsageError(format!("'{text}' is not a module pattern: {e}"));
        match text.strip_prefix("re:") {
            Some(regex) => Regex::new(regex).map(Self::Regex).map_err(|e| wrong(e.to_string())),
            None => {
                let glob = GlobBuilder::new(text).build();
                glob.map(|glob| Self::Glob(glob.compile_matcher())).map_err(|e| wrong(e.to_string()))
            }
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Glob(glob) => glob.is_match(name),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// `--include` and `--exclude`, parsed.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    include: Vec<(String, NamePattern)>,
    exclude: Vec<(String, NamePattern)>,
}

impl Selector {
    /// Parses the patterns.
    pub fn new(include: &[String], exclude: &[String]) -> std::result::Result<Self, UsageError> {
        fn parse(texts: &[String]) -> std::result::Result<Vec<(String, NamePattern)>, UsageError> {
            texts.iter().map(|text| Ok((text.clone(), NamePattern::new(text)?))).collect()
        }
        Ok(Self { include: parse(include)?, exclude: parse(exclude)? })
    }

    /// The layers meant: all but heads, or those included; without those excluded. Refuses a pattern that matches no
    /// layer at all, since it is likely a slip.
    pub fn select(&self, layers: Vec<LinearSpec>) -> std::result::Result<Vec<LinearSpec>, UsageError> {
        for (text, pattern) in self.include.iter().chain(&self.exclude) {
            if !layers.iter().any(|layer| pattern.matches(&layer.name)) {
                return Err(UsageError(format!(
                    "'{text}' matches no linear layer; `lacuna inspect` lists their names"
                )));
            }
        }
        let meant = |layer: &LinearSpec| {
            let any = |patterns: &[(String, NamePattern)]| patterns.iter().any(|(_, p)| p.matches(&layer.name));
            let included = if self.include.is_empty() { !layer.head } else { any(&self.include) };
            included && !any(&self.exclude)
        };
        Ok(layers.into_iter().filter(meant).collect())
    }
}

/// All linear layers of a model, block by block, then the heads that have a weight of their own. Refuses a checkpoint
/// whose tensors contradict its config.
pub fn linears(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<LinearSpec>> {
    let blocks = config.blocks();
    let mut layers: Vec<LinearSpec> = (0..blocks.layers).flat_map(|layer| blocks.linears(layer)).collect();
    layers.extend(config.heads(checkpoint));
    for layer in &layers {
        if checkpoint.sparsity().is_none_or(|s| !s.layers.contains_key(&layer.name)) {
            checkpoint.check_shape(&layer.weight(), &[layer.rows, layer.cols])?;
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<LinearSpec> {
        ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "lm_head"]
            .map(|name| LinearSpec { name: name.to_owned(), rows: 8, cols: 8, bias: false, head: name == "lm_head" })
            .to_vec()
    }

    fn names(include: &[&str], exclude: &[&str]) -> Vec<String> {
        let own = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let selector = Selector::new(&own(include), &own(exclude)).unwrap();
        selector.select(layers()).unwrap().into_iter().map(|layer| layer.name).collect()
    }

    #[test]
    fn the_head_is_left_out_unless_included() {
        assert_eq!(names(&[], &[]).len(), 3);
        assert_eq!(names(&["*"], &[]).len(), 4);
        assert_eq!(names(&["lm_head"], &[]), ["lm_head"]);
    }

    #[test]
    fn globs_and_regular_expressions_select() {
        assert_eq!(names(&["*.mlp.*"], &["re:layers\\.1\\d"]), ["model.layers.0.mlp.up_proj"]);
        assert_eq!(names(&[], &["*up_proj"]), ["model.layers.0.self_attn.q_proj"]);
    }

    #[test]
    fn patterns_that_cannot_mean_anything_are_refused() {
        assert!(Selector::new(&["re:(".to_owned()], &[]).is_err());
        assert!(Selector::new(&["a[".to_owned()], &[]).is_err());
        assert!(Selector::new(&[], &["*.qq_proj".to_owned()]).unwrap().select(layers()).is_err());
    }
}

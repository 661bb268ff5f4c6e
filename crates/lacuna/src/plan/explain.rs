//! Which figure ranks patterns as the quality of the pruned model does?

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Pattern;
use serde::Serialize;

use super::predict::{diversity, kendall, spearman};
use super::sensitivity::{Effect, Laboratory, retained_scores, sensitivities};
use super::space::{Space, total};
use super::stage;

/// A pattern with what is said to predict the quality of a model pruned to it, and that quality.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// as written
    pub pattern: String,
    /// share of the weights that is kept
    pub density: f64,
    /// mask diversity a weight
    pub diversity: f64,
    /// share of the scores that is kept
    pub retained_score: f64,
    /// relative errors of the layers' outputs, squared and summed
    pub layer_error: f64,
    /// distances of the model's answers with one layer pruned at a time, summed
    pub sensitivity: f64,
    /// distance of the answers of the model with all layers pruned, block after block
    pub distance: f64,
}

/// How well a figure ranks.
#[derive(Debug, Clone, Serialize)]
pub struct Predictor {
    /// name of the figure
    pub name: &'static str,
    /// Spearman's rank correlation with quality
    pub spearman: f64,
    /// Kendall's
    pub kendall: f64,
}

/// Patterns and predictors.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// the patterns
    pub patterns: Vec<Explained>,
    /// the predictors, each so that more should be better
    pub predictors: Vec<Predictor>,
}

/// A figure by name, more of which should be better.
type Figure = (&'static str, fn(&Explained) -> f64);

/// What is compared unless told otherwise.
pub(super) fn patterns() -> Vec<Pattern> {
    let of = |m: usize| [16, 128].into_iter().filter_map(move |v| Pattern::new(v, m).ok());
    std::iter::once(Pattern::PLAIN).chain([5, 6, 8, 12, 16].into_iter().flat_map(of)).collect()
}

pub(super) fn explain(space: &Space, laboratory: &Laboratory, progress: &ProgressBar) -> Result<Explanation> {
    stage(progress, Laboratory::steps(space) + space.patterns.len() as u64);
    let effects = laboratory.effects(space, true, progress)?;
    let (retained, losses) = (retained_scores(space, &effects), sensitivities(&effects));
    let squared = |effect: &Option<Effect>| effect.map_or(0.0, |effect| effect.error.powi(2));
    let errors: Vec<Vec<f64>> = effects.iter().map(|own| own.iter().map(squared).collect()).collect();
    let dense = laboratory.dense()?;
    let mut patterns = vec![];
    for (p, &pattern) in space.patterns.iter().enumerate() {
        progress.set_message(pattern.to_string());
        let uniform = space.uniform(p);
        patterns.push(Explained {
            pattern: pattern.to_string(),
            density: space.density(&uniform),
            diversity: diversity(pattern),
            retained_score: retained[p],
            layer_error: total(&errors, &uniform),
            sensitivity: total(&losses, &uniform),
            distance: laboratory.distance(space, &uniform, &dense)?,
        });
        progress.inc(1);
    }
    let quality: Vec<f64> = patterns.iter().map(|p| -p.distance).collect();
    let predictors: [Figure; 5] = [
        ("mask diversity", |p| p.diversity),
        ("retained score", |p| p.retained_score),
        ("density", |p| p.density),
        ("layer error", |p| -p.layer_error),
        ("sensitivity", |p| -p.sensitivity),
    ];
    let predictors = predictors.map(|(name, of)| {
        let figures: Vec<f64> = patterns.iter().map(of).collect();
        Predictor { name, spearman: spearman(&figures, &quality), kendall: kendall(&figures, &quality) }
    });
    Ok(Explanation { patterns, predictors: predictors.to_vec() })
}

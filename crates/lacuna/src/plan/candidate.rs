//! The table of patterns: what each would bring as the only one, and why it was not chosen.

use lacuna_core::Pattern;
use serde::Serialize;

use super::file::Target;
use super::predict::diversity;
use super::reach::Times;
use super::space::{Choice, Space};

/// A pattern with its figures.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    /// as written
    pub pattern: String,
    /// share of the weights of the planned layers that is kept if all that it fits have it
    pub density: f64,
    /// bytes of all weights of the model then
    pub bytes: u64,
    /// mask diversity a weight
    pub diversity: f64,
    /// share of the scores that is kept, if it was measured
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_score: Option<f64>,
    /// of the whole model then, predicted, in each case
    pub speedups: Vec<f64>,
    /// layers that have it in the plan
    pub layers: usize,
    /// why no layer has it
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// What candidates are judged by.
pub(super) struct Judge<'a> {
    pub(super) space: &'a Space,
    pub(super) target: Target,
    pub(super) times: Option<&'a Times>,
    /// bytes of what is not planned
    pub(super) other_bytes: u64,
    pub(super) retained: Option<&'a [f64]>,
    /// how a pattern that would do is worse than the chosen one
    pub(super) worse: &'static str,
}

impl Judge<'_> {
    /// The table, in the order of the patterns.
    pub(super) fn candidates(&self, choice: &Choice) -> Vec<Candidate> {
        (0..self.space.patterns.len()).map(|p| self.candidate(p, choice)).collect()
    }

    fn candidate(&self, p: usize, choice: &Choice) -> Candidate {
        let (space, pattern) = (self.space, self.space.patterns[p]);
        let uniform = space.uniform(p);
        let bytes = self.other_bytes + super::space::total(&space.bytes, &uniform) as u64;
        let layers = choice.iter().filter(|&&option| option == p + 1).count();
        let mut candidate = Candidate {
            pattern: pattern.to_string(),
            density: space.density(&uniform),
            bytes,
            diversity: diversity(pattern),
            retained_score: self.retained.map(|retained| retained[p]),
            speedups: self.times.map_or(vec![], |times| times.predicted(&uniform)),
            layers,
            rejected: None,
        };
        candidate.rejected = (layers == 0).then(|| self.reason(&candidate, choice));
        candidate
    }

    fn reason(&self, candidate: &Candidate, choice: &Choice) -> String {
        let short = match (self.target, self.times) {
            (Target::Speedup(target), Some(times)) => {
                let cases = times.cases.iter().zip(&candidate.speedups);
                let slowest = cases.min_by(|a, b| a.1.total_cmp(b.1)).filter(|(_, speedup)| **speedup < target);
                slowest.map(|(case, speedup)| format!("reaches {speedup:.2} of {target:.2} ({case})"))
            }
            (Target::Density(target), _) => {
                (candidate.density > target).then(|| format!("keeps {:.4} of {target:.4}", candidate.density))
            }
            (Target::Bytes(target), _) => {
                (candidate.bytes > target).then(|| format!("takes {} of {target} bytes", candidate.bytes))
            }
            (Target::Speedup(_), None) => None,
        };
        short.unwrap_or_else(|| {
            let mut used: Vec<Pattern> = choice.iter().filter_map(|&o| self.space.pattern(o)).collect();
            used.dedup();
            match &used[..] {
                [one] => format!("{} {one}", self.worse),
                _ => format!("{} those chosen", self.worse),
            }
        })
    }
}

//! The ways to choose: one pattern for all by a figure of merit, or each layer's own by what it loses.

use super::budget::Budget;
use super::choose::{Resource, solve};
use super::space::{Choice, Space};

/// How a choice is made from what is known.
pub(super) enum Chooser {
    /// of the patterns that suffice everywhere that with the largest merit; what it saves too much goes back to layers that
    /// stay dense
    Uniform {
        /// of each pattern
        merit: Vec<f64>,
    },
    /// the smallest sum of losses
    Mixed {
        /// of each option of each layer
        losses: Vec<Vec<f64>>,
    },
    /// the largest budget that suffices, shared out by a rule
    Budget(Budget),
}

impl Chooser {
    /// The choice, if the resources allow one.
    pub(super) fn choose(&self, space: &Space, resources: &[Resource]) -> Option<Choice> {
        match self {
            Self::Uniform { merit } => {
                let suffices = |&p: &usize| {
                    let choice = space.uniform(p);
                    resources.iter().all(|resource| resource.allows(&choice))
                };
                let found = (0..merit.len()).filter(suffices).max_by(|&a, &b| merit[a].total_cmp(&merit[b]))?;
                // As few weights removed as will do.
                let loss = |kept: &Vec<f64>| {
                    let removed = |(option, &own): (usize, &f64)| match option {
                        0 => 0.0,
                        option if option == found + 1 && own.is_finite() => kept[0] - own,
                        _ => f64::INFINITY,
                    };
                    kept.iter().enumerate().map(removed).collect()
                };
                let losses: Vec<Vec<f64>> = space.kept.iter().map(loss).collect();
                // Rounding of costs may leave nothing but the pattern everywhere.
                Some(solve(&losses, resources).unwrap_or_else(|| space.uniform(found)))
            }
            Self::Mixed { losses } => solve(losses, resources),
            Self::Budget(budget) => {
                budget.choices(space).find(|choice| resources.iter().all(|resource| resource.allows(choice)))
            }
        }
    }

    /// The choice that spends least of a resource.
    pub(super) fn least(&self, space: &Space, resource: &Resource) -> Choice {
        match self {
            Self::Uniform { merit } => {
                let choices = (0..merit.len()).map(|p| space.uniform(p)).chain([space.dense()]);
                let least = choices.min_by(|a, b| resource.spent(a).total_cmp(&resource.spent(b)));
                least.expect("dense is one of them")
            }
            Self::Mixed { .. } | Self::Budget(_) => {
                let least = |costs: &Vec<f64>| (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b]));
                resource.costs.iter().map(|costs| least(costs).unwrap_or(0)).collect()
            }
        }
    }
}

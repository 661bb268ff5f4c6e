//! One option for each layer, the smallest total loss within limited resources: the multiple-choice knapsack.
//!
//! Solved exactly by dynamic programming over the layers (Nemhauser and Ullmann's lists of undominated states), on costs
//! that are rounded up to a small part (2⁻²⁴) of their limit, so that limits truly hold. A state is dropped where Lagrange's bound
//! shows that nothing better than a solution in hand can come of it. Several resources (a speed-up at several batch sizes)
//! are taken up one at a time, as an optimum without them turns out to break them.

/// Steps that a limit is cut into.
const STEPS: f64 = (1 << 24) as f64;
/// Rounds of the search for multipliers, and halvings within one.
const ROUNDS: usize = 8;
const HALVINGS: usize = 48;

/// Something of which there is not enough for everything.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// what each option of each layer takes; infinite: not to be had
    pub(super) costs: Vec<Vec<f64>>,
    /// what there is
    pub(super) limit: f64,
}

impl Resource {
    /// What a choice takes.
    pub(super) fn spent(&self, choice: &[usize]) -> f64 {
        self.costs.iter().zip(choice).map(|(costs, &option)| costs[option]).sum()
    }

    /// Whether a choice leaves it whole.
    pub(super) fn allows(&self, choice: &[usize]) -> bool {
        self.spent(choice) <= self.limit
    }
}

/// The choice with the smallest sum of losses that every resource allows; none if there is none.
pub(super) fn solve(losses: &[Vec<f64>], resources: &[Resource]) -> Option<Vec<usize>> {
    let mut active: Vec<usize> = vec![];
    loop {
        let chosen: Vec<&Resource> = active.iter().map(|&r| &resources[r]).collect();
        let problem = Problem::new(losses, &chosen);
        let choice = problem.solve()?;
        // By how much it is overdrawn.
        let overdrawn = |r: &usize| resources[*r].spent(&choice) / resources[*r].limit;
        let broken = (0..resources.len()).filter(|r| !active.contains(r) && !resources[*r].allows(&choice));
        match broken.max_by(|a, b| overdrawn(a).total_cmp(&overdrawn(b))) {
            None => return Some(choice),
            Some(_) if resources.iter().any(|resource| resource.limit <= 0.0) => return None,
            Some(r) => active.push(r),
        }
    }
}

/// The problem on whole steps.
struct Problem<'a> {
    losses: &'a [Vec<f64>],
    /// `[layer][option][resource]`; none: not to be had
    steps: Vec<Vec<Option<Vec<u32>>>>,
    resources: usize,
}

/// Some layers decided.
struct State {
    loss: f64,
    used: Vec<u32>,
    /// the state that it came from, and the option that was added
    from: (usize, usize),
}

impl<'a> Problem<'a> {
    fn new(losses: &'a [Vec<f64>], resources: &[&Resource]) -> Self {
        let steps = |layer: usize, option: usize| {
            let step = |resource: &&Resource| {
                let share = resource.costs[layer][option] / resource.limit;
                (share <= 1.0).then(|| (share * STEPS).ceil() as u32)
            };
            resources.iter().map(step).collect::<Option<Vec<u32>>>().filter(|_| losses[layer][option].is_finite())
        };
        let layer =
            |(layer, losses): (usize, &Vec<f64>)| (0..losses.len()).map(|option| steps(layer, option)).collect();
        Self { losses, steps: losses.iter().enumerate().map(layer).collect(), resources: resources.len() }
    }

    /// Options of a layer that can be had: number, loss, steps.
    fn options(&self, layer: usize) -> impl Iterator<Item = (usize, f64, &[u32])> {
        let options = self.steps[layer].iter().zip(&self.losses[layer]).enumerate();
        options.filter_map(|(option, (steps, &loss))| Some((option, loss, &steps.as_ref()?[..])))
    }

    fn solve(&self) -> Option<Vec<usize>> {
        let layers = self.losses.len();
        if (0..layers).any(|layer| self.options(layer).next().is_none()) {
            return None;
        }
        let (multipliers, mut best) = self.multipliers();
        // What the layers from each one on take at least, and lose at least at the multipliers' prices.
        let mut least = vec![vec![0_u64; self.resources]; layers + 1];
        let mut priced = vec![0.0; layers + 1];
        for layer in (0..layers).rev() {
            for r in 0..self.resources {
                let cheapest = self.options(layer).map(|(_, _, steps)| steps[r]).min().unwrap_or(0);
                least[layer][r] = least[layer + 1][r] + u64::from(cheapest);
            }
            let price = |(_, loss, steps): (usize, f64, &[u32])| loss + cost(&multipliers, steps);
            priced[layer] = priced[layer + 1] + self.options(layer).map(price).fold(f64::INFINITY, f64::min);
        }
        let in_stock = multipliers.iter().sum::<f64>() * STEPS;
        let mut history: Vec<Vec<(usize, usize)>> = vec![];
        let mut states = vec![State { loss: 0.0, used: vec![0; self.resources], from: (0, 0) }];
        for layer in 0..layers {
            let mut next = vec![];
            // Rounding in the bound must not cost the optimum.
            let ceiling = best.as_ref().map_or(f64::INFINITY, |(loss, _)| loss + 1e-9 * (loss.abs() + in_stock.abs()));
            for (i, state) in states.iter().enumerate() {
                for (option, loss, steps) in self.options(layer) {
                    let loss = state.loss + loss;
                    let used: Vec<u32> = state.used.iter().zip(steps).map(|(a, b)| a + b).collect();
                    let fits = used.iter().zip(&least[layer + 1]).all(|(&u, l)| u64::from(u) + l <= STEPS as u64);
                    let bound = loss + cost(&multipliers, &used) + priced[layer + 1] - in_stock;
                    if fits && bound <= ceiling {
                        next.push(State { loss, used, from: (i, option) });
                    }
                }
            }
            states = undominated(next);
            history.push(states.iter().map(|state| state.from).collect());
        }
        let found = (0..states.len()).min_by(|&a, &b| states[a].loss.total_cmp(&states[b].loss));
        let Some(mut at) = found.filter(|&i| best.as_ref().is_none_or(|(loss, _)| states[i].loss < *loss)) else {
            return best.take().map(|(_, choice)| choice);
        };
        let mut choice = vec![0; layers];
        for layer in (0..layers).rev() {
            (at, choice[layer]) = history[layer][at];
        }
        Some(choice)
    }

    /// Prices of a step of each resource under which the cheapest options spend about what there is, and the best choice
    /// within the limits that was met on the way.
    fn multipliers(&self) -> (Vec<f64>, Option<(f64, Vec<usize>)>) {
        let mut prices = vec![0.0; self.resources];
        let mut best: Option<(f64, Vec<usize>)> = None;
        let mut look = |prices: &[f64]| {
            let (loss, used, choice) = self.cheapest(prices);
            let fits = used.iter().all(|&used| used <= STEPS as u64);
            if fits && best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, choice));
            }
            used
        };
        look(&prices);
        let spread = |losses: &Vec<f64>| {
            let finite = losses.iter().copied().filter(|loss| loss.is_finite());
            finite.clone().fold(0.0, f64::max) - finite.fold(0.0, f64::min)
        };
        // At this price a single step outweighs all losses.
        let dearest = self.losses.iter().map(spread).sum::<f64>().max(1e-300);
        for _ in 0..if self.resources > 1 { ROUNDS } else { 1 } {
            for r in 0..self.resources {
                let (mut low, mut high) = (0.0, dearest);
                for _ in 0..HALVINGS {
                    // Of prices that span many orders of magnitude the geometric mean is the middle.
                    prices[r] = if low > 0.0 { f64::sqrt(low * high) } else { high * 1e-3 };
                    let enough = look(&prices)[r] <= STEPS as u64;
                    if enough {
                        high = prices[r];
                    } else {
                        low = prices[r];
                    }
                    if high < 1e-18 * dearest {
                        break;
                    }
                }
                prices[r] = high;
            }
        }
        (prices, best)
    }

    /// Of each layer the option that costs least at some prices: the sum of losses, what is used, the choice.
    fn cheapest(&self, prices: &[f64]) -> (f64, Vec<u64>, Vec<usize>) {
        let (mut sum, mut used, mut choice) = (0.0, vec![0_u64; self.resources], vec![]);
        for layer in 0..self.losses.len() {
            let price = |(_, loss, steps): &(usize, f64, &[u32])| loss + cost(prices, steps);
            let cheapest = self.options(layer).min_by(|a, b| price(a).total_cmp(&price(b)));
            let (option, loss, steps) = cheapest.expect("each layer has an option");
            sum += loss;
            used.iter_mut().zip(steps).for_each(|(used, &step)| *used += u64::from(step));
            choice.push(option);
        }
        (sum, used, choice)
    }
}

fn cost(prices: &[f64], steps: &[u32]) -> f64 {
    prices.iter().zip(steps).map(|(price, &step)| price * f64::from(step)).sum()
}

/// States that no other one beats or equals in everything.
fn undominated(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.loss.total_cmp(&b.loss).then_with(|| a.used.cmp(&b.used)));
    let mut kept: Vec<State> = vec![];
    // With one resource the last state kept, which uses least, says it all; with two so does the least use of the second up
    // to each use of the first.
    let mut stairs: std::collections::BTreeMap<u32, u32> = std::collections::BTreeMap::new();
    for state in states {
        let first = state.used.first().copied().unwrap_or(0);
        let second = state.used.get(1).copied().unwrap_or(0);
        let beaten = if state.used.len() <= 2 {
            stairs.range(..=first).next_back().is_some_and(|(_, &least)| least <= second)
        } else {
            kept.iter().any(|other| other.used.iter().zip(&state.used).all(|(a, b)| a <= b))
        };
        if beaten {
            continue;
        }
        if state.used.len() <= 2 {
            // Steps from here on that lead no further down.
            while let Some((&above, _)) = stairs.range(first..).next().filter(|(_, least)| **least >= second) {
                stairs.remove(&above);
            }
            stairs.insert(first, second);
        }
        kept.push(state);
    }
    kept
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Every choice there is.
    fn brute_force(losses: &[Vec<f64>], resources: &[Resource]) -> Option<f64> {
        let mut choices = vec![vec![]];
        for options in losses {
            let with =
                |choice: &Vec<usize>| (0..options.len()).map(|o| [&choice[..], &[o]].concat()).collect::<Vec<_>>();
            choices = choices.iter().flat_map(with).collect();
        }
        let allowed = choices.iter().filter(|choice| resources.iter().all(|resource| resource.allows(choice)));
        allowed.map(|choice| loss(losses, choice)).filter(|loss| loss.is_finite()).min_by(f64::total_cmp)
    }

    fn loss(losses: &[Vec<f64>], choice: &[usize]) -> f64 {
        losses.iter().zip(choice).map(|(losses, &option)| losses[option]).sum()
    }

    #[test]
    fn it_finds_what_trying_everything_finds() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut solved = 0;
        for case in 0..600 {
            let (layers, options) = (rng.random_range(1..7), rng.random_range(1..5));
            let mut table = |scale: f64| -> Vec<Vec<f64>> {
                let mut value = || if rng.random_bool(0.05) { f64::INFINITY } else { scale * rng.random::<f64>() };
                (0..layers).map(|_| (0..options).map(|_| value()).collect()).collect()
            };
            let losses = table(10_f64.powi(case % 9 - 4));
            let mut resources: Vec<Resource> =
                (0..case % 4).map(|_| Resource { costs: table(1.0), limit: 0.4 * f64::from(layers) }).collect();
            // Costs of two batch sizes go together.
            if let [first, second, ..] = &mut resources[..] {
                for (a, b) in first.costs.iter().flatten().zip(second.costs.iter_mut().flatten()) {
                    *b = 3.0 * a + 0.2 * *b;
                }
                second.limit = 1.2 * f64::from(layers);
            }
            let want = brute_force(&losses, &resources);
            let found = solve(&losses, &resources);
            match (found, want) {
                (None, None) => {}
                (Some(choice), Some(want)) => {
                    assert!(resources.iter().all(|resource| resource.allows(&choice)));
                    assert!((loss(&losses, &choice) - want).abs() <= 1e-12 * want.abs(), "case {case}");
                    solved += 1;
                }
                other => panic!("case {case}: {other:?}"),
            }
        }
        assert!(solved > 200, "{solved}");
    }

    #[test]
    fn many_layers_with_two_limits() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let times: Vec<[f64; 2]> =
            (0..10).map(|o| [1.0 / f64::from(o + 1), 1.0 / (1.0 + 0.8 * f64::from(o))]).collect();
        let costs = |case: usize| -> Vec<Vec<f64>> {
            (0..200).map(|layer| times.iter().map(|t| t[case] * [1.0, 4.0, 5.5][layer % 3]).collect()).collect()
        };
        let losses: Vec<Vec<f64>> = (0..200)
            .map(|_| {
                let scale = rng.random::<f64>().powi(4);
                (0..10).map(|o| scale * f64::from(o) * rng.random_range(0.8..1.2)).collect()
            })
            .collect();
        let limit = |costs: &[Vec<f64>], share: f64| share * costs.iter().map(|costs| costs[0]).sum::<f64>();
        let [one, two] = [costs(0), costs(1)];
        let (first, second) = (limit(&one, 0.4), limit(&two, 0.45));
        let resources = [Resource { costs: one, limit: first }, Resource { costs: two, limit: second }];
        let choice = solve(&losses, &resources).unwrap();
        assert!(resources.iter().all(|resource| resource.allows(&choice)));
        // No single layer can be moved to a smaller loss, but for what rounding up its costs keeps out.
        let rounded =
            |resource: &Resource, choice: &[usize]| resource.spent(choice) <= resource.limit * (1.0 - 200.0 / STEPS);
        for layer in 0..200 {
            for option in (0..10).filter(|&o| losses[layer][o] < losses[layer][choice[layer]]) {
                let mut other = choice.clone();
                other[layer] = option;
                assert!(!resources.iter().all(|resource| rounded(resource, &other)));
            }
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let resource = |limit| Resource { costs: vec![vec![1.0, 0.5]; 3], limit };
        let losses = vec![vec![0.0, 1.0]; 3];
        assert_eq!(solve(&losses, &[resource(1.4)]), None);
        assert_eq!(solve(&losses, &[resource(-1.0)]), None);
        assert_eq!(solve(&losses, &[resource(0.0)]), None);
        assert_eq!(solve(&losses, &[resource(3.0)]), Some(vec![0, 0, 0]));
        assert_eq!(solve(&losses, &[]), Some(vec![0, 0, 0]));
    }
}

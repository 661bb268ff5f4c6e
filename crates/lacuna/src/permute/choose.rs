//! Which orders: those under which the paper's selection keeps the most of RIA's scores.
//!
//! Each order is searched for by itself while the others stay, over all weights that it moves columns or rows of. A
//! weight counts by its size, whatever the scale of its scores.

use std::borrow::Cow;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::{Pattern, Permutation, Scores};
use lacuna_format::Checkpoint;
use lacuna_model::{Axis, ChannelOrders, Config, LinearSpec};
use lacuna_prune::Criterion;
use lacuna_prune::permute::{Moved, Places, kept, search};
use lacuna_prune::score::{Ria, Scorer};

use super::norms::Norms;
use crate::source::Source;

/// Times that all orders are searched for in turns: those of one side move what the others stand on.
const TURNS: usize = 2;
/// Rounds over all places of an order in one turn.
const ROUNDS: usize = 2;

/// What may have an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    Residual,
    Inner,
    Heads,
    Keys,
    Values,
}

/// A layer made ready to be scored.
struct Layer {
    spec: LinearSpec,
    block: usize,
    rows: Axis,
    columns: Axis,
    scorer: Scorer,
    /// of all its scores
    sum: f64,
}

/// The search for the orders of a model.
pub(super) struct Chooser<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    pattern: Pattern,
    layers: Vec<Layer>,
    orders: ChannelOrders,
}

impl<'a> Chooser<'a> {
    /// Everything where it is. Without norms scores are relative to the sums of rows and columns alone.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        pattern: Pattern,
        norms: Option<&Norms>,
    ) -> Result<Self> {
        let exponent = if norms.is_some() { Ria::default().exponent } else { 0.0 };
        let criterion = Criterion::Ria(Ria { exponent, ..Ria::default() });
        let orders = ChannelOrders::identity(config.blocks());
        let mut chooser = Self { checkpoint, config, pattern, layers: vec![], orders };
        for block in 0..config.blocks().layers {
            for spec in config.blocks().linears(block) {
                let weight = Source::open(checkpoint, &spec)?;
                let scorer = criterion.scorer_by_norms(&weight, norms.and_then(|norms| norms.of(&spec)))?;
                let axes = config.axes(checkpoint, &spec.weight())?;
                let mut layer = Layer { spec, block, rows: axes[0], columns: axes[1], scorer, sum: 0.0 };
                layer.sum = chooser.scores(&layer)?.sum();
                chooser.layers.push(layer);
            }
        }
        Ok(chooser)
    }

    /// What was found so far.
    pub(super) fn orders(&self) -> &ChannelOrders {
        &self.orders
    }

    /// The share of scores that each layer keeps under the present orders.
    pub(super) fn retained(&self) -> Result<Vec<(LinearSpec, f64)>> {
        let share = |layer: &Layer| {
            let kept = kept(&self.scores(layer)?, self.pattern)?;
            Ok((layer.spec.clone(), if layer.sum > 0.0 { kept / layer.sum } else { 1.0 }))
        };
        self.layers.iter().map(share).collect()
    }

    /// Searches for all orders, that of the residual stream only if asked for.
    pub(super) fn choose(&mut self, residual: bool, progress: &ProgressBar) -> Result<()> {
        let blocks = self.config.blocks().layers;
        progress.set_length((TURNS * (blocks + usize::from(residual))) as u64);
        for _ in 0..TURNS {
            for block in 0..blocks {
                progress.set_message(self.config.blocks().block_name(block));
                for shared in [Shared::Values, Shared::Keys, Shared::Heads, Shared::Inner] {
                    self.choose_in_block(block, shared)?;
                }
                progress.inc(1);
            }
            if residual {
                progress.set_message("residual stream");
                self.choose_residual()?;
                progress.inc(1);
            }
        }
        Ok(())
    }

    fn choose_in_block(&mut self, block: usize, shared: Shared) -> Result<()> {
        if !self.matters(shared) {
            return Ok(());
        }
        let config = self.config.blocks();
        let places = match shared {
            Shared::Inner => Places::free(config.intermediate_size),
            Shared::Heads => Places::free(config.kv_heads),
            _ => Places::runs(config.kv_heads, config.head_dim),
        };
        let moved = self.layers.iter().filter(|layer| layer.block == block);
        let moved = moved.filter_map(|layer| self.moved(layer, shared).transpose()).collect::<Result<Vec<Moved>>>()?;
        let found = search(places, self.pattern, ROUNDS, |look| moved.iter().try_for_each(look))?.order;
        let mut blocks = self.orders.blocks().to_vec();
        let orders = &mut blocks[block];
        match shared {
            Shared::Inner => orders.inner = orders.inner.then(&found)?,
            Shared::Heads => orders.heads = orders.heads.then(&found)?,
            _ => {
                let of_heads = found.as_slice().chunks_exact(config.head_dim).enumerate();
                for ((place, features), &head) in of_heads.zip(orders.heads.as_slice()) {
                    let inside = features.iter().map(|&f| f - (place * config.head_dim) as u32).collect();
                    let own = if shared == Shared::Keys { &mut orders.keys } else { &mut orders.values };
                    let own = &mut own[head as usize];
                    *own = own.then(&Permutation::new(inside)?)?;
                }
            }
        }
        self.orders = ChannelOrders::new(config, self.orders.residual().clone(), blocks)?;
        Ok(())
    }

    /// The residual stream is in all blocks, which are read one layer at a time, again for every step of the search.
    fn choose_residual(&mut self) -> Result<()> {
        let config = self.config.blocks();
        let found = search(Places::free(config.hidden_size), self.pattern, ROUNDS, |look| -> Result<()> {
            for layer in &self.layers {
                if let Some(moved) = self.moved(layer, Shared::Residual)? {
                    look(&moved)?;
                }
            }
            Ok(())
        })?;
        let residual = self.orders.residual().then(&found.order)?;
        self.orders = ChannelOrders::new(config, residual, self.orders.blocks().to_vec())?;
        Ok(())
    }

    /// Whether another order could keep more: rows that stay in their block of `V`, and columns that keep their group,
    /// change nothing.
    fn matters(&self, shared: Shared) -> bool {
        let config = self.config.blocks();
        let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
        match shared {
            Shared::Residual | Shared::Inner | Shared::Values => true,
            Shared::Keys => !config.rotates() && !self.pattern.v().is_multiple_of(dim),
            // Heads that moved columns from one group to another would do so without being asked what that is worth.
            Shared::Heads => !dim.is_multiple_of(self.pattern.v()) && (group * dim).is_multiple_of(self.pattern.m()),
        }
    }

    /// A layer as the search sees it; none if the order moves nothing of it.
    fn moved(&self, layer: &Layer, shared: Shared) -> Result<Option<Moved<'static>>> {
        let (columns, rows) = (self.lines(shared, layer.columns), self.lines(shared, layer.rows));
        if columns.is_empty() && rows.is_empty() || layer.sum == 0.0 {
            return Ok(None);
        }
        let weight = ((layer.spec.rows * layer.spec.cols) as f64 / layer.sum) as f32;
        Ok(Some(Moved { scores: Cow::Owned(self.scores(layer)?), weight, columns, rows }))
    }

    /// The scores of a layer, arranged by the present orders.
    fn scores(&self, layer: &Layer) -> Result<Scores> {
        let weight = self.checkpoint.raw_matrix(&layer.spec.weight(), layer.spec.rows, layer.spec.cols)?;
        let mut scores = layer.scorer.scores(0, &weight.band(0..layer.spec.rows)?)?.into_matrix();
        if let Some(order) = self.orders.along(layer.rows) {
            scores = order.permute_rows(&scores)?;
        }
        if let Some(order) = self.orders.along(layer.columns) {
            scores = order.permute_columns(&scores)?;
        }
        Ok(Scores::new(scores)?)
    }

    /// The rows or columns of each place of an order along an axis, once for each way in which they follow it.
    fn lines(&self, shared: Shared, axis: Axis) -> Vec<Vec<usize>> {
        let config = self.config.blocks();
        let (dim, heads, group) = (config.head_dim, config.kv_heads, config.heads / config.kv_heads);
        let (keys, values) = (config.heads * dim, (config.heads + heads) * dim);
        // Features of key/value heads that stand for `per` heads each, from line `first` on.
        let features = |first: usize, per: usize| {
            let place = move |member: usize, p: usize| first + (p / dim * per + member) * dim + p % dim;
            (0..per).map(move |member| (0..heads * dim).map(|p| place(member, p)).collect())
        };
        let whole_heads = |first: usize, per: usize| {
            (0..per * dim).map(move |line| (0..heads).map(|head| first + head * per * dim + line).collect())
        };
        match (shared, axis) {
            (Shared::Residual, Axis::Residual) => vec![(0..config.hidden_size).collect()],
            (Shared::Inner, Axis::Inner(_)) => vec![(0..config.intermediate_size).collect()],
            (Shared::Values, Axis::Values(_)) | (Shared::Keys, Axis::Keys(_)) => features(0, 1).collect(),
            (Shared::Values, Axis::Mixed(_)) | (Shared::Keys, Axis::Queries(_)) => features(0, group).collect(),
            (Shared::Values, Axis::Together(_)) => features(values, 1).collect(),
            (Shared::Keys, Axis::Together(_)) => features(0, group).chain(features(keys, 1)).collect(),
            (Shared::Heads, Axis::Queries(_)) => whole_heads(0, group).collect(),
            (Shared::Heads, Axis::Keys(_) | Axis::Values(_)) => whole_heads(0, 1).collect(),
            (Shared::Heads, Axis::Together(_)) => {
                whole_heads(0, group).chain(whole_heads(keys, 1)).chain(whole_heads(values, 1)).collect()
            }
            _ => vec![],
        }
    }
}

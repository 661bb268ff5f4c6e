//! The dense baselines of the real checkpoints in `../shared`, reproduced.
//!
//! Skipped, with a line that says so, where the checkpoints are absent; `LACUNA_REQUIRE_SHARED=1` makes that a failure.

use std::path::{Path, PathBuf};

use lacuna::ProgressBar;
use lacuna::eval::{Protocol, Score, evaluate};
use lacuna_model::Activations;

/// The folder of checkpoints and data, if it is there.
fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if path.join("models").is_dir() {
        return Some(path);
    }
    let required = std::env::var_os("LACUNA_REQUIRE_SHARED").is_some_and(|v| v != "0");
    assert!(!required, "{} is missing", path.display());
    eprintln!("SKIPPED: {} is not here", path.display());
    None
}

fn dense(shared: &Path, model: &str) -> Score {
    let data = shared.join("data/text/tinystories-eval.jsonl");
    let protocol = |_: &_| Protocol::Document { context: 512 };
    evaluate(&shared.join("models").join(model), &data, protocol, Activations::F32, &ProgressBar::hidden()).unwrap()
}

#[test]
fn dense_baselines_are_reproduced() {
    let Some(shared) = shared() else { return };
    for (model, nll, tokens) in [("stories-3m", 1.2553, 66_657), ("tinystories-656k", 3.0468, 61_669)] {
        let score = dense(&shared, model);
        assert_eq!(score.tokens, tokens, "{model}");
        assert!((score.nll - nll).abs() <= 0.001, "{model}: {} where {nll} is right", score.nll);
    }
}

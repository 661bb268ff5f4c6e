//! The dense baselines of the real checkpoints in `../shared`, reproduced.
//!
//! Skipped, with a line that says so, where the checkpoints are absent; `LACUNA_REQUIRE_SHARED=1` makes that a failure.

use std::path::{Path, PathBuf};

use lacuna::ProgressBar;
use lacuna::eval::{Details, Score, Settings, evaluate};
use lacuna::images::Split;

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

fn dense(shared: &Path, model: &str, data: &str) -> Score {
    let (model, data) = (shared.join("models").join(model), shared.join("data").join(data));
    evaluate(&model, &data, &Settings::default(), &ProgressBar::hidden()).unwrap()
}

#[test]
fn dense_decoders_are_reproduced() {
    let Some(shared) = shared() else { return };
    for (model, want, predicted) in [("stories-3m", 1.2553, 66_657), ("tinystories-656k", 3.0468, 61_669)] {
        let score = dense(&shared, model, "text/tinystories-eval.jsonl");
        let Details::Perplexity { nll, tokens, .. } = score.details else { panic!("{model}: another task") };
        assert_eq!(tokens, predicted, "{model}");
        assert!((nll - want).abs() <= 0.001, "{model}: {nll} where {want} is right");
    }
}

#[test]
fn the_dense_text_encoder_is_reproduced() {
    let Some(shared) = shared() else { return };
    let score = dense(&shared, "minilm-l6", "stsb/sts-dev.csv");
    assert_eq!((score.metric, score.samples), ("spearman", 1500));
    assert!((score.value - 0.8672).abs() <= 0.001, "{} where 0.8672 is right", score.value);
}

#[test]
fn the_dense_image_classifier_is_reproduced() {
    let Some(shared) = shared() else { return };
    let score = dense(&shared, "vit-tiny", "imagenet-sample");
    let Details::Images { cross_entropy, split, .. } = score.details else { panic!("another task") };
    assert_eq!((score.metric, score.samples, split), ("top1", 500, Split::All));
    assert!((score.value - 0.812).abs() < 1e-9, "{} where 0.812 is right", score.value);
    assert!((cross_entropy - 0.7350).abs() <= 0.002, "{cross_entropy} where 0.7350 is right");
}

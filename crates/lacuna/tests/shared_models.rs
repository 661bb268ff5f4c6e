//! The dense baselines of the real checkpoints in `../shared`, reproduced; and what the paper's permutation does for them.
//!
//! Skipped, with a line that says so, where the checkpoints are absent; `LACUNA_REQUIRE_SHARED=1` makes that a failure.

use std::path::{Path, PathBuf};

use lacuna::ProgressBar;
use lacuna::eval::{Details, Score, Settings, evaluate};
use lacuna::images::Split;
use lacuna::permute::{Options, permute};
use lacuna_core::Pattern;
use lacuna_format::Checkpoint;
use lacuna_prune::Criterion;
use lacuna_prune::score::Ria;

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

/// The model reordered, as it is without calibration.
fn reordered(model: &Path, output: &Path, embeddings: bool) {
    let pattern: Pattern = "64:2:8".parse().unwrap();
    let options = Options { pattern, calibration: None, embeddings, force: false };
    let report = permute(model, output, &options, &ProgressBar::hidden()).unwrap();
    println!("{}: {:.4} -> {:.4}", model.display(), report.retained_before, report.retained_after);
    assert!(report.retained_after > report.retained_before + 0.005, "{report:?}");
}

#[test]
fn reordered_models_are_as_good_as_before() {
    let Some(shared) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for class in (0..1000).step_by(50) {
        let name = format!("{class:04}.jpg");
        std::fs::copy(shared.join("data/imagenet-sample").join(&name), images.join(&name)).unwrap();
    }
    let text = shared.join("data/text/tinystories-eval.jsonl");
    let pairs = shared.join("data/stsb/sts-dev.csv");
    // What the outputs' rounding moves: nothing of a rank, less than a millionth of a mean.
    for (model, data, embeddings) in
        [("stories-3m", &text, false), ("minilm-l6", &pairs, true), ("vit-tiny", &images, false)]
    {
        let (source, output) = (shared.join("models").join(model), folder.path().join(model));
        reordered(&source, &output, embeddings);
        let score = |dir: &Path| evaluate(dir, data, &Settings::default(), &ProgressBar::hidden()).unwrap();
        let (before, after) = (score(&source), score(&output));
        let off = after.gap_to(&before).0.abs();
        assert!(off < 2e-6, "{model}: {before:?} and {after:?}");
    }
}

#[test]
fn the_papers_permutation_keeps_more_of_real_weights() {
    let Some(shared) = shared() else { return };
    let checkpoint = Checkpoint::open(&shared.join("models/minilm-l6")).unwrap();
    let names = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"];
    for (pattern, at_least) in [("2:4", 0.01), ("64:2:5", 0.015), ("64:2:8", 0.015)] {
        let pattern: Pattern = pattern.parse().unwrap();
        let (mut before, mut after, mut count) = (0.0, 0.0, 0.0);
        for name in
            [0, 5].into_iter().flat_map(|layer| names.map(|name| format!("encoder.layer.{layer}.{name}.weight")))
        {
            let shape = &checkpoint.info(&name).unwrap().shape;
            let weight = checkpoint.matrix(&name, shape[0], shape[1]).unwrap();
            let ria = Criterion::Ria(Ria { exponent: 0.0, ..Ria::default() });
            let scores = ria.scorer(&weight, None).unwrap().scores(0, &weight).unwrap();
            let retained = lacuna_prune::permute::paper(&scores, pattern).unwrap().retained;
            assert!(retained[1] > retained[0], "{pattern}, {name}: {retained:?}");
            (before, after, count) = (before + retained[0], after + retained[1], count + 1.0);
        }
        println!("{pattern}: {:.4} -> {:.4}", before / count, after / count);
        assert!((after - before) / count > at_least, "{pattern}: {before} -> {after} of {count}");
    }
}

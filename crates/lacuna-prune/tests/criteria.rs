//! Scores against values computed by the authors' formulas (tests/golden/make.py).

use lacuna_core::Matrix;
use lacuna_prune::score::{Ria, RiaParts};
use lacuna_prune::{Criterion, Stats};
use serde_json::Value;

fn matrix(value: &Value) -> Matrix {
    let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
    Matrix::new(rows.len(), rows[0].len(), rows.concat()).unwrap()
}

fn transposed(m: &Matrix) -> Matrix {
    let data = (0..m.cols()).flat_map(|c| (0..m.rows()).map(move |r| m.row(r)[c])).collect();
    Matrix::new(m.cols(), m.rows(), data).unwrap()
}

#[test]
fn scores_are_those_of_the_published_formulas() {
    let golden: Value = serde_json::from_str(include_str!("golden/criteria.json")).unwrap();
    let weight = matrix(&golden["weight"]);
    let mut stats = Stats::new(weight.cols());
    stats.observe(&transposed(&matrix(&golden["activations"])), None).unwrap();
    let mut cases =
        vec![(Criterion::Magnitude, matrix(&golden["magnitude"])), (Criterion::Wanda, matrix(&golden["wanda"]))];
    for case in golden["ria"].as_array().unwrap() {
        let parts = match case["parts"].as_str().unwrap() {
            "both" => RiaParts::Both,
            "column" => RiaParts::Column,
            "row" => RiaParts::Row,
            other => panic!("unknown parts {other}"),
        };
        let exponent = case["a"].as_f64().unwrap() as f32;
        cases.push((Criterion::Ria(Ria { parts, exponent }), matrix(&case["scores"])));
    }
    assert!(cases.len() >= 6);
    for (criterion, want) in cases {
        let got = criterion.scorer(&weight, Some(&stats)).unwrap().scores(0, &weight).unwrap();
        for (i, (g, w)) in got.matrix().data().iter().zip(want.data()).enumerate() {
            assert!((g - w).abs() <= 1e-5 * w.abs() + 1e-9, "{criterion:?} element {i}: {g} where {w} is right");
        }
    }
}

#[test]
fn a_criterion_that_needs_activations_says_so() {
    let weight = Matrix::zeros(4, 8);
    assert!(Criterion::Wanda.scorer(&weight, None).is_err());
    assert!(Criterion::Wanda.scorer(&weight, Some(&Stats::new(7))).is_err());
    assert!(Criterion::Magnitude.scorer(&weight, None).is_ok());
}

//! The demo, as a user runs it: the README's first command and the figures it prints.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

#[test]
fn the_demo_shows_what_each_pattern_costs_and_gains() {
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna")).args(["demo", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = shown["rows"].as_array().unwrap();
    let column = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).collect::<Vec<_>>();
    let variants: Vec<&str> = rows.iter().map(|row| row["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["dense", "2:4", "64:2:5", "64:2:8"]);

    // Held-out NLL of the dense checkpoint by PyTorch (demo/README.md): 1.1595.
    let perplexity = column("perplexity");
    assert!((perplexity[0].ln() - 1.1595).abs() < 0.001, "{}", perplexity[0]);
    assert!(perplexity.is_sorted(), "{perplexity:?}");
    // docs/format.md, "Size": 2:4 0.578 of dense, 64:2:5 0.463, 64:2:8 0.289, and 4 bytes a row for its order; 192 and 512
    // are no multiples of 5.
    let bytes = column("linear_bytes");
    for (i, limit) in [(1, 0.58), (2, 0.485), (3, 0.30)] {
        assert!(bytes[i] / bytes[0] <= limit, "{}: {} of dense", variants[i], bytes[i] / bytes[0]);
    }
    assert!(column("bytes").is_sorted_by(|a, b| a > b));
    assert!(column("prefill_tokens_per_second").iter().chain(&column("decode_tokens_per_second")).all(|&r| r > 0.0));
    assert_eq!(shown["samples"].as_array().unwrap().len(), 4);
    assert!(started.elapsed().as_secs() < 180, "{:?}", started.elapsed());
}

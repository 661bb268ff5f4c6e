//! `lacuna bench --kernels`, with engines of a few lines of sh.
#![cfg(unix)]

mod common;

use common::{FAILED, Run, Tiny, USAGE, refused};
use serde_json::Value;

/// Quick, has a row block that is not whole and groups of padding.
const SMALL: &str = "bench --kernels --threads 2 --shapes 100x322 --patterns 64:2:5,2:4 --min-seconds 0";
const HELLO: &str = r#"{"engine": "fake", "version": "1", "value_types": ["f32", "bf16"], "threads": 2}"#;

fn engine(script: &str) -> Tiny {
    let tiny = Tiny::new();
    tiny.write("engine.sh", format!("echo '{HELLO}'\n{script}").as_bytes());
    tiny
}

/// Faster than light in f32, and without bf16 when it comes to it.
fn fake() -> Tiny {
    engine(
        r#"
        echo "$*" > arguments; echo $$ > pid
        while read -r request; do
            echo "$request" >> requests
            case $request in
                *bf16*) echo '{"unsupported": "not today"}' ;;
                *) echo '{"seconds": 2e-9, "minimum": 1e-9, "repetitions": 5, "variant": "none"}' ;;
            esac
        done"#,
    )
}

fn bench(tiny: &Tiny, more: &[&str]) -> Run {
    let mut args: Vec<&str> = SMALL.split(' ').collect();
    args.extend(more);
    tiny.lacuna_args(&args)
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

#[test]
fn rows_beside_an_engine() {
    let tiny = fake();
    let more = ["--tokens", "1,20,64", "--values", "bf16,f32,int8", "--engine", "sh engine.sh", "--csv", "a.csv"];
    let out = bench(&tiny, &[&more[..], &["--json"]].concat()).json();
    assert_eq!(out["threads"], 2);
    assert!(out["cpu"].is_string());
    assert_eq!(out["date"].as_str().unwrap().len(), "2026-01-01".len());
    let rows = out["rows"].as_array().unwrap();
    // Dense and two patterns, and where it has something to say the engine.
    assert_eq!(rows.len(), 3 * (3 + 4 + 3));
    for row in rows {
        assert_eq!((&row["shape"], &row["rows"], &row["cols"]), (&"100x322".into(), &100.into(), &322.into()));
        assert!(number(row, "minimum") <= number(row, "seconds"));
        let fake = row["engine"] == "fake";
        if row["value_type"] == "f32" {
            assert_eq!((&row["rival"], number(row, "rival_seconds")), (&"fake".into(), 2e-9), "{row}");
        } else {
            assert_eq!((fake, &row["rival"]), (false, &"lacuna".into()), "{row}");
        }
        if fake {
            assert_eq!(
                (&row["pattern"], &row["variant"], &row["checked"]),
                (&"dense".into(), &"none".into(), &Value::Null)
            );
        } else {
            assert!((0.0..=1.0).contains(&number(row, "checked")), "{row}");
        }
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b, "{a}, not {b}: {row}");
        close(number(row, "ratio"), number(row, "rival_seconds") / number(row, "seconds"));
        close(number(row, "share"), number(row, "ratio") / number(row, "limit"));
        if row["pattern"] == "64:2:5" {
            // 65 groups of 5 and 2 row blocks of 64; 322 values have 11 scales, 130 have 5.
            let positions_and_columns = 100.0 * 65.0 / 2.0 + 2.0 * 65.0 * 4.0;
            let (dense, packed) = match row["value_type"].as_str().unwrap() {
                "f32" => (322.0 * 4.0, 130.0 * 4.0),
                "bf16" => (322.0 * 2.0, 130.0 * 2.0),
                _ => (322.0 + 11.0 * 2.0, 130.0 + 5.0 * 2.0),
            };
            let bytes = 100.0 * dense / (100.0 * packed + positions_and_columns);
            close(number(row, "limit"), if row["tokens"] == 64 { 322.0 / 130.0 } else { bytes });
        }
    }

    let words = std::fs::read_to_string(tiny.path("arguments")).unwrap();
    assert_eq!(words.trim(), "--threads 2");
    let requests = std::fs::read_to_string(tiny.path("requests")).unwrap();
    // f32 in two rounds; bf16 once; int8 never, it is not offered.
    assert_eq!(requests.lines().count(), 3 * (2 + 1));
    let request: Value = serde_json::from_str(requests.lines().last().unwrap()).unwrap();
    let want = serde_json::json!({"rows": 100, "cols": 322, "tokens": 64, "value_type": "f32", "min_seconds": 0.0});
    assert_eq!(request, want);

    let csv = std::fs::read_to_string(tiny.path("a.csv")).unwrap();
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    let fields = rows[0].as_object().unwrap().keys().map(String::as_str);
    assert_eq!(head, fields.chain(["date", "cpu", "threads", "version"]).collect::<Vec<_>>());
    assert_eq!(lines.count(), rows.len());
}

#[test]
fn engines_end_with_the_command() {
    let tiny = fake();
    bench(&tiny, &["--tokens", "20", "--values", "f32", "--engine", "sh engine.sh"]).ok();
    let pid = std::fs::read_to_string(tiny.path("pid")).unwrap();
    let alive = std::process::Command::new("sh").args(["-c", &format!("kill -0 {pid}")]).output().unwrap();
    assert!(!alive.status.success());
}

#[test]
fn engines_that_fail() {
    let case = ["--tokens", "20", "--values", "f32", "--csv", "out", "--engine"];
    for (script, words) in [
        ("exit 3", &["sh engine.sh", "100x322, 20 tokens, f32", "exit status: 3"][..]),
        ("read x; echo a; echo sorry >&2", &["sh engine.sh", "'a' is not of the protocol"]),
        ("read x; echo; echo sorry >&2", &["sh engine.sh", "not of the protocol"]),
        ("read x; echo sorry >&2", &["sh engine.sh", "f32", "sorry"]),
        (r#"read x; echo '{"seconds": 0, "minimum": 0, "variant": ""}'"#, &["sh engine.sh", "is no time"]),
    ] {
        let tiny = engine(script);
        refused(&tiny, &bench(&tiny, &[&case[..], &["sh engine.sh"]].concat()), FAILED, words);
    }
    let tiny = Tiny::new();
    for (command, words) in [
        ("./nobody here", &["./nobody here", "cannot start"][..]),
        ("sh nothing.sh", &["sh nothing.sh", "cannot start", "nothing.sh"]),
        ("", &["cannot start", "no program"]),
        ("echo hello", &["echo hello", "cannot start", "not of the protocol"]),
    ] {
        refused(&tiny, &bench(&tiny, &[&case[..], &[command]].concat()), FAILED, words);
    }
}

#[test]
fn asked_wrongly() {
    let tiny = Tiny::new();
    for (command, words) in [
        ("bench", &["MODEL"][..]),
        ("bench model --kernels", &["MODEL", "--kernels"]),
        ("bench model --tokens 1", &["MODEL", "--tokens"]),
        ("bench model --csv out", &["MODEL", "--csv"]),
        ("bench --kernels --rounds 2", &["--kernels", "--rounds"]),
        ("bench --kernels --shapes llama-9b", &["'llama-9b'", "llama-2-7b", "square-4096", "ROWSxCOLS"]),
        ("bench --kernels --shapes bert-base,", &["--shapes", "qwen2-0.5b"]),
        ("bench --kernels --patterns 2:5", &["--patterns", "'2:5'"]),
        ("bench --kernels --shapes 64x7 --patterns 2:4,64:2:8", &["--patterns", "64:2:8", "64x7"]),
        ("bench --kernels --values f64", &["--values", "bf16, f32, int8, int4"]),
        ("bench --kernels --tokens 0", &["--tokens"]),
        ("bench --kernels --min-seconds nan", &["--min-seconds"]),
        ("bench --kernels --csv model/config.json", &["model/config.json already exists", "--force"]),
    ] {
        refused(&tiny, &tiny.lacuna(command), USAGE, words);
    }
    refused(&tiny, &tiny.lacuna("bench --kernels --csv no/out"), FAILED, &["no/out"]);
}

#[test]
fn a_table_and_a_file_in_place_of_another() {
    let tiny = Tiny::new();
    tiny.write("a.csv", b"old");
    let run = bench(&tiny, &["--tokens", "20", "--values", "int4", "--csv", "a.csv", "--force"]).ok();
    assert_eq!(run.stdout.lines().count(), 1 + 3, "{}", run.stdout);
    assert!(run.stdout.starts_with("shape") && run.stdout.contains("64:2:5"), "{}", run.stdout);
    assert_eq!(std::fs::read_to_string(tiny.path("a.csv")).unwrap().lines().count(), 1 + 3);
    assert!(!tiny.entries().iter().any(|name| name.ends_with(".partial")));
}

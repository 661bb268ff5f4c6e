//! What only a GPU can tell: `cargo xtask gpu-check` runs this, or it is carried to the machine that has one.
//!
//! `gpu_check [--record DIRECTORY] [--seed N] [--only LIST] PART …`, parts `micro`, `correct`, `models`, `products` and `small`.
//! Each part is independent of the others and of its own failures: what cannot be run is named and left behind. `--only
//! 4096x4096,64:2:8,1,16` leaves these shapes, patterns and numbers of tokens of `products`, for where minutes are few.
//! Records are CSV, written line by line. Exit codes: 0 all well, 1 something failed, 2 no GPU that the kernels run on, or asked wrongly.

mod correct;
#[path = "../../tests/support/golden.rs"]
mod golden;
mod micro;
mod models;
mod products;
mod record;
#[path = "../../tests/support/reference.rs"]
mod reference;
#[path = "../../../lacuna-kernels/tests/support/random.rs"]
mod support;
#[path = "../../tests/support/values.rs"]
mod values;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use lacuna_cuda::launch::Device;

/// What a part gives: how many things went wrong.
type Outcome = Result<usize, Box<dyn std::error::Error>>;
type Part = fn(&Arc<Device>, &Settings) -> Outcome;

/// `small` is what of `correct` a sanitizer gets done.
const PARTS: [(&str, Part); 5] = [
    ("micro", |device, settings| micro::run(device, settings)),
    ("correct", |device, settings| correct::run(device, settings)),
    ("models", models::run),
    ("products", |device, settings| products::run(device, settings)),
    ("small", |device, settings| correct::small(device, settings)),
];

/// What was asked for.
struct Settings {
    record: PathBuf,
    seed: u64,
    /// shapes, patterns and numbers of tokens; of a kind of which none is named, all
    only: Vec<String>,
}

impl Settings {
    /// Whether a shape, a pattern or a number of tokens is wanted.
    fn wants(&self, name: &str) -> bool {
        let kind = |name: &str| (name.contains('x'), name.contains(':'));
        let mut of_kind = self.only.iter().filter(|only| kind(only) == kind(name)).peekable();
        of_kind.peek().is_none() || of_kind.any(|only| only == name)
    }
}

fn main() -> ExitCode {
    let mut settings = Settings { record: PathBuf::from("bench/record"), seed: record::seconds(), only: vec![] };
    let mut chosen = vec![];
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--record" => settings.record = arguments.next().unwrap_or_default().into(),
            "--seed" => settings.seed = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(0),
            "--only" => settings.only = arguments.next().unwrap_or_default().split(',').map(str::to_owned).collect(),
            name => match PARTS.iter().find(|(part, _)| *part == name) {
                Some(part) => chosen.push(*part),
                None => {
                    eprintln!("error: no part {name}; there are micro, correct, models, products and small");
                    return ExitCode::from(2);
                }
            },
        }
    }
    let device = match Device::open(0) {
        Ok(device) => Arc::new(device),
        Err(error) => {
            eprintln!("no GPU to check: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{:?}, kernels for {}, seed {}", device.gpu(), device.architecture(), settings.seed);
    let mut wrong = 0;
    for (name, part) in chosen {
        println!("== {name}");
        match part(&device, &settings) {
            Ok(0) => println!("== {name}: well"),
            Ok(failures) => {
                println!("== {name}: {failures} FAILED");
                wrong += failures;
            }
            Err(error) => {
                println!("== {name}: FAILED: {error}");
                wrong += 1;
            }
        }
    }
    ExitCode::from(u8::from(wrong > 0))
}

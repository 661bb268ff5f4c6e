//! The rates that decide on the design: `mma.sp` beside `mma` and `wgmma.sp`, and what the second-level cache gives.

use std::time::Instant;

use lacuna_cuda::launch::{Device, Probe};

use crate::record::{Record, median};
use crate::{Outcome, Settings};

/// A measurement is repeated so often, each time for at least so many seconds.
const REPEATS: usize = 7;
const SECONDS: f64 = 0.05;

pub fn run(device: &Device, settings: &Settings) -> Outcome {
    let mut record = Record::create(&settings.record, "gpu-micro", "probe,rate,unit", device)?;
    let mut wrong = 0;
    for probe in [Probe::Dense, Probe::Sparse, Probe::GroupSparse, Probe::Cache] {
        if !probe.runs_on(device) {
            println!("{}: not on this GPU", probe.name());
            continue;
        }
        match rate(device, probe) {
            Ok(rate) => {
                let unit = if probe == Probe::Cache { "GB/s" } else { "TFLOP/s" };
                let scale = if probe == Probe::Cache { 1e9 } else { 1e12 };
                record.row(&format!("{},{:.1},{unit}", probe.name(), rate / scale))?;
            }
            Err(error) => {
                println!("{}: {error}", probe.name());
                wrong += 1;
            }
        }
    }
    Ok(wrong)
}

/// Operations or bytes a second, zeros counted.
fn rate(device: &Device, probe: Probe) -> lacuna_cuda::Result<f64> {
    let timed = |rounds: u32| -> lacuna_cuda::Result<(f64, f64)> {
        let started = Instant::now();
        let done = probe.run(device, rounds)?;
        Ok((done, started.elapsed().as_secs_f64()))
    };
    // Compiled before the clock counts.
    timed(1)?;
    let mut rounds = 16;
    while timed(rounds)?.1 < SECONDS && rounds < 1 << 28 {
        rounds *= 2;
    }
    let mut rates = vec![];
    for _ in 0..REPEATS {
        let (done, seconds) = timed(rounds)?;
        rates.push(done / seconds);
    }
    Ok(median(&mut rates))
}

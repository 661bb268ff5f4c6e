//! The flags that say what to calibrate on, of every subcommand that does.

use std::path::PathBuf;

use lacuna::calibrate::Calibration;

#[derive(clap::Args)]
pub(super) struct CalibrationArgs {
    /// Data to calibrate on: a text (.txt, or .jsonl with a "text" a line), for encoders sentences (a line each, or an STS
    /// file), for image classifiers a folder of images, of which every fifth by name is used and `eval` leaves it out
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Calibration samples at most [default: 128, of a decoder no more than have 65,536 tokens together; for `plan` 32]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    calibration_samples: Option<usize>,
    /// Tokens of a calibration sample [default: the model's context, at most 2048, for `plan` 256; of sentences: all, up to
    /// the context]
    #[arg(long, value_name = "N")]
    calibration_length: Option<usize>,
}

impl CalibrationArgs {
    /// What they ask for, if anything; `samples` unless told otherwise.
    pub(super) fn calibration(&self, samples: Option<usize>, seed: u64) -> Option<Calibration> {
        self.calibration.clone().map(|data| Calibration {
            data,
            samples: self.calibration_samples.or(samples),
            length: self.calibration_length,
            seed,
        })
    }
}

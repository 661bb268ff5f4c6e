//! Records: CSV that is whole after every line, with what was measured on.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lacuna_cuda::launch::Device;

/// A file of rows.
pub struct Record {
    file: File,
    /// the last columns of every row
    end: String,
}

impl Record {
    /// `GPU/DATE-NAME.csv` with a head; rows end with GPU, date and version.
    pub fn create(dir: &Path, name: &str, head: &str, device: &Device) -> std::io::Result<Self> {
        let dir = dir.join(device.gpu().name.to_lowercase().replace([' ', '/', ','], "-"));
        std::fs::create_dir_all(&dir)?;
        let date = date();
        let mut file = File::create(dir.join(format!("{date}-{name}.csv")))?;
        writeln!(file, "{head},gpu,date,version")?;
        let end = format!("{},{date},{}", device.gpu().name.replace(',', " "), env!("CARGO_PKG_VERSION"));
        Ok(Self { file, end })
    }

    /// Writes a row and shows it.
    pub fn row(&mut self, row: &str) -> std::io::Result<()> {
        println!("{row}");
        writeln!(self.file, "{row},{}", self.end)?;
        self.file.flush()
    }
}

/// Seconds since 1970.
pub fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Today, in Greenwich: `YYYY-MM-DD`. Days are counted from a first of March, so that leap days come last in a year.
fn date() -> String {
    let days = seconds() / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + late)
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

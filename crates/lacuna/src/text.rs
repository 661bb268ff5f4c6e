//! Text in: documents of a `.jsonl` file (`{"text": …}` a line) or one document, a plain text file.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The documents of a file. Refuses files that are empty, not UTF-8 or, for `.jsonl`, not what they claim.
pub fn read_documents(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{}: byte {at} is not UTF-8; convert the text to UTF-8", path.display())
    })?;
    let documents = if path.extension().is_some_and(|e| e == "jsonl") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(i, line): (usize, &str)| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let text = value["text"].as_str().map(str::to_owned);
            text.with_context(|| format!("{}: line {} is no {{\"text\": \"...\"}}; make it one", path.display(), i + 1))
        };
        lines.map(parse).collect::<Result<Vec<_>>>()?
    } else {
        vec![text]
    };
    if documents.iter().all(|document| document.trim().is_empty()) {
        bail!("{}: holds no text; give a file with some", path.display());
    }
    Ok(documents)
}

//! Text in: documents of a `.jsonl` file (`{"text": …}` a line) or one document, a plain text file; pairs of sentences of
//! the STS benchmark.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The documents of a file. Refuses files that are empty, not UTF-8 or, for `.jsonl`, not what they claim.
pub fn read_documents(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
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

/// The sentences of a file: of `.jsonl` a document each, of an STS file (`.csv`, `.tsv`) both of every pair, else a line
/// each.
pub fn read_sentences(path: &Path) -> Result<Vec<String>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let sentences: Vec<String> = match extension {
        "jsonl" => read_documents(path)?,
        "csv" | "tsv" => read_pairs(path)?.into_iter().flat_map(|pair| pair.sentences).collect(),
        _ => read_documents(path)?.iter().flat_map(|text| text.lines().map(|line| line.trim().to_owned())).collect(),
    };
    let sentences: Vec<String> = sentences.into_iter().filter(|sentence| !sentence.is_empty()).collect();
    if sentences.is_empty() {
        bail!("{}: holds no text; give a file with some", path.display());
    }
    Ok(sentences)
}

/// Two sentences and how alike people found them.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPair {
    /// from 0, unrelated, to 5, the same
    pub score: f64,
    /// the two
    pub sentences: [String; 2],
}

/// The pairs of an STS benchmark file: fields between tabs, the fifth a score, the sixth and seventh the sentences.
pub fn read_pairs(path: &Path) -> Result<Vec<ScoredPair>> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line): (usize, &str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let score = fields.get(4).and_then(|score| score.parse::<f64>().ok()).filter(|score| score.is_finite());
        let parsed = score.zip(fields.get(5..7)).map(|(score, pair)| ScoredPair {
            score,
            sentences: [pair[0].trim().to_owned(), pair[1].trim().to_owned()],
        });
        let layout = "STS pair (seven fields between tabs, the fifth a score, the sixth and seventh sentences)";
        parsed.with_context(|| format!("{}: line {} is no {layout}; make it one", path.display(), i + 1))
    };
    let pairs = lines.map(parse).collect::<Result<Vec<_>>>()?;
    if pairs.is_empty() {
        bail!("{}: holds no pairs; give a file with some", path.display());
    }
    Ok(pairs)
}

fn read_text(path: &Path) -> Result<String> {
    if path.is_dir() {
        bail!("{}: is a folder; give a file of text", path.display());
    }
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{}: byte {at} is not UTF-8; convert the text to UTF-8", path.display())
    })
}

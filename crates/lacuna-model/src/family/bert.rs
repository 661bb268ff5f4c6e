//! BERT and its relatives: learned positions, LayerNorm behind each residual, a plain MLP.
//!
//! Defaults of missing keys are those of Hugging Face transformers' `BertConfig`, `RobertaConfig`, `XLMRobertaConfig`.
//! RoBERTa counts positions from behind the padding token's id.

use lacuna_format::{Checkpoint, read_json};
use serde_json::Value;

use super::encoder;
use super::keys::{flag, optional, text};
use crate::pooling::Pooling;
use crate::{BlockNames, Config, NormPlace, Qkv, TextConfig};

type Result<T> = std::result::Result<T, String>;

/// BERT, MiniLM.
pub(super) fn bert(checkpoint: &Checkpoint) -> Result<Config> {
    common(checkpoint, 30_522, |_| Ok(0))
}

/// RoBERTa, XLM-RoBERTa.
pub(super) fn roberta(checkpoint: &Checkpoint) -> Result<Config> {
    common(checkpoint, 50_265, |config| match config.get("pad_token_id") {
        None | Some(Value::Null) => Ok(2),
        Some(id) => id
            .as_u64()
            .filter(|&id| id < 1 << 28)
            .map(|id| id as usize + 1)
            .ok_or_else(|| format!("pad_token_id is {id}; it must be a token id")),
    })
}

fn common(checkpoint: &Checkpoint, vocab: usize, first_position: fn(&Value) -> Result<usize>) -> Result<Config> {
    let config = checkpoint.config();
    let kind = text(config, "position_embedding_type", "absolute")?;
    if kind != "absolute" {
        return Err(format!("position_embedding_type {kind} is not supported; this family runs with absolute"));
    }
    if flag(config, "is_decoder", false)? {
        return Err("is_decoder is true; this family is run as an encoder".to_owned());
    }
    let size = |key: &str, default| Ok::<_, String>(optional(config, key)?.unwrap_or(default));
    let position_rows = size("max_position_embeddings", 512)?;
    let first_position = first_position(config)?;
    let positions = position_rows.checked_sub(first_position).filter(|&n| n > 0).ok_or_else(|| {
        format!("max_position_embeddings {position_rows} leaves no position behind pad_token_id {}", first_position - 1)
    })?;
    // Saved inside a larger model, an encoder's tensors have its name before theirs.
    let word = "embeddings.word_embeddings.weight";
    let prefixes = checkpoint.tensors().keys().filter_map(|name| name.strip_suffix(word));
    let prefix = prefixes.min_by_key(|prefix| prefix.len()).unwrap_or_default().to_owned();
    let names = BlockNames {
        prefix: format!("{prefix}encoder.layer"),
        norms: ["attention.output.LayerNorm", "output.LayerNorm"],
        qkv: Qkv::Apart(["attention.self.query", "attention.self.key", "attention.self.value"]),
        o: "attention.output.dense",
        gate: None,
        up: "intermediate.dense",
        down: "output.dense",
    };
    Ok(Config::Text(TextConfig {
        blocks: encoder::blocks(config, NormPlace::AfterResidual, true, names)?,
        prefix,
        vocab_size: size("vocab_size", vocab)?,
        position_rows,
        first_position,
        token_types: size("type_vocab_size", 2)?,
        max_tokens: max_seq_length(checkpoint)?.map_or(positions, |asked| asked.min(positions)),
        pooling: Pooling::open(checkpoint.dir()).map_err(|e| e.to_string())?,
    }))
}

/// The limit that sentence-transformers keeps beside the config.
fn max_seq_length(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let path = checkpoint.dir().join("sentence_bert_config.json");
    if !path.exists() {
        return Ok(None);
    }
    optional(&read_json(&path).map_err(|e| e.to_string())?, "max_seq_length")
}

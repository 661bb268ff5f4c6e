//! tokenizer.json, and which tokens come before a text.

use std::path::Path;

use tokenizers::{PostProcessor, TruncationDirection};

use crate::header::read_json;
use crate::{Error, Result};

/// A tokenizer that matches its checkpoint.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens that come before every text: BOS, or nothing.
    prefix: Vec<u32>,
}

impl Tokenizer {
    /// Reads tokenizer.json of a checkpoint with `vocab_size` embeddings; refuses one with more tokens than that.
    ///
    /// BOS comes first if tokenizer_config.json says `add_bos_token`, or, where it says nothing, if the tokenizer's own
    /// template begins with it; its id is config.json's `bos_token_id`.
    pub fn open(dir: &Path, vocab_size: usize, bos_token_id: Option<u32>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::file(&path, "missing; copy the tokenizer of the original checkpoint here"));
        }
        let ways = "copy the tokenizer of the original checkpoint here";
        let fail = |e: tokenizers::Error| Error::file(&path, format!("not a usable tokenizer: {e}; {ways}"));
        let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(fail)?;
        // Limits that a training run left in the file must not cut or fill up the texts of an evaluation.
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest as usize >= vocab_size {
            let found = format!("it has token {highest}, the checkpoint has {vocab_size} embeddings");
            return Err(Error::file(&path, format!("does not match: {found}; {ways}")));
        }
        let settings = dir.join("tokenizer_config.json");
        let settings = if settings.exists() { read_json(&settings)? } else { serde_json::Value::Null };
        let template = inner.encode("", true).map_err(fail)?.get_ids().to_vec();
        let prefix: Vec<u32> = match (settings["add_bos_token"].as_bool(), bos_token_id) {
            (Some(true), Some(bos)) => vec![bos],
            (Some(false), _) => vec![],
            _ => template
                .first()
                .copied()
                .filter(|&first| bos_token_id.is_none_or(|bos| bos == first))
                .into_iter()
                .collect(),
        };
        if let Some(id) = prefix.iter().find(|&&id| id as usize >= vocab_size) {
            let found = format!("texts would begin with token {id}, the checkpoint has {vocab_size} embeddings");
            return Err(Error::file(&path, format!("{found}; correct bos_token_id in config.json")));
        }
        Ok(Self { inner, prefix })
    }

    /// Tokens of a text, after BOS where the model wants one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_bare(text)?;
        Ok(self.prefix.iter().copied().chain(ids).collect())
    }

    /// Tokens of a text alone.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::file(Path::new("tokenizer.json"), format!("cannot encode: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of a text with the special ones that the tokenizer's template puts around it, at most `max` in all: what is
    /// cut is the text's end.
    pub fn encode_with_specials(&self, text: &str, max: usize) -> Result<Vec<u32>> {
        let fail = |e| Error::file(Path::new("tokenizer.json"), format!("cannot encode: {e}"));
        let specials = self.inner.get_post_processor().map_or(0, |template| template.added_tokens(false));
        let mut encoding = self.inner.encode_fast(text, false).map_err(fail)?;
        encoding.truncate(max.saturating_sub(specials), 0, TruncationDirection::Right);
        Ok(self.inner.post_process(encoding, None, true).map_err(fail)?.get_ids().to_vec())
    }

    /// Text of tokens, special ones left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let fail = |e| Error::file(Path::new("tokenizer.json"), format!("cannot decode: {e}"));
        self.inner.decode(ids, true).map_err(fail)
    }

    /// Text that arrives token by token, following `prompt`.
    pub fn stream(&self, prompt: &[u32]) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: prompt.to_vec(), printed: prompt.len() }
    }
}

/// Decodes a growing sequence of tokens into pieces of whole characters.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// tokens whose text was already given out
    printed: usize,
}

impl TextStream<'_> {
    /// Adds a token; gives the text that became complete with it, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        // Decoders treat the first token of a text specially (a leading space), and a character may span tokens: decode
        // a few tokens before the new ones too, and give out the difference.
        let context = self.printed.saturating_sub(8);
        let before = self.tokenizer.decode(&self.ids[context..self.printed])?;
        let after = self.tokenizer.decode(&self.ids[context..])?;
        match after.strip_prefix(&before) {
            Some(new) if !new.ends_with('\u{fffd}') => {
                self.printed = self.ids.len();
                Ok(new.to_owned())
            }
            _ => Ok(String::new()),
        }
    }
}

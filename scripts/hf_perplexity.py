#!/usr/bin/env python3
"""Perplexity of a causal language model on a file of documents, by Hugging Face transformers.

An independent reference for lacuna's own evaluation. Each line of DATA.jsonl is {"text": ...}, one document. Its
sequence is the config's bos_token_id followed by the tokens of the text without special tokens, cut to --context
tokens in all; every token after the first is predicted from those before it, and no document sees another. Prints one
JSON object: `nll`, the mean negative log-likelihood in nats over all predicted tokens of all documents, `perplexity`,
its exponential, and `tokens`, how many were predicted. The model runs in float32 on the CPU.

Needs the packages pinned in requirements.txt next to this script.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

BATCH = 16


def read_sequences(model_dir: Path, data: Path, bos: int, context: int, limit: int | None) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sequences = []
    with open(data, encoding="utf-8") as lines:
        for line in lines:
            if limit is not None and len(sequences) >= limit:
                break
            if line.strip():
                ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
                sequences.append([bos, *ids][:context])
    return sequences


@torch.inference_mode()
def batch_nll(model: torch.nn.Module, batch: list[list[int]]) -> float:
    """The summed negative log-likelihood of every token after the first of each sequence."""
    width = max(map(len, batch))
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.double().sum().item()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path, help="folder with config.json, tokenizer.json and the weights")
    parser.add_argument("data", type=Path, metavar="data.jsonl", help='documents, one {"text": ...} per line')
    parser.add_argument("--context", type=positive, default=512, help="longest sequence, with BOS (default 512)")
    parser.add_argument("--limit", type=positive, help="only the first N documents", metavar="N")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32, local_files_only=True).eval()
    bos = model.config.bos_token_id
    if bos is None:
        parser.error("config.json has no bos_token_id")

    sequences = read_sequences(args.model_dir, args.data, bos, args.context, args.limit)
    sequences = sorted((ids for ids in sequences if len(ids) > 1), key=len)
    count = sum(len(ids) - 1 for ids in sequences)
    if count == 0:
        parser.error("no tokens to predict")
    total = math.fsum(batch_nll(model, sequences[start : start + BATCH]) for start in range(0, len(sequences), BATCH))
    nll = total / count
    print(json.dumps({"nll": nll, "perplexity": math.exp(nll), "tokens": count}))


if __name__ == "__main__":
    main()

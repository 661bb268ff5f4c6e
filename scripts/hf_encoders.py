#!/usr/bin/env python3
"""The quality of an encoder on a labelled set, by Hugging Face transformers.

An independent reference for lacuna's own evaluation. Prints one JSON object with `metric`, `value` and
`samples`, how many pairs or images there were:

  --task embed-sts        `metric` "spearman": the rank correlation (ties share their mean rank) of the similarity of
                          two sentences with the score that people gave them. DATA is STS-B's file: tab-separated, no
                          quoting, the score in field 5 and the sentences in fields 6 and 7. Similarity is the cosine
                          of the means of the last hidden states over all tokens, special ones too; a sentence is cut
                          to --max-tokens tokens, special ones included.
  --task classify-images  `metric` "top1": the share of images whose class has the largest logit. `cross_entropy` too,
                          the mean negative log-likelihood in nats. DATA is a folder of images, each named by the
                          number of its class, or one with a folder of them for each class, or with --names a list of
                          paths in it, one a line.

The model runs in float32 on the CPU.

Images are prepared by Pillow as preprocessor_config.json says: do_resize (`size` is a shortest_edge, a number meaning
the same where do_center_crop is set, or a height and width), do_center_crop, do_rescale and do_normalize, in this
order. The classes named ViTImageProcessor and ViTImageProcessorFast take no notice of do_center_crop.

Needs the packages pinned in requirements.txt next to this script.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForImageClassification
from transformers.utils import logging

BATCH = 32
SUFFIXES = {".jpg", ".jpeg", ".png"}


def load(auto: type, model_dir: Path) -> torch.nn.Module:
    model = auto.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    return model.eval()


# --- Sentences --------------------------------------------------------------------------------------------------------


def read_pairs(data: Path, limit: int | None) -> tuple[list[float], list[str], list[str]]:
    scores, left, right = [], [], []
    for line in data.read_text(encoding="utf-8").split("\n"):
        if limit is not None and len(scores) >= limit:
            break
        if line.strip():
            fields = line.rstrip("\r").split("\t")
            scores.append(float(fields[4]))
            left.append(fields[5])
            right.append(fields[6])
    return scores, left, right


@torch.inference_mode()
def embed(model: torch.nn.Module, tokenizer: Tokenizer, sentences: list[str]) -> torch.Tensor:
    """The mean of each sentence's last hidden states."""
    encoded = [tokenizer.encode(sentence).ids for sentence in sentences]
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    means = torch.empty(len(encoded), model.config.hidden_size)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        width = max(len(encoded[row]) for row in rows)
        tokens = torch.full((len(rows), width), model.config.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for at, row in enumerate(rows):
            tokens[at, : len(encoded[row])] = torch.tensor(encoded[row])
            mask[at, : len(encoded[row])] = 1
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        means[rows] = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return means


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def embed_sts(args: argparse.Namespace) -> dict:
    model = load(AutoModel, args.model_dir)
    tokenizer = Tokenizer.from_file(str(args.model_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(args.max_tokens)
    scores, left, right = read_pairs(args.data, args.limit)
    one, other = embed(model, tokenizer, left), embed(model, tokenizer, right)
    cosine = torch.nn.functional.cosine_similarity(one.double(), other.double())
    return {"metric": "spearman", "value": spearman(np.array(scores), cosine.numpy()), "samples": len(scores)}


# --- Images -----------------------------------------------------------------------------------------------------------


def class_of(path: Path) -> int:
    """The number that a file is named by, or else its folder."""
    return int(path.stem if path.stem.isdigit() else path.parent.name)


def find_images(data: Path, names: Path | None, limit: int | None) -> list[Path]:
    if names is None:
        paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    else:
        paths = [data / line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    return paths[:limit]


class Preprocessor:
    def __init__(self, model_dir: Path) -> None:
        config = json.loads((model_dir / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.resize = config.get("size", 224) if config.get("do_resize", True) else None
        self.crop = config.get("crop_size", 224) if config.get("do_center_crop", False) else None
        self.resample = config.get("resample", 2)
        self.scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        normalise = config.get("do_normalize", True)
        self.mean = np.array(config.get("image_mean", [0.5] * 3) if normalise else [0.0] * 3, dtype=np.float32)
        self.std = np.array(config.get("image_std", [0.5] * 3) if normalise else [1.0] * 3, dtype=np.float32)

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """The size to resize an image to."""
        size = self.resize
        if isinstance(size, dict) and "shortest_edge" not in size:
            return size["width"], size["height"]
        edge = size["shortest_edge"] if isinstance(size, dict) else size
        if not isinstance(size, dict) and self.crop is None:
            return edge, edge
        # The longer side is rounded down, as torchvision and timm do.
        return (edge, edge * height // width) if width <= height else (edge * width // height, edge)

    def __call__(self, path: Path) -> torch.Tensor:
        from PIL import Image

        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.resize is not None:
            image = image.resize(self.size_for(*image.size), Image.Resampling(self.resample))
        if self.crop is not None:
            crop = self.crop if isinstance(self.crop, dict) else {"height": self.crop, "width": self.crop}
            left = round((image.width - crop["width"]) / 2)
            top = round((image.height - crop["height"]) / 2)
            image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        values = np.asarray(image, dtype=np.float32) * np.float32(self.scale)
        return torch.from_numpy((values - self.mean) / self.std).permute(2, 0, 1)


def batches(paths: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]


@torch.inference_mode()
def classify_images(args: argparse.Namespace) -> dict:
    model = load(AutoModelForImageClassification, args.model_dir)
    preprocess = Preprocessor(args.model_dir)
    paths = find_images(args.data, args.names, args.limit)
    right, losses = 0, []
    for batch in batches(paths):
        labels = torch.tensor([class_of(path) for path in batch])
        logits = model(pixel_values=torch.stack([preprocess(path) for path in batch])).logits
        right += (logits.argmax(-1) == labels).sum().item()
        losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().tolist()
    count = len(paths)
    return {
        "metric": "top1",
        "value": right / count,
        "cross_entropy": math.fsum(losses) / count,
        "samples": count,
    }


TASKS = {"embed-sts": embed_sts, "classify-images": classify_images}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model_dir",
        type=Path,
        help="folder with config.json, the weights and tokenizer.json or preprocessor_config.json",
    )
    parser.add_argument("data", type=Path, help="sts-*.csv, or a folder of images")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--names", type=Path, help="only the images listed in this file, one path in DATA a line")
    parser.add_argument("--max-tokens", type=positive, default=128, help="longest sentence (default 128)", metavar="N")
    parser.add_argument("--limit", type=positive, help="only the first N pairs or images", metavar="N")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    args = parser.parse_args()
    if args.names is not None and args.task != "classify-images":
        parser.error("--names is for --task classify-images")

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps(TASKS[args.task](args)))


if __name__ == "__main__":
    main()

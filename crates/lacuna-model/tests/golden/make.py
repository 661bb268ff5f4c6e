#!/usr/bin/env python3
"""Makes the golden checkpoints that lacuna-model's forward pass is tested against.

Each case is a tiny causal language model with random weights, saved by Hugging Face transformers in its own folder
next to this script:

    config.json               the configuration, in the newer or the older spelling (see LEGACY below)
    config.legacy.json        only for some cases: the same configuration in the older spelling
    model*.safetensors        the weights, with an index file where they are split into shards
    reference.safetensors     `tokens` (int64 [B, T]) and `logits` (float32 [B, T, vocab])

The logits are computed in float32 on the CPU with the eager attention. A checkpoint stored in bfloat16 or float16 is
rounded first, so the logits belong to the stored weights, widened to float32.

The script asserts what makes the data worth comparing with:

  * every folder loads again with AutoModelForCausalLM and gives bit-identical logits, under each of its configurations;
  * for every setting a case is about, a model with that setting wrong gives visibly different logits ("contrasts");
  * the float32 logits agree closely with those of a model whose weights are float64, so a tight tolerance is fair.

Run with the packages pinned in scripts/requirements.txt:  python make.py [CASE ...]
"""

import argparse
import copy
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
BATCH, LENGTH = 2, 24
MIN_CONTRAST = 0.1  # A wrong setting must move some logit by at least this much ...
MAX_NOISE = 1e-4  # ... while float32 rounding may move none by more than this.

Config = dict
State = dict[str, torch.Tensor]
Contrast = Callable[[PreTrainedConfig, State], None]


def setting(**changes) -> Contrast:
    """A contrast: the same weights under a configuration with other values."""

    def apply(config: PreTrainedConfig, _state: State) -> None:
        for key, value in changes.items():
            assert hasattr(config, key), key
            setattr(config, key, value)

    return apply


def zeroed(suffix: str) -> Contrast:
    """A contrast: the tensors whose names end in `suffix` left out (set to zero)."""

    def apply(_config: PreTrainedConfig, state: State) -> None:
        names = [name for name in state if name.endswith(suffix)]
        assert names, suffix
        for name in names:
            state[name] = torch.zeros_like(state[name])

    return apply


def default_rope(theta: float) -> Contrast:
    """A contrast: unscaled rotary embedding with base `theta`."""
    return setting(rope_parameters={"rope_type": "default", "rope_theta": theta})


def permuted_heads(state: State, projections: str, order: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
    """Reorders the rows of `projections`, letters among q, k, v and o (there the columns), seen as [heads, size]."""
    for name, tensor in state.items():
        for letter in projections:
            if name.endswith(f"self_attn.{letter}_proj.weight"):
                rows = tensor.T if letter == "o" else tensor
                rows = order(rows.unflatten(0, (-1, size))).flatten(0, 1)
                state[name] = rows.T if letter == "o" else rows


def adjacent_rotary_pairs(config: PreTrainedConfig, state: State) -> None:
    """A contrast: what comes of rotating values 2i and 2i + 1 of a head together, not i and i + head_dim / 2."""
    permuted_heads(state, "qk", lambda heads: torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1), config.head_dim)


def key_head_by_remainder(config: PreTrainedConfig, state: State) -> None:
    """A contrast: query head h attends with key-value head h modulo their number, not with h / group size."""
    count = config.num_key_value_heads

    def order(heads: torch.Tensor) -> torch.Tensor:
        return heads.unflatten(0, (-1, count)).transpose(0, 1).flatten(0, 1)

    permuted_heads(state, "qo", order, config.head_dim)


@dataclass
class Case:
    seed: int
    config: PreTrainedConfig
    contrasts: dict[str, Contrast]
    dtype: torch.dtype = torch.float32
    shard_bytes: int | None = None
    rewrite_config: Callable[[Config], Config] | None = None  # Edits config.json by hand.
    legacy_copy: bool = False  # Also writes config.legacy.json.
    rename: dict[str, str] = field(default_factory=dict)  # Tensors to rename in model.safetensors.


def legacy(config: Config, *, drop: tuple[str, ...] = (), **extra) -> Config:
    """Spells a configuration as transformers 4.x did.

    `rope_parameters` becomes `rope_theta` and `rope_scaling`, `dtype` becomes `torch_dtype`, and `layer_types` goes.
    The key of the scaling kind was "type" at first, "rope_type" from the llama3 kind on.
    """
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind == "default":
        config["rope_scaling"] = None
    else:
        config["rope_scaling"] = {**rope, "rope_type" if kind == "llama3" else "type": kind}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.45.0"
    config.update(extra)
    for key in ("layer_types", *drop):
        config.pop(key, None)
    return config


BASE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    # With 16 values a head, the wavelengths 6.3, 32, 167, ... fall one on each side of, and one between, the limits
    # 64 / 4 and 64 / 1: the first frequency is kept, the second blended, and the others are divided by the factor.
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, Callable[[], Case]] = {
    # LLaMA 2 style; queries share keys and values; the tied embedding is stored once, as model.embed_tokens.weight.
    "llama-gqa-tied": lambda: Case(
        seed=1,
        config=LlamaConfig(**BASE, tie_word_embeddings=True, rms_norm_eps=1e-5),
        contrasts={
            "rope_theta": default_rope(500.0),
            "pairs (2i, 2i + 1) rotated": adjacent_rotary_pairs,
            "key head h % 2 for query head h": key_head_by_remainder,
        },
    ),
    # Tied, with the one tensor stored under the other name.
    "llama-tied-lm-head-name": lambda: Case(
        seed=2,
        config=LlamaConfig(**{**BASE, "hidden_size": 24, "num_key_value_heads": 4}, tie_word_embeddings=True),
        contrasts={"rope_theta": default_rope(500.0)},
        rename={"model.embed_tokens.weight": "lm_head.weight"},
    ),
    # LLaMA 3 style; one key-value head; several end tokens.
    "llama3-rope": lambda: Case(
        seed=3,
        config=LlamaConfig(
            **{
                **BASE,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 512,
                "eos_token_id": [2, 3],
            },
            rms_norm_eps=1e-5,
            rope_parameters=LLAMA3,
        ),
        dtype=torch.bfloat16,
        contrasts={
            "unscaled": default_rope(500000.0),
            "linear": setting(rope_parameters={**LLAMA3, "rope_type": "linear"}),
            "limits swapped": setting(rope_parameters={**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
            "original length": setting(rope_parameters={**LLAMA3, "original_max_position_embeddings": 512}),
        },
        legacy_copy=True,
    ),
    # Linear scaling, every bias, a head size that is not hidden_size / heads, an epsilon that matters, shards.
    "llama-rope-linear": lambda: Case(
        seed=4,
        config=LlamaConfig(
            **BASE, rms_norm_eps=0.01, head_dim=6, attention_bias=True, mlp_bias=True, rope_parameters=LINEAR
        ),
        shard_bytes=24_000,
        contrasts={
            "unscaled": default_rope(10000.0),
            "factor": setting(rope_parameters={**LINEAR, "factor": 0.25}),
            "rms_norm_eps": setting(rms_norm_eps=1e-5),
            **{
                f"{name} bias": zeroed(f"{name}_proj.bias") for name in ("q", "k", "v", "o", "gate", "up", "down")
            },
        },
    ),
    # A window on every layer.
    "mistral-sliding": lambda: Case(
        seed=5,
        config=MistralConfig(**BASE, sliding_window=8, rms_norm_eps=1e-5),
        dtype=torch.bfloat16,
        contrasts={
            "no window": setting(sliding_window=None),
            "window 7": setting(sliding_window=7),
            "window 9": setting(sliding_window=9),
            "rope_theta": default_rope(500.0),
        },
    ),
    # No window: `sliding_window` is null, as in Mistral 7B v0.2 and later; the older spelling, without head_dim.
    "mistral-full": lambda: Case(
        seed=6,
        config=MistralConfig(
            **BASE,
            sliding_window=None,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        dtype=torch.float16,
        rewrite_config=lambda config: legacy(config, drop=("head_dim", "rope_scaling")),
        contrasts={"window 8": setting(sliding_window=8), "rope_theta": default_rope(10000.0)},
    ),
    # Biases on q, k and v that no setting announces; a window that is given but not in use, as in Qwen2's own files.
    "qwen2-bias": lambda: Case(
        seed=7,
        config=Qwen2Config(
            **BASE,
            tie_word_embeddings=True,
            use_sliding_window=False,
            max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        rewrite_config=lambda config: legacy(config, drop=("rope_scaling",), sliding_window=6),
        contrasts={
            "window in use": setting(sliding_window=6, layer_types=["full_attention", "sliding_attention"]),
            "rope_theta": default_rope(10000.0),
            **{f"{name} bias": zeroed(f"{name}_proj.bias") for name in ("q", "k", "v")},
        },
    ),
    # A window on the layers from max_window_layers on.
    "qwen2-sliding": lambda: Case(
        seed=8,
        config=Qwen2Config(
            **{**BASE, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=6, max_window_layers=1
        ),
        dtype=torch.bfloat16,
        legacy_copy=True,
        contrasts={
            "no window": setting(layer_types=["full_attention"] * 3),
            "window everywhere": setting(layer_types=["sliding_attention"] * 3),
            "window on the first": setting(layer_types=["sliding_attention", "full_attention", "full_attention"]),
            "window 5": setting(sliding_window=5),
            "window 7": setting(sliding_window=7),
        },
    ),
    # The oldest spelling, from before grouped queries, explicit head sizes and biases of the feed-forward part:
    # all those keys are absent, and rope_theta is an integer.
    "legacy-config": lambda: Case(
        seed=9,
        config=LlamaConfig(
            **{**BASE, "num_key_value_heads": 4, "hidden_size": 24},
            attention_bias=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000, "factor": 2.0},
        ),
        dtype=torch.float16,
        rewrite_config=lambda config: legacy(
            config, drop=("head_dim", "num_key_value_heads", "mlp_bias", "tie_word_embeddings"), rope_theta=10000
        ),
        contrasts={"unscaled": default_rope(10000.0), "q bias": zeroed("q_proj.bias")},
    ),
}


def eager_model(config: PreTrainedConfig) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Draws weights large enough for attention, positions, norms and biases to matter, and rounds them to `dtype`."""
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            drawn = 1 + 0.3 * drawn
        elif name.endswith("bias"):
            drawn = 0.5 * drawn
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            drawn = 0.5 * drawn
        else:
            drawn = model.config.initializer_range * drawn
        parameter.copy_(drawn.to(dtype))


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def contrast_logits(case: Case, model: torch.nn.Module, tokens: torch.Tensor, apply: Contrast) -> torch.Tensor:
    config, state = copy.deepcopy(case.config), dict(model.state_dict())
    apply(config, state)
    other = eager_model(config)
    other.load_state_dict(state)
    return logits_of(other, tokens)


def write_json(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def reload(folder: Path, config_name: str) -> torch.nn.Module:
    """Loads a folder as it stands, with one of its configurations in the place of config.json."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.glob("model*"):
            (Path(scratch) / path.name).symlink_to(path)
        shutil.copy(folder / config_name, Path(scratch) / "config.json")
        model, report = AutoModelForCausalLM.from_pretrained(
            scratch, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    assert not any(report.values()), f"{folder.name}/{config_name}: {report}"
    return model.eval()


def stored_tensors(folder: Path) -> State:
    state: State = {}
    for path in sorted(folder.glob("model*.safetensors")):
        state.update(load_file(path))
    return state


def make(name: str, case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    model = eager_model(case.config)
    randomise(model, case.dtype, generator)
    tokens = torch.randint(0, case.config.vocab_size, (BATCH, LENGTH), generator=generator)
    logits = logits_of(model, tokens)
    assert logits.dtype == torch.float32 and logits.isfinite().all()

    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    shards = {} if case.shard_bytes is None else {"max_shard_size": case.shard_bytes}
    copy.deepcopy(model).to(case.dtype).save_pretrained(folder, **shards)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if case.rename:
        tensors = stored_tensors(folder)
        renamed = {case.rename.get(key, key): tensor for key, tensor in tensors.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", case.rewrite_config(config) if case.rewrite_config else config)
    if case.legacy_copy:
        write_json(folder / "config.legacy.json", legacy(config))
    save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / "reference.safetensors")

    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes files that only the owner can read.

    # What is stored is what was meant to be.
    stored = stored_tensors(folder)
    assert all(tensor.dtype == case.dtype for tensor in stored.values())
    tied = case.config.tie_word_embeddings
    heads = {key for key in stored if key in ("lm_head.weight", "model.embed_tokens.weight")}
    if case.rename:
        assert tied and heads == {"lm_head.weight"}, heads
    else:
        assert heads == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"}), heads
    if case.shard_bytes is not None:
        assert len(list(folder.glob("model-*.safetensors"))) >= 3
        assert (folder / "model.safetensors.index.json").exists()

    # It loads again and gives the same logits, under each configuration.
    with safe_open(folder / "reference.safetensors", "pt") as reference:
        expected_tokens, expected = reference.get_tensor("tokens"), reference.get_tensor("logits")
    for config_path in sorted(folder.glob("config*.json")):
        again = logits_of(reload(folder, config_path.name), expected_tokens)
        assert torch.equal(again, expected), f"{name}/{config_path.name}: {(again - expected).abs().max()}"

    # It tells right from wrong.
    noise = (logits_of(copy.deepcopy(model).double(), tokens) - logits).abs().max().item()
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size} bytes, logits std {logits.std():.2f} max {logits.abs().max():.2f}, noise {noise:.1e}")
    assert noise <= MAX_NOISE
    for what, apply in case.contrasts.items():
        moved = (contrast_logits(case, model, tokens, apply) - logits).abs()
        print(f"    {what}: max {moved.max():.2f}, mean {moved.mean():.3f}")
        assert moved.max() >= MIN_CONTRAST, f"{name}: {what} goes unseen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    names = parser.parse_args().cases or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        sys.exit(f"unknown case: {', '.join(unknown)}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in names:
        make(name, CASES[name]())
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"total: {total} bytes")
    assert total < 600_000


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the golden checkpoints that lacuna-model's encoders are tested against.

Each case is a tiny encoder with random weights, saved by Hugging Face transformers or by timm in its own folder next to
this script:

    config.json               the configuration as the library writes it
    config.minimal.json       only for some cases: the same, without every key that has its default value, and with the
                              keys that transformers 4.x wrote
    model.safetensors         the weights
    reference.safetensors     the inputs and outputs, below

Text: `tokens` (int64 [B, T]), padded on the right with pad_token_id to `lengths` (int64 [B]); `hidden` (float32
[B, T, hidden]), the last hidden state, of which only the first `lengths` positions of a sequence mean anything;
`pooled` (float32 [B, hidden]) where the checkpoint has a pooler. All token types are 0.

Images: `pixels` (float32 [B, 3, height, width]), after preprocessing; `hidden` (float32 [B, tokens, hidden]), the last
hidden state after the final norm, with the class token first and then the distillation token where there is one;
`logits` (float32 [B, classes]) where there is a head; `pooled` where there is a pooler.

The case `sentence-bert` is a folder of sentence-transformers: modules.json and 1_Pooling/config.json (mean pooling,
normalised), and others to put in their places: modules.unnormalised.json and 1_Pooling/config.POOLING.json, where
`cls+mean` stands for both, one after the other; all of them again as sentence-transformers 6 spells them, in *.v6.json.
Its reference.safetensors has `embedding_mean`, `embedding_cls`, `embedding_max` and `embedding_mean_sqrt_len` (float32
[B, hidden]) too, before normalisation.

All is computed in float32 on the CPU with the eager attention. A checkpoint stored in bfloat16 or float16 is rounded
first, so the outputs belong to the stored weights, widened to float32.

The script asserts what makes the data worth comparing with:

  * every folder loads again and gives bit-identical outputs, under each of its configurations;
  * for every setting a case is about, a model with that setting wrong gives visibly different outputs ("contrasts");
  * what must not matter (the key bias; which of the names of GELU's tanh form) does not;
  * the float32 outputs agree closely with those of a model whose weights are float64, so a tight tolerance is fair.

The embeddings are drawn a thousand times smaller than other weights: the first norm then sees a variance near 1e-6,
and an epsilon of 1e-12 can be told from one of 1e-6 or 1e-5.

Run with the packages pinned in scripts/requirements.txt and `pip install timm==1.0.31`:  python make.py [CASE ...]
"""

import argparse
import copy
import importlib.util
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn
from timm.models._hub import save_for_hf
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)
from transformers.utils import logging

HERE = Path(__file__).resolve().parent


def decoder_script() -> ModuleType:
    """The decoder's script, ../golden/make.py, as a module of another name."""
    spec = importlib.util.spec_from_file_location("golden_decoders", HERE.parent / "golden" / "make.py")
    assert spec is not None and spec.loader is not None
    sys.dont_write_bytecode = True  # A __pycache__ in that folder would pass for a case.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


decoders = decoder_script()
setting, zeroed, write_json = decoders.setting, decoders.zeroed, decoders.write_json

LENGTHS = (12, 7, 1)
IMAGES = 2
CLASSES = 5
MAX_NOISE = 2e-5  # Float32 rounding may move no value by more than this ...
MIN_CONTRAST = 0.1  # ... while a wrong setting must move some value by at least this much,
MIN_SLIGHT = 2e-3  # or, between GELU and its tanh form, which differ by at most 5e-4 themselves, this much.
EMBEDDING_SCALE = 1e-3

State = dict[str, torch.Tensor]
Tensors = dict[str, torch.Tensor]
# Edits a copy of the configuration and of the weights; may return what is to be done to the model made of them.
Contrast = Callable[[Any, State], Callable[[nn.Module], None] | None]


@dataclass
class Case:
    seed: int
    config: PreTrainedConfig | SimpleNamespace  # The latter for timm: `architecture` and the arguments of the model.
    model: type | None  # None for timm.
    contrasts: dict[str, Contrast]
    arguments: dict[str, Any] = field(default_factory=dict)  # Of the model's class.
    slight: dict[str, Contrast] = field(default_factory=dict)  # Contrasts seen only slightly.
    unseen: dict[str, Contrast] = field(default_factory=dict)  # Changes that must not matter.
    dtype: torch.dtype = torch.float32
    minimal_copy: bool = False  # Also writes config.minimal.json.
    new_names: bool = False  # Saved under the tensor names of transformers 5.x's own modules.
    sentence: bool = False  # Also writes the files of sentence-transformers.


# --- Contrasts --------------------------------------------------------------------------------------------------------


def edited(suffix: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Contrast:
    """A contrast: the tensors whose names end in `suffix` changed."""

    def apply(_config: Any, state: State) -> None:
        names = [name for name in state if name.endswith(suffix)]
        assert names, suffix
        for name in names:
            changed = edit(state[name])
            assert changed.shape == state[name].shape, name
            state[name] = changed.contiguous()

    return apply


def swapped(one: str, other: str) -> Contrast:
    """A contrast: the tensors whose names have `one` in the place of those that have `other`."""

    def apply(_config: Any, state: State) -> None:
        names = [name for name in state if one in name]
        assert names, one
        for name in names:
            partner = name.replace(one, other)
            state[name], state[partner] = state[partner], state[name]

    return apply


def patched(patch: Callable[[nn.Module], None]) -> Contrast:
    """A contrast: the same configuration and weights in a changed model."""
    return lambda _config, _state: patch


def base_of(model: nn.Module) -> nn.Module:
    """The encoder without its head."""
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def no_mask(model: nn.Module) -> None:
    """Lets tokens attend to the padding. (Without a mask given, there is none.)"""

    def drop(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "attention_mask": torch.ones_like(kwargs["attention_mask"])}

    base_of(model).register_forward_pre_hook(drop, with_kwargs=True)


def pre_norm(model: nn.Module) -> None:
    """Normalises what enters the two halves of a layer of BERT, not what leaves them."""

    def normalise_input(part: nn.Module, norm: nn.Module) -> None:
        part.register_forward_pre_hook(lambda _module, args: (norm(args[0]), *args[1:]))

    for layer in base_of(model).encoder.layer:
        normalise_input(layer.attention.self, layer.attention.output.LayerNorm)
        normalise_input(layer.intermediate, layer.output.LayerNorm)
        layer.attention.output.LayerNorm = layer.output.LayerNorm = nn.Identity()


def no_final_norm(model: nn.Module) -> None:
    if isinstance(model, timm.models.VisionTransformer):
        model.norm = nn.Identity()
    else:
        base_of(model).layernorm = nn.Identity()


def head_at_distillation_token(model: nn.Module) -> None:
    def rolled(_module: nn.Module, args: tuple) -> tuple:
        return (last_hidden[0][:, 1],)

    last_hidden: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
        last_hidden[:] = [output]

    base_of(model).layernorm.register_forward_hook(keep)
    model.classifier.register_forward_pre_hook(rolled)


def heads(width: int, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """For timm's fused weights: takes [3, heads, size] rows for [heads, 3, size] ones."""
    return lambda tensor: tensor.unflatten(0, (count, 3, width // count)).transpose(0, 1).flatten(0, 2)


def biases(*names: str) -> dict[str, Contrast]:
    return {f"{name} dropped": zeroed(f"{name}.bias") for name in names}


def norms(*names: str) -> dict[str, Contrast]:
    return {
        **{f"{name} weight 1": edited(f"{name}.weight", torch.ones_like) for name in names},
        **{f"{name} bias 0": zeroed(f"{name}.bias") for name in names},
    }


def other_eps(config: Any) -> dict[str, Contrast]:
    others = (eps for eps in (1e-12, 1e-6, 1e-5) if eps != config.layer_norm_eps)
    return {f"eps {eps:.0e}": setting(layer_norm_eps=eps) for eps in others}


TANH_FORMS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def activations(config: Any) -> dict[str, dict[str, Contrast]]:
    """Other activations: those that are the same function, almost the same, and quite another."""
    own = config.hidden_act
    groups: dict[str, dict[str, Contrast]] = {"contrasts": {}, "slight": {}, "unseen": {}}
    for act in ("gelu", *TANH_FORMS, "quick_gelu", "relu"):
        if act == own:
            continue
        gelus = [a for a in (act, own) if a == "gelu" or a in TANH_FORMS]
        group = "contrasts" if len(gelus) < 2 else "slight" if "gelu" in gelus else "unseen"
        groups[group][act] = setting(hidden_act=act)
    return groups


def text_case(config: PreTrainedConfig, model: type, seed: int, **options: Any) -> Case:
    roberta = config.model_type != "bert"
    offset = config.pad_token_id + 1 if roberta else 0
    others = {0, 1, 2, config.pad_token_id, config.pad_token_id + 1} - {offset}
    heads_count = config.num_attention_heads
    groups = activations(config)
    contrasts = {
        **{
            f"positions from {other}": edited(
                "position_embeddings.weight", lambda table, by=offset - other: table.roll(by, 0)
            )
            for other in sorted(others)
        },
        "token type dropped": zeroed("token_type_embeddings.weight"),
        "heads": setting(num_attention_heads=heads_count // 2 if heads_count % 2 == 0 else 1),
        "padding attended to": patched(no_mask),
        "causal": setting(is_decoder=True),
        "pre-norm": patched(pre_norm),
        **biases("query", "value", "attention.output.dense", "intermediate.dense", "layer.0.output.dense"),
        **norms("embeddings.LayerNorm", "attention.output.LayerNorm", "0.output.LayerNorm"),
        **other_eps(config),
        **groups["contrasts"],
    }
    if config.type_vocab_size > 1:
        contrasts["token type 1"] = edited("token_type_embeddings.weight", lambda table: table.roll(1, 0))
    unseen = {"key bias dropped": zeroed("key.bias"), **groups["unseen"]}
    return Case(seed, config, model, contrasts, slight=groups["slight"], unseen=unseen, **options)


def grid_transposed(specials: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Position embeddings for patches numbered column by column."""

    def edit(table: torch.Tensor) -> torch.Tensor:
        patches = table[:, specials:].unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)
        return torch.cat((table[:, :specials], patches), dim=1)

    return edit


def channels_last(weight: torch.Tensor) -> torch.Tensor:
    """Weights of a patch read as [row, column, channel]."""
    return weight.flatten(1).unflatten(1, (*weight.shape[2:], weight.shape[1])).permute(0, 3, 1, 2)


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def grid_of(config: Any) -> tuple[int, int]:
    image = pair(config.image_size if hasattr(config, "image_size") else config.img_size)
    patch = pair(config.patch_size)
    assert image[0] % patch[0] == image[1] % patch[1] == 0
    return image[0] // patch[0], image[1] // patch[1]


def image_case(config: PreTrainedConfig, model: type, seed: int, **options: Any) -> Case:
    specials = 2 if config.model_type == "deit" else 1
    groups = activations(config)
    heads_count = config.num_attention_heads
    contrasts = {
        "class token dropped": zeroed("cls_token"),
        "positions one on": edited("position_embeddings", lambda table: table.roll(1, 1)),
        "patches column by column": edited("position_embeddings", grid_transposed(specials, *grid_of(config))),
        "patch channels last": edited("projection.weight", channels_last),
        "patch transposed": edited(
            "projection.weight", lambda weight: weight.transpose(2, 3).flatten(2).unflatten(2, weight.shape[2:])
        ),
        "heads": setting(num_attention_heads=heads_count // 2 if heads_count % 2 == 0 else 1),
        "norms swapped": swapped("layernorm_before", "layernorm_after"),
        "no final norm": patched(no_final_norm),
        **biases("projection", "o_proj", "mlp.fc1", "mlp.fc2"),
        **(biases("q_proj", "v_proj") if config.qkv_bias else {}),
        **norms("layernorm_before", "layernorm_after", "layernorm"),
        **other_eps(config),
        **groups["contrasts"],
    }
    if specials == 2:
        contrasts["distillation token dropped"] = zeroed("distillation_token")
        contrasts["tokens swapped"] = swapped("cls_token", "distillation_token")
    if model in (ViTForImageClassification, DeiTForImageClassification):
        contrasts |= biases("classifier")
    if model is DeiTForImageClassification:
        contrasts["head at the distillation token"] = patched(head_at_distillation_token)
    if model is DeiTForImageClassificationWithTeacher:
        contrasts |= biases("cls_classifier", "distillation_classifier")
        contrasts["heads swapped"] = swapped("cls_classifier", "distillation_classifier")
        contrasts["second head dropped"] = zeroed("distillation_classifier.weight")
    unseen = {**({"key bias dropped": zeroed("k_proj.bias")} if config.qkv_bias else {}), **groups["unseen"]}
    return Case(seed, config, model, contrasts, slight=groups["slight"], unseen=unseen, **options)


def timm_case(architecture: str, seed: int, dtype: torch.dtype = torch.float32, **arguments: Any) -> Case:
    config = SimpleNamespace(architecture=architecture, num_classes=CLASSES, **arguments)
    distilled = "distilled" in architecture
    width, specials = config.embed_dim, 2 if distilled else 1

    def key_bias(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor[:width], torch.zeros(width), tensor[2 * width :]))

    def no_eps(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == 1e-6
                module.eps = 1e-12

    def act(kind: Callable[[], nn.Module]) -> Contrast:
        def patch(model: nn.Module) -> None:
            for block in model.blocks:
                assert isinstance(block.mlp.act, nn.GELU)
                block.mlp.act = kind()

        return patched(patch)

    contrasts = {
        "class token dropped": zeroed("cls_token"),
        "positions one on": edited("pos_embed", lambda table: table.roll(1, 1)),
        "patches column by column": edited("pos_embed", grid_transposed(specials, *grid_of(config))),
        "patch channels last": edited("patch_embed.proj.weight", channels_last),
        "heads": setting(num_heads=config.num_heads // 2 if config.num_heads % 2 == 0 else 1),
        "q and k swapped": edited(
            "qkv.weight", lambda weight: torch.cat((weight[width : 2 * width], weight[:width], weight[2 * width :]))
        ),
        "q, k and v of a head together": edited("qkv.weight", heads(width, config.num_heads)),
        "norms swapped": swapped("norm1", "norm2"),
        "no final norm": patched(no_final_norm),
        "eps 1e-12": patched(no_eps),
        "relu": act(nn.ReLU),
        **biases("patch_embed.proj", "attn.proj", "fc1", "fc2", "head"),
        **norms("norm1", "norm2", "norm"),
    }
    unseen = {}
    if arguments.get("qkv_bias", True):
        contrasts |= biases("qkv")
        unseen["key bias dropped"] = edited("qkv.bias", key_bias)
    if distilled:
        contrasts |= biases("head_dist")
        contrasts["distillation token dropped"] = zeroed("dist_token")
        contrasts["tokens swapped"] = swapped("cls_token", "dist_token")
        contrasts["heads swapped"] = swapped("head.", "head_dist.")
        contrasts["second head dropped"] = zeroed("head_dist.weight")
    slight = {"gelu's tanh form": act(lambda: nn.GELU(approximate="tanh"))}
    return Case(seed, config, None, contrasts, slight=slight, unseen=unseen, dtype=dtype)


# --- The cases --------------------------------------------------------------------------------------------------------

# Weights other than embeddings, biases and norms have this deviation.
RANGE = 0.3
BASE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, initializer_range=RANGE)
TEXT = dict(BASE, vocab_size=40, max_position_embeddings=20)
SMALL = dict(hidden_size=16, num_attention_heads=4, intermediate_size=28)
IMAGE = dict(BASE, num_labels=CLASSES)

CASES: dict[str, Callable[[], Case]] = {
    # Text. BertModel: names without a prefix, and a pooler; GELU by the error function; the default epsilon.
    "bert": lambda: text_case(BertConfig(**TEXT), BertModel, 101, minimal_copy=True),
    # Names with a prefix, beside a head for masked words; GELU's tanh form; more token types.
    "bert-mlm": lambda: text_case(
        BertConfig(**{**TEXT, **SMALL}, hidden_act="gelu_new", type_vocab_size=3, layer_norm_eps=1e-5),
        BertForMaskedLM,
        102,
    ),
    # Names with a prefix, a pooler and a classifier; a pad id other than 0, which moves no position; ReLU; bfloat16.
    "bert-classifier-bf16": lambda: text_case(
        BertConfig(**{**TEXT, **SMALL, "num_hidden_layers": 3}, hidden_act="relu", pad_token_id=5, num_labels=3),
        BertForSequenceClassification,
        103,
        dtype=torch.bfloat16,
    ),
    # No pooler; float16, with many subnormal values among the embeddings; as many positions as tokens.
    "bert-f16": lambda: text_case(
        BertConfig(**{**TEXT, "max_position_embeddings": max(LENGTHS)}, hidden_act="quick_gelu", layer_norm_eps=1e-6),
        BertModel,
        104,
        arguments={"add_pooling_layer": False},
        dtype=torch.float16,
    ),
    # The other names of GELU's tanh form.
    "bert-bf16": lambda: text_case(
        BertConfig(**TEXT, hidden_act="gelu_pytorch_tanh"), BertModel, 105, dtype=torch.bfloat16
    ),
    "bert-gelu-fast": lambda: text_case(
        BertConfig(**{**TEXT, **SMALL}, hidden_act="gelu_fast"), BertModel, 106, minimal_copy=True
    ),
    # Positions from pad_token_id + 1, which is 2 by default; one token type, as in RoBERTa's own files.
    "roberta": lambda: text_case(
        RobertaConfig(**TEXT, type_vocab_size=1, layer_norm_eps=1e-5), RobertaModel, 117, minimal_copy=True
    ),
    # Another pad id; names with a prefix; just as many positions as it takes.
    "roberta-mlm": lambda: text_case(
        RobertaConfig(
            **{**TEXT, **SMALL, "max_position_embeddings": max(LENGTHS) + 4}, pad_token_id=3, hidden_act="gelu_new"
        ),
        RobertaForMaskedLM,
        108,
    ),
    "xlm-roberta": lambda: text_case(
        XLMRobertaConfig(**{**TEXT, **SMALL}, type_vocab_size=1, layer_norm_eps=1e-5),
        XLMRobertaModel,
        109,
        minimal_copy=True,
    ),
    # Names with the prefix of RoBERTa, and a head.
    "xlm-roberta-classifier": lambda: text_case(
        XLMRobertaConfig(**{**TEXT, **SMALL}, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=2, num_labels=3),
        XLMRobertaForSequenceClassification,
        110,
        dtype=torch.float16,
    ),
    # A folder of sentence-transformers.
    "sentence-bert": lambda: text_case(BertConfig(**{**TEXT, **SMALL}), BertModel, 111, sentence=True),
    # Images. Wider than high; the default epsilon.
    "vit": lambda: image_case(
        ViTConfig(**IMAGE, image_size=[16, 24], patch_size=8), ViTForImageClassification, 201, minimal_copy=True
    ),
    # Square; no biases of q, k and v; GELU's tanh form.
    "vit-no-qkv-bias-bf16": lambda: image_case(
        ViTConfig(
            **{**IMAGE, **SMALL, "num_hidden_layers": 3},
            image_size=16,
            patch_size=4,
            qkv_bias=False,
            hidden_act="gelu_new",
            layer_norm_eps=1e-6,
        ),
        ViTForImageClassification,
        202,
        dtype=torch.bfloat16,
    ),
    # No prefix and no head, but a pooler, of another width; patches that are not square.
    "vit-model": lambda: image_case(
        ViTConfig(
            **{**IMAGE, **SMALL}, image_size=[18, 12], patch_size=[6, 4], hidden_act="quick_gelu", pooler_output_size=10
        ),
        ViTModel,
        203,
        dtype=torch.float16,
    ),
    # Neither head nor pooler.
    "vit-model-no-pooler": lambda: image_case(
        ViTConfig(**{**IMAGE, **SMALL}, image_size=[12, 8], patch_size=4, hidden_act="relu", layer_norm_eps=1e-5),
        ViTModel,
        204,
        arguments={"add_pooling_layer": False},
    ),
    # The names of transformers 5.x's own modules, which it writes under save_original_format=False.
    "vit-new-names": lambda: image_case(
        ViTConfig(**{**IMAGE, **SMALL}, image_size=[8, 12], patch_size=4, layer_norm_eps=1e-6),
        ViTForImageClassification,
        205,
        new_names=True,
    ),
    # A distillation token, and one head, on the class token.
    "deit": lambda: image_case(
        DeiTConfig(**IMAGE, image_size=[8, 12], patch_size=4), DeiTForImageClassification, 206, minimal_copy=True
    ),
    # Two heads, each on its token; the logits are their mean.
    "deit-teacher": lambda: image_case(
        DeiTConfig(**{**IMAGE, **SMALL}, image_size=16, patch_size=8, layer_norm_eps=1e-6),
        DeiTForImageClassificationWithTeacher,
        207,
    ),
    # The names and config.json of timm. The epsilon is 1e-6, which config.json does not say.
    "timm-vit": lambda: timm_case(
        "vit_tiny_patch16_224", 208, img_size=(12, 16), patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.5
    ),
    "timm-vit-no-qkv-bias-f16": lambda: timm_case(
        "vit_tiny_patch16_224",
        209,
        torch.float16,
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        qkv_bias=False,
    ),
    "timm-deit-distilled": lambda: timm_case(
        "deit_tiny_distilled_patch16_224",
        210,
        img_size=(8, 12),
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
    ),
}


# --- Making them ------------------------------------------------------------------------------------------------------


def build(case: Case, config: Any, attention: str = "eager") -> nn.Module:
    if case.model is None:
        arguments = dict(vars(config))
        return timm.create_model(arguments.pop("architecture"), pretrained=False, **arguments).eval()
    model = case.model._from_config(
        copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32, **case.arguments
    )
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Draws weights large enough for attention, positions, norms and biases to matter, and rounds them to `dtype`."""
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower():
            drawn = 1 + 0.3 * drawn if name.endswith("weight") else 0.5 * drawn
        elif "embed" in name or name.endswith("_token"):
            fan_in = parameter[0].numel() if parameter.dim() == 4 else 1  # Of a patch.
            drawn = EMBEDDING_SCALE * drawn / fan_in**0.5
        elif name.endswith(("intermediate.dense.bias", "mlp.fc1.bias")):
            drawn = 0.5 * drawn - 2  # Where GELU and its tanh form differ the most, beside what they give.
        elif name.endswith("bias"):
            drawn = 0.5 * drawn
        elif name.endswith(("0.output.dense.weight", "1.output.dense.weight", "2.output.dense.weight", "fc2.weight")):
            drawn = 6 * RANGE * drawn
        else:
            drawn = RANGE * drawn
        parameter.copy_(drawn.to(dtype))


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    config = case.config
    if getattr(config, "vocab_size", None):
        tokens = torch.randint(0, config.vocab_size - 1, (len(LENGTHS), max(LENGTHS)), generator=generator)
        tokens += tokens >= config.pad_token_id  # Only padding is padded.
        for row, length in enumerate(LENGTHS):
            tokens[row, length:] = config.pad_token_id
        return {"tokens": tokens, "lengths": torch.tensor(LENGTHS)}
    size = pair(config.image_size if hasattr(config, "image_size") else config.img_size)
    return {"pixels": torch.randn((IMAGES, 3, *size), generator=generator)}


def mask_of(inputs: Tensors) -> torch.Tensor:
    return (torch.arange(inputs["tokens"].shape[1]) < inputs["lengths"][:, None]).long()


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensors) -> Tensors:
    if isinstance(model, timm.models.VisionTransformer):
        pixels = inputs["pixels"].to(model.cls_token.dtype)
        outputs = {"hidden": model.forward_features(pixels), "logits": model(pixels)}
    elif "tokens" in inputs:
        found = base_of(model)(input_ids=inputs["tokens"], attention_mask=mask_of(inputs))
        outputs = {"hidden": found.last_hidden_state, "pooled": found.get("pooler_output")}
    else:
        pixels = inputs["pixels"].to(next(model.parameters()).dtype)
        found = base_of(model)(pixel_values=pixels)
        outputs = {"hidden": found.last_hidden_state, "pooled": found.get("pooler_output")}
        if base_of(model) is not model:
            outputs["logits"] = model(pixel_values=pixels).logits
    return {name: tensor.contiguous() for name, tensor in outputs.items() if tensor is not None}


def embeddings_of(hidden: torch.Tensor, mask: torch.Tensor) -> Tensors:
    """As sentence_transformers.models.Pooling defines them."""
    weights = mask[:, :, None].to(hidden.dtype)
    total, count = (hidden * weights).sum(1), weights.sum(1)
    return {
        "embedding_mean": total / count.clamp(min=1e-9),
        "embedding_cls": hidden[:, 0].contiguous(),
        "embedding_max": hidden.masked_fill(weights == 0, -1e9).max(1).values,
        "embedding_mean_sqrt_len": total / count.clamp(min=1e-9).sqrt(),
    }


def moved(outputs: Tensors, others: Tensors, inputs: Tensors) -> torch.Tensor:
    """How far the outputs are apart, those that mean anything, flat."""
    assert outputs.keys() == others.keys()
    apart = []
    for name, tensor in outputs.items():
        difference = (others[name] - tensor).abs()
        apart.append(difference[mask_of(inputs).bool()] if name == "hidden" and "tokens" in inputs else difference)
    return torch.cat([tensor.flatten() for tensor in apart])


def contrast_outputs(case: Case, model: nn.Module, inputs: Tensors, apply: Contrast) -> Tensors:
    config, state = copy.deepcopy(case.config), dict(model.state_dict())
    patch = apply(config, state)
    other = build(case, config)
    other.load_state_dict(state)
    if patch is not None:
        patch(other)
    return outputs_of(other, inputs)


def minimal(case: Case, config: dict) -> dict:
    """The configuration without what goes without saying, in the spelling of transformers 4.x."""
    defaults = type(case.config)().to_dict()
    kept = {key: value for key, value in config.items() if key in ("model_type",) or defaults.get(key) != value}
    for key in ("dtype", "transformers_version", "initializer_range"):
        kept.pop(key, None)
    if case.config.model_type in ("vit", "deit"):
        kept.pop("pooler_output_size", None)
    else:
        kept |= {"position_embedding_type": "absolute", "gradient_checkpointing": False}
    return {**kept, "torch_dtype": str(case.dtype).removeprefix("torch."), "transformers_version": "4.8.2"}


POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")  # As the older spelling has them.
KINDS = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
MODULES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def write_sentence_files(folder: Path, width: int) -> None:
    """The files of sentence-transformers in the older spelling, and as release 6.2.0 writes them (`.v6`)."""
    for suffix, type_of in (("", "sentence_transformers.models.{}".format), (".v6", MODULES.__getitem__)):
        modules = [
            {"idx": idx, "name": str(idx), "path": path, "type": type_of(kind)}
            for idx, (kind, path) in enumerate(KINDS.items())
        ]
        write_json(folder / f"modules{suffix}.json", modules)
        write_json(folder / f"modules.unnormalised{suffix}.json", modules[:2])

    (folder / "1_Pooling").mkdir()
    for chosen in (*((mode,) for mode in POOLINGS), ("cls_token", "mean_tokens")):
        middle = "" if chosen == ("mean_tokens",) else "." + "+".join(mode.rsplit("_", 1)[0] for mode in chosen)
        config = {"word_embedding_dimension": width, **{f"pooling_mode_{mode}": mode in chosen for mode in POOLINGS}}
        if middle:  # The first files had only those keys; later ones have these too.
            later = ("weightedmean_tokens", "lasttoken")
            config |= {"include_prompt": True, **{f"pooling_mode_{mode}": False for mode in later}}
        write_json(folder / "1_Pooling" / f"config{middle}.json", config)
        modes = [mode if mode == "mean_sqrt_len_tokens" else mode.rsplit("_", 1)[0] for mode in chosen]
        mode = modes if len(modes) > 1 else modes[0]
        config = {"embedding_dimension": width, "include_prompt": True, "pooling_mode": mode}
        write_json(folder / "1_Pooling" / f"config{middle}.v6.json", config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max(LENGTHS), "do_lower_case": False})


def save(folder: Path, case: Case, model: nn.Module) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    rounded = copy.deepcopy(model).to(case.dtype)
    if case.model is None:
        save_for_hf(rounded, folder, safe_serialization=True)
    else:
        rounded.save_pretrained(folder, **({"save_original_format": False} if case.new_names else {}))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config)
    if case.minimal_copy:
        write_json(folder / "config.minimal.json", minimal(case, config))
    if case.sentence:
        write_sentence_files(folder, case.config.hidden_size)


def reload(folder: Path, case: Case, config_name: str) -> nn.Module:
    """Loads a folder as it stands, with one of its configurations in the place of config.json."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(folder / "model.safetensors", scratch)
        shutil.copy(folder / config_name, Path(scratch) / "config.json")
        if case.model is None:
            model = timm.create_model(f"local-dir:{scratch}", pretrained=True).float()
        else:
            options = {"attn_implementation": "eager", "dtype": torch.float32, **case.arguments}
            model, report = case.model.from_pretrained(scratch, output_loading_info=True, **options)
            assert not any(report.values()), f"{folder.name}/{config_name}: {report}"
            if base_of(model) is not model:  # The encoder alone takes its own tensors from the same file.
                report = AutoModel.from_pretrained(scratch, output_loading_info=True, dtype=torch.float32)[1]
                assert all(name.startswith("pooler.") for name in report["missing_keys"]), report
    return model.eval()


def make(name: str, case: Case) -> float:
    generator = torch.Generator().manual_seed(case.seed)
    model = build(case, case.config)
    randomise(model, case.dtype, generator)
    inputs = make_inputs(case, generator)
    outputs = outputs_of(model, inputs)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in outputs.values())
    if case.sentence:
        assert not model.config.is_decoder
        embeddings = embeddings_of(outputs["hidden"], mask_of(inputs))
    else:
        embeddings = {}

    folder = HERE / name
    save(folder, case, model)
    save_file({**inputs, **outputs, **embeddings}, folder / "reference.safetensors")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes files that only the owner can read.

    # What is stored is what was meant to be.
    stored = load_file(folder / "model.safetensors")
    assert all(tensor.dtype == case.dtype for tensor in stored.values())
    if case.model is not None and "tokens" not in inputs:
        assert any(".attention.attention.query." in key for key in stored) != case.new_names
        assert any(".attention.q_proj." in key for key in stored) == case.new_names

    # It loads again and gives the same outputs, under each configuration.
    reference = load_file(folder / "reference.safetensors")
    for config_path in sorted(folder.glob("config*.json")):
        again = outputs_of(reload(folder, case, config_path.name), reference)
        assert all(torch.equal(again[key], reference[key]) for key in outputs), f"{name}/{config_path.name}"

    # It tells right from wrong. (For float64, the other attention: the eager one of ViT has its softmax in float32.)
    exact = build(case, case.config, "sdpa").double()
    exact.load_state_dict(model.state_dict())
    exact_outputs = outputs_of(exact, inputs)
    noise = moved(outputs, exact_outputs, inputs).max().item()
    if case.sentence:
        exact_embeddings = embeddings_of(exact_outputs["hidden"], mask_of(inputs))
        noise = max(noise, *((embeddings[key] - exact_embeddings[key]).abs().max().item() for key in embeddings))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    spread = ", ".join(f"{key} std {value.std():.2f} max {value.abs().max():.2f}" for key, value in outputs.items())
    print(f"{name}: {size} bytes, {spread}, noise {noise:.1e}")
    assert noise <= MAX_NOISE
    assert size < 100_000
    for group, floor in (("contrasts", MIN_CONTRAST), ("slight", MIN_SLIGHT), ("unseen", None)):
        for what, apply in getattr(case, group).items():
            apart = moved(outputs, contrast_outputs(case, model, inputs, apply), inputs)
            print(f"    {what}: max {apart.max():.2g}, mean {apart.mean():.2g}")
            if floor is None:
                assert apart.max() <= 2 * MAX_NOISE, f"{name}: {what} is seen"
            else:
                assert apart.max() >= floor, f"{name}: {what} goes unseen"
    if case.sentence:
        for one in embeddings:
            for other in embeddings:
                assert one == other or (embeddings[one] - embeddings[other]).abs().max() >= MIN_CONTRAST
        unmasked = embeddings_of(outputs["hidden"], torch.ones_like(mask_of(inputs)))
        for key in set(embeddings) - {"embedding_cls"}:
            assert (unmasked[key] - embeddings[key]).abs().max() >= MIN_CONTRAST, key
    return noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    names = parser.parse_args().cases or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        sys.exit(f"unknown case: {', '.join(unknown)}")
    torch.set_num_threads(1)
    set_fused_attn(False)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    noise = max(make(name, CASES[name]()) for name in names)
    total = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"total: {total} bytes; largest noise {noise:.1e}")
    assert total < 1_500_000


if __name__ == "__main__":
    main()

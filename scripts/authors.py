#!/usr/bin/env python3
"""Prunes a LLaMA checkpoint to 2:4 with the public code of a method's own authors, as a reference for lacuna's.

Their code is imported from a clone of theirs, unchanged; what it assumes of its surroundings (a GPU, C4, transformers
of its time) is given to it from outside. MODEL is a folder in the Hugging Face layout, CALIBRATION a file of JSON
lines, a list of token ids each, all of one length. The linear layers of all blocks are pruned, with the defaults of
the authors' command lines, in float32 on the CPU. OUT is MODEL with zeros in place of the pruned weights. Prints one
JSON object: `method`, `commit`, `samples`, `length`, `seconds` of their function, `weights` and `zeros` of the pruned
layers, and `emptier` and `fuller`, the groups that keep fewer and more than 2 of 4. With `fuller` above 0 the result
is not 2:4: DSnoT does that where its 50 cycles outnumber the candidates of a row, that is in layers with fewer than
200 inputs or so.

METHOD and the clone that --code names (commits that this was written against):

  magnitude, wanda    github.com/locuslab/wanda, 8e8fc87 (MIT)
  sparsegpt           github.com/IST-DASLab/sparsegpt, 147d215 (Apache-2.0)
  ria, ria-permuted,  github.com/biomedical-cybernetics/Relative-importance-and-activation-pruning, 7bc55b0
  wanda-permuted      (no licence)
  alps                github.com/mazumder-lab/ALPS, 8af9e6b (MIT)
  dsnot               github.com/zyxxmu/DSnoT, 4c029df (no licence)

--set changes a default of theirs: DSnoT leaves the MLP at its first mask unless told --set skip_layer=no_skip.

The groups of the permuted methods are 2:4 in an order of the inputs that each layer chooses for itself; the check uses
that order, OUT keeps the original one. Needs the packages pinned in requirements.txt next to this script, and for RIA's
repository scipy 1.17.1.

  lacuna prune MODEL OUT --pattern 2:4 --calibration FILE --calibration-samples 64 --calibration-length 512 \
      --write-samples tokens.jsonl
  python scripts/authors.py wanda MODEL OUT --code wanda --calibration tokens.jsonl
  python scripts/hf_perplexity.py OUT data.jsonl
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import json
import shutil
import subprocess
import sys
import time
import types
from argparse import Namespace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

# Of 4 weights in a row, 2 are kept and 2 are pruned: whichever of the two a repository's n:m counts.
N, M = 2, 4

RIA = {"reallocation": False, "lsa": False}
PERMUTED = {"reallocation": True, "lsa": True}
METHODS = {
    "magnitude": ("lib.prune", "prune_magnitude", {}),
    "wanda": ("lib.prune", "prune_wanda", {"use_variant": False}),
    "sparsegpt": ("llama", "llama_sequential", {}),
    "ria": ("lib.prune", "prune_ria", {"prune_method": "ria", **RIA}),
    "ria-permuted": ("lib.prune", "prune_ria", {"prune_method": "ria", **PERMUTED}),
    "wanda-permuted": ("lib.prune", "prune_ria", {"prune_method": "wanda", **PERMUTED}),
    "alps": ("llama", "llama_sequential", {"method": "ALPS"}),
    "dsnot": ("lib.prune", "prune_DSnoT", {}),
}

# The defaults of their command lines; no two repositories mean different things by one name.
DEFAULTS = {
    "seed": 0,
    "sparsity_ratio": 1 - N / M,
    # SparseGPT
    **{"prunen": N, "prunem": M, "sparsity": 0.0, "percdamp": 0.01, "blocksize": 128, "true_sequential": False},
    **{"minlayer": -1, "maxlayer": 1000, "prune_only": "", "invert": False, "wbits": 16},
    # RIA; "llama" in the model's name is how it tells LLaMA from OPT
    **{"model": "llama", "calib_dataset": "c4", "a": 0.5, "importance_score": "sum", "fast": False},
    **{"reconstruction": False, "gptq": False, "per_outneuron": False, "semi_sparse_acc": False},
    # ALPS
    **{"nm_n": N, "nm_m": M, "sp": 0.0},
    # DSnoT
    **{"initial_method": "wanda", "max_cycle_time": 50, "update_threshold": 0.1, "pow_of_var_regrowing": 1},
    **{"pow_of_var_pruning": 1, "skip_layer": "mlp", "skip_sub_layer": "no_skip", "without_same_sign": True},
    **{"without_DSnoT": False, "get_time_overhead": False},
}


def stay_on_cpu() -> None:
    """Makes every move to a GPU a move to the CPU."""

    def here(device):
        return "cpu" if isinstance(device, (str, torch.device)) and str(device).startswith("cuda") else device

    def redirected(to):
        return lambda self, *args, **kwargs: to(self, *map(here, args), **{k: here(v) for k, v in kwargs.items()})

    torch.Tensor.to = redirected(torch.Tensor.to)
    torch.nn.Module.to = redirected(torch.nn.Module.to)
    torch.Tensor.cuda = lambda self, *_: self
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None


def load_code(code: Path, module: str) -> types.ModuleType:
    """A module of theirs. The packages that only their data loaders and tables need stay empty."""
    for name, names in {"datasets": ["load_dataset"], "pandas": []}.items():
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for unused in names:
            setattr(package, unused, None)
        sys.modules[name] = package
    sys.path.insert(0, str(code))
    return importlib.import_module(module)


def prepare_model(model_dir: Path, length: int) -> LlamaForCausalLM:
    """The dense model, with what the drivers take for granted."""
    model = LlamaForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    model.seqlen = length
    model.hf_device_map = {}

    # Blocks made their own rotary embeddings when the drivers were written.
    def with_positions(_, args, kwargs):
        if kwargs.get("position_embeddings") is None:
            hidden = args[0]
            ids = kwargs.get("position_ids")
            ids = torch.arange(hidden.shape[1]).unsqueeze(0) if ids is None else ids
            kwargs["position_embeddings"] = model.model.rotary_emb(hidden, position_ids=ids)
        return args, kwargs

    for block in model.model.layers:
        block.register_forward_pre_hook(with_positions, with_kwargs=True)
    return model


def record_orders(theirs: types.ModuleType) -> dict[torch.nn.Linear, torch.Tensor]:
    """Fills with the order of the inputs that `prune_ria` finds for each layer and does not return: it is a local
    variable of the function that calls `free` when a layer is done."""
    orders = {}
    free = theirs.WrappedGPT.free

    def recording(self):
        orders[self.layer] = sys._getframe(1).f_locals["index"].clone()
        free(self)

    theirs.WrappedGPT.free = recording
    return orders


def prune(theirs: types.ModuleType, function: str, settings: Namespace, model, samples: list[torch.Tensor]) -> float:
    """Runs their function on the model, and returns its seconds."""
    loader = [(sample, None) for sample in samples]
    theirs.get_loaders = lambda *args, **kwargs: (loader, None)
    theirs.args = settings
    start = time.perf_counter()
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        if function == "llama_sequential":
            theirs.llama_sequential(model, loader, "cpu")
        else:
            getattr(theirs, function)(settings, model, None, "cpu", prune_n=N, prune_m=M)
    return time.perf_counter() - start


def setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    if name not in DEFAULTS:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE with one of the names {', '.join(DEFAULTS)}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def linears(model: LlamaForCausalLM) -> dict[str, torch.nn.Linear]:
    return {
        f"model.layers.{name}": module
        for name, module in model.model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def count(model: LlamaForCausalLM, orders: dict[torch.nn.Linear, torch.Tensor]) -> dict[str, int]:
    totals = {"weights": 0, "zeros": 0, "emptier": 0, "fuller": 0}
    for layer in linears(model).values():
        weight = layer.weight.data
        ordered = weight[:, orders[layer]] if layer in orders else weight
        kept = (ordered != 0).reshape(-1, M).sum(1)
        totals["weights"] += weight.numel()
        totals["zeros"] += weight.numel() - int(kept.sum())
        totals["emptier"] += int((kept < N).sum())
        totals["fuller"] += int((kept > N).sum())
    return totals


def save(model: LlamaForCausalLM, model_dir: Path, out: Path) -> None:
    """A copy of the checkpoint with the pruned weights in the place of the original ones."""
    pruned = {f"{name}.weight": layer.weight.data for name, layer in linears(model).items()}
    out.mkdir(parents=True)
    for source in model_dir.iterdir():
        if source.suffix == ".safetensors":
            with safe_open(source, "pt") as file:
                tensors = {name: pruned.get(name, file.get_tensor(name)).contiguous() for name in file.keys()}
                save_file(tensors, out / source.name, file.metadata())
        elif source.is_file():
            shutil.copyfile(source, out / source.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("model_dir", type=Path, help="folder with config.json and safetensors files")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--code", type=Path, required=True, metavar="DIR", help="clone of the authors' repository")
    parser.add_argument("--calibration", type=Path, required=True, metavar="FILE", help="a JSON list of ids a line")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="changes", help="their setting"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} already exists; choose another folder")
    module, function, changed = METHODS[args.method]
    if not (args.code / f"{module.replace('.', '/')}.py").exists():
        parser.error(f"--code {args.code} is no clone of the repository of {args.method}")
    ids = [json.loads(line) for line in args.calibration.read_text().splitlines() if line.strip()]
    # Wanda's loader has room for 128.
    if not 0 < len(ids) <= 128 or len({len(sample) for sample in ids}) != 1:
        parser.error(f"{args.calibration} must hold 1 to 128 samples of one length")

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    samples = [torch.tensor([sample]) for sample in ids]
    length = len(ids[0])
    model = prepare_model(args.model_dir, length)
    stay_on_cpu()
    with contextlib.redirect_stdout(sys.stderr):
        theirs = load_code(args.code.resolve(), module)
    orders = record_orders(theirs) if changed.get("lsa") else {}
    given = {"method": None, "nsamples": len(ids), "seqlen": length}
    settings = Namespace(**{**DEFAULTS, **given, **changed, **dict(args.changes)})
    seconds = prune(theirs, function, settings, model, samples)
    counts = count(model, orders)
    save(model, args.model_dir, args.out)
    head = subprocess.run(["git", "-C", args.code, "rev-parse", "HEAD"], capture_output=True, text=True)
    source = {"method": args.method, "commit": head.stdout.strip(), "samples": len(ids), "length": length}
    print(json.dumps({**source, "seconds": seconds, **counts}))


if __name__ == "__main__":
    main()

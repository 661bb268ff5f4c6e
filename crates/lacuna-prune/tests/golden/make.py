#!/usr/bin/env python3
"""Writes criteria.json: a small weight and activation matrix with the pruning scores the published formulas give them.

For a weight W [outputs, inputs] of a linear layer y = W x, and activations X [tokens, inputs] seen at its input, where
||X_j|| is the Euclidean norm of input channel j over all tokens:

  magnitude           |W_ij|
  wanda               |W_ij| ||X_j||
                      Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
                      arXiv 2306.11695.
  ria                 (|W_ij| / sum_k |W_kj|  +  |W_ij| / sum_k |W_ik|) ||X_j||^a
                      Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
                      Models", ICLR 2024. The first term is the share of the weight in its column (what goes out of
                      input j), the second its share in its row (what comes into output i); 0 / 0 counts as 0.
  ria, one term only  the same with the other term left out.

The inputs are multiples of 1/1024. The scores are computed in float64 and rounded to float32; every number is written
as the exact value of a float32, so reading it as either width loses nothing.
"""

import json
from pathlib import Path

import numpy as np

OUTPUTS, INPUTS, TOKENS = 6, 10, 7
ZERO_ROW, ZERO_COLUMN = 4, 3


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def exact(values: np.ndarray) -> list:
    rounded = values.astype(np.float32)
    assert np.isfinite(rounded).all()
    return rounded.astype(np.float64).tolist()


def dump(value, indent: int = 0) -> str:
    """JSON with one line per row of numbers."""
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(key)}: {dump(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return "[\n" + ",\n".join(pad + dump(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value)


def main() -> None:
    random = np.random.default_rng(1)
    weight = np.round(random.normal(0.0, 0.5, (OUTPUTS, INPUTS)) * 1024) / 1024
    weight[ZERO_ROW, :] = 0
    weight[:, ZERO_COLUMN] = 0
    # Channels of quite different size, so that the norms decide the order of some weights.
    activations = np.round(random.normal(0.0, 1.0, (TOKENS, INPUTS)) * np.geomspace(0.2, 5.0, INPUTS) * 1024) / 1024

    magnitude = np.abs(weight)
    nonzero = magnitude[magnitude > 0]
    assert len(np.unique(nonzero)) == len(nonzero) == (OUTPUTS - 1) * (INPUTS - 1), "another seed: ties or extra zeros"
    norms = np.sqrt((activations**2).sum(axis=0))
    of_column = share(magnitude, np.broadcast_to(magnitude.sum(axis=0, keepdims=True), weight.shape))
    of_row = share(magnitude, np.broadcast_to(magnitude.sum(axis=1, keepdims=True), weight.shape))

    ria = []
    for a in (0.5, 1.0):
        for parts, relative in (("both", of_column + of_row), ("column", of_column), ("row", of_row)):
            ria.append({"a": a, "parts": parts, "scores": exact(relative * norms**a)})
    golden = {
        "outputs": OUTPUTS,
        "inputs": INPUTS,
        "tokens": TOKENS,
        "weight": exact(weight),
        "activations": exact(activations),
        "norms": exact(norms),
        "magnitude": exact(magnitude),
        "wanda": exact(magnitude * norms),
        "ria": ria,
    }
    path = Path(__file__).resolve().parent / "criteria.json"
    path.write_text(dump(golden) + "\n")
    assert json.loads(path.read_text()) == golden


if __name__ == "__main__":
    main()

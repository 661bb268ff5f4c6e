"""What the Python engines share: the protocol, the data, the clock and the self-check. README.md has the rules.

An engine is a class with
    name, version          strings
    variants(value_type)   names of the ways its user can run a product of that type; [] where it has none
    build(value_type, variant, weights, x) -> (sweep, product)
`weights[i]` is the f32 matrix [R, K] of copy i and `x` the activations [T, K]. `sweep()` computes the product with each
of the copies once; `product(i)` returns that of copy i as an f32 array [T, R]. `build` may raise Unsupported.
"""

import argparse
import json
import os
import sys
import time

VALUE_TYPES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes a value, scales not counted
ROTATED_BYTES = 128 << 20  # four times a cache of 32 MiB
ROTATED_TOKENS = 16
MINIMUM_SWEEPS = 5
# The largest relative error (Frobenius) of a sound product: weights and activations rounded, with room to spare.
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "int8": 3e-2, "int4": 2e-1}


class Unsupported(Exception):
    """The engine has no such product; the text says why."""


def threads_from_arguments():
    """Reads --threads. To be called before the engine's library is imported: thread pools read the environment then."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    return threads


class Weights:
    """Copies of one random matrix, each with its rows rotated by its number, so that no two are equal."""

    def __init__(self, rows, cols, count):
        import numpy as np

        generator = np.random.default_rng([rows, cols])
        self.base = generator.standard_normal((rows, cols), dtype=np.float32) / np.float32(cols**0.5)
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return rotated(self.base, i)


def rotated(rows, i):
    """Copy `i` of a matrix, or of anything made of it row by row."""
    import numpy as np

    return np.roll(rows, i, axis=0)


def copies(rows, cols, tokens, value_type):
    if tokens > ROTATED_TOKENS:
        return 1
    return int(ROTATED_BYTES // (rows * cols * VALUE_TYPES[value_type])) + 1


def activations(cols, tokens):
    import numpy as np

    return np.random.default_rng([cols, tokens, 1]).standard_normal((tokens, cols), dtype=np.float32)


def measure(sweep, count, min_seconds):
    """Median and minimum of the seconds one product takes, over at least `min_seconds` of sweeps."""
    sweep()
    sweep()
    seconds = []
    end = time.perf_counter() + min_seconds
    while len(seconds) < MINIMUM_SWEEPS or time.perf_counter() < end:
        start = time.perf_counter()
        sweep()
        seconds.append((time.perf_counter() - start) / count)
    seconds.sort()
    return {"seconds": seconds[len(seconds) // 2], "minimum": seconds[0], "repetitions": len(seconds) * count}


def check(engine, value_type):
    """Compares every variant with numpy on small shapes; returns the first error that is too large, else None."""
    import numpy as np

    for variant in engine.variants(value_type):
        for tokens in (1, 5):
            weights, x = Weights(256, 512, 3), activations(512, tokens)
            try:
                _, product = engine.build(value_type, variant, weights, x)
            except Unsupported:
                continue
            for i in (0, 2):
                expected = x.astype(np.float64) @ weights[i].T.astype(np.float64)
                error = np.linalg.norm(product(i) - expected) / np.linalg.norm(expected)
                if not error <= TOLERANCE[value_type]:
                    return f"{engine.name}: {value_type} {variant}, {tokens} tokens: relative error {error:.2e}"
    return None


class Cases:
    """Answers requests. The last case stays built, and a shape's fastest variant is remembered."""

    def __init__(self, engine):
        self.engine, self.fastest, self.key, self.built = engine, {}, None, None

    def answer(self, request):
        rows, cols, tokens = (int(request[key]) for key in ("rows", "cols", "tokens"))
        value_type, min_seconds = request["value_type"], float(request.get("min_seconds", 0.2))
        if value_type not in VALUE_TYPES:
            return {"unsupported": f"value type {value_type}"}
        key = (rows, cols, tokens, value_type)
        count = copies(*key)
        if key != self.key:
            self.key, self.built, weights, x = None, None, Weights(rows, cols, count), activations(cols, tokens)
            best, reason = None, f"no products of {value_type}"
            wanted = [self.fastest[key]] if key in self.fastest else self.engine.variants(value_type)
            for variant in wanted:
                try:
                    sweep, _ = self.engine.build(value_type, variant, weights, x)
                    found = measure(sweep, count, min_seconds)
                except (Unsupported, RuntimeError) as refusal:  # libraries refuse shapes with a RuntimeError
                    reason = f"{variant}: {refusal}".splitlines()[0]
                    continue
                if best is None or found["minimum"] < best["minimum"]:  # the median would mind the neighbours
                    best, self.built = {**found, "variant": variant}, (variant, sweep)
                del sweep
            if best is None:
                return {"unsupported": reason}
            self.key, self.fastest[key] = key, best["variant"]
            return best
        variant, sweep = self.built
        return {**measure(sweep, count, min_seconds), "variant": variant}


def serve(engine, threads):
    # Libraries print on the standard output at times: answers go through a copy of it, all else to the standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    value_types = [value_type for value_type in VALUE_TYPES if engine.variants(value_type)]
    for value_type in value_types:
        error = check(engine, value_type)
        if error:
            sys.exit(error)
    hello = {"engine": engine.name, "version": engine.version, "value_types": value_types, "threads": threads}
    print(json.dumps(hello), file=answers)
    cases = Cases(engine)
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(cases.answer(json.loads(line))), file=answers)

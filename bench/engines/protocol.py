"""What the Python engines share: the protocol, the data, the clock and the self-check. README.md has the rules.

An engine is a class with
    name, version          strings
    variants(value_type)   names of the ways its user can run a product of that type; [] where it has none
    build(value_type, variant, weights, x) -> (sweep, product)
`weights[i]` is the f32 matrix [R, K] of copy i and `x` the activations [T, K]. `sweep()` computes the product with each
of the copies once; `product(i)` returns that of copy i as an f32 array [T, R]. `build` may raise Unsupported.
"""

import argparse
import functools
import json
import os
import sys
import time

VALUE_TYPES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes a value, scales not counted
ROTATED_BYTES = 128 << 20  # four times a cache of 32 MiB
ROTATED_TOKENS = 16
MINIMUM_SWEEPS = 5
# The largest relative error (Frobenius) of a sound product: weights and activations rounded, with room to spare. int8 has
# that of products whose 16-bit sums saturate: on CPUs without VNNI some engines take it (ONNX Runtime 3.4e-2).
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "int8": 5e-2, "int4": 2e-1}


class Unsupported(Exception):
    """The engine has no such product; the text says why."""


def arguments(parser):
    """Reads --threads and what else `parser` knows. To be called before the engine's library is imported: thread pools
    read the environment then."""
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(given.threads)
    return given


def threads_from_arguments():
    return arguments(argparse.ArgumentParser()).threads


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


def measure(sweep, count, min_seconds, warm_ups=2, least=MINIMUM_SWEEPS):
    """Median and minimum of the seconds one of `count` takes, over at least `min_seconds` and `least` sweeps."""
    for _ in range(warm_ups):
        sweep()
    seconds = []
    end = time.perf_counter() + min_seconds
    while len(seconds) < least or time.perf_counter() < end:
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


class Fastest:
    """Times cases. The last one stays built, and each one's fastest variant is remembered."""

    def __init__(self):
        self.remembered, self.key, self.built = {}, None, None

    def time(self, key, variants, build, timed):
        """What `timed(run)` says of the fastest `run = build(variant)`; unsupported if none can be built."""
        if key == self.key:
            variant, run = self.built
            return {**timed(run), "variant": variant}
        self.key = self.built = None
        best, reason = None, "no such case"
        for variant in [self.remembered[key]] if key in self.remembered else variants:
            try:
                run = build(variant)
                found = timed(run)
            except (Unsupported, RuntimeError) as refusal:  # libraries refuse shapes with a RuntimeError
                reason = f"{variant}: {refusal}".splitlines()[0]
                continue
            if best is None or found["minimum"] < best["minimum"]:  # the median would mind the neighbours
                best, self.built = {**found, "variant": variant}, (variant, run)
            del run
        if best is None:
            return {"unsupported": reason}
        self.key, self.remembered[key] = key, best["variant"]
        return best


def products(engine):
    """The answer to a request for a product."""
    fastest = Fastest()

    def answer(request):
        rows, cols, tokens = (int(request[key]) for key in ("rows", "cols", "tokens"))
        value_type, min_seconds = request["value_type"], float(request.get("min_seconds", 0.2))
        if value_type not in VALUE_TYPES or not engine.variants(value_type):
            return {"unsupported": f"no products of {value_type}"}
        key = (rows, cols, tokens, value_type)
        count = copies(*key)
        data = functools.cache(lambda: (Weights(rows, cols, count), activations(cols, tokens)))
        return fastest.time(
            key,
            engine.variants(value_type),
            lambda variant: engine.build(value_type, variant, *data())[0],
            lambda sweep: measure(sweep, count, min_seconds),
        )

    return answer


def answers_alone():
    """The standard output, for answers alone: what libraries print on it from now on goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def converse(answers, hello, answer):
    print(json.dumps(hello), file=answers)
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(answer(json.loads(line))), file=answers)


def serve(engine, threads):
    answers = answers_alone()
    value_types = [value_type for value_type in VALUE_TYPES if engine.variants(value_type)]
    for value_type in value_types:
        error = check(engine, value_type)
        if error:
            sys.exit(error)
    hello = {"engine": engine.name, "version": engine.version, "value_types": value_types, "threads": threads}
    converse(answers, hello, products(engine))

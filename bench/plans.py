#!/usr/bin/env python3
"""Plans for a speed-up, carries them out and measures what was reached: bench/record/KERNEL/YYYY-MM-DD-plans.jsonl,
KERNEL the one that this machine prefers, then the table of docs/performance.md. Wants an idle machine, half an hour.

    python3 bench/plans.py

BERT-base's and Qwen2-0.5B's shapes have random weights in bf16, one pattern for all layers, batches of 1 and 32. They are
pruned by magnitude, but in the windows and the order of rows of the default recipe, for which plans are made: speed
depends on that, not on which weights are kept. MiniLM-L6 of ../shared gets a pattern for each layer by measured
sensitivity, is pruned as the default recipe has it and evaluated; it is left out visibly where ../shared is absent.
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LACUNA = str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lacuna")
SHARED = ROOT / "../shared"
SPEEDUPS = ["1.3", "1.6", "2.0"]
AS_DEFAULT = ["--recipe", "default", "--criterion", "magnitude", "--update", "none", "--aim", "0", "--order", "block"]


def lacuna(*args):
    """What a command answers, or the first line of why it does not."""
    done = subprocess.run([LACUNA, *map(str, args), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout), None
    return None, done.stderr.strip().splitlines()[0].removeprefix("error: ")


def patterns(plan):
    """How many layers have which pattern."""
    counts = {}
    for layer in plan["layers"]:
        counts[layer["pattern"]] = counts.get(layer["pattern"], 0) + 1
    return counts


def carried_out(model, work, plan_flags, prune_flags):
    """A plan, what it foresaw and what it reached."""
    plan_file, sparse = work / "plan.json", work / "sparse"
    planned, refused = lacuna("plan", model, plan_file, "--force", *plan_flags)
    if refused:
        return {"refused": refused}
    plan = planned["plan"]
    pruned, problem = lacuna("prune", model, sparse, "--force", "--plan", plan_file, *prune_flags)
    if problem:
        sys.exit(problem)
    case = plan["cases"][0]
    foreseen = {"phase": case["phase"], "predicted": case["predicted_speedup"], "measured": case["measured_speedup"]}
    return {**foreseen, "reached": pruned["reached"][0]["speedup"], "patterns": patterns(plan), "density": plan["density"]}


def runs(work):
    for name in ["bert-base", "qwen2-0.5b"]:
        model = work / name
        subprocess.run(["cargo", "xtask", "synth", "--like", name, "--output", model], check=True, cwd=ROOT)
        for batch in ["1", "32"]:
            for speedup in SPEEDUPS:
                flags = ["--speedup", speedup, "--batch", batch]
                key = {"model": name, "by": "diversity", "speedup": float(speedup), "batch": int(batch)}
                yield {**key, **carried_out(model, work, flags, AS_DEFAULT)}
        subprocess.run(["rm", "-r", model], check=True)
    model = SHARED / "models/minilm-l6"
    if not model.is_dir():
        print(f"minilm-l6: SKIPPED, {model} is not here", file=sys.stderr)
        return
    calibration = ["--calibration", SHARED / "data/stsb/sts-train.csv"]
    evaluate = ["--data", SHARED / "data/stsb/sts-dev.csv"]
    dense, _ = lacuna("eval", model, *evaluate)
    measured = work / "measured.json"
    by = ["--by", "sensitivity", "--batch", "32", "--prompt-tokens", "128"]
    for i, speedup in enumerate(SPEEDUPS[:2]):
        known = ["--measured", measured] if i else calibration
        key = {"model": "minilm-l6", "by": "sensitivity", "speedup": float(speedup), "batch": 32}
        found = carried_out(model, work, [*by, "--speedup", speedup, *known], calibration)
        if not i:
            (work / "plan.json").rename(measured)
        if "refused" not in found:
            sparse, _ = lacuna("eval", work / "sparse", *evaluate)
            found["quality"] = {"metric": dense["metric"], "dense": dense["value"], "pruned": sparse["value"]}
        yield {**key, **found}


def main():
    subprocess.run(["cargo", "build", "--release", "--quiet", "--package", "lacuna"], check=True, cwd=ROOT)
    kernels = subprocess.run([LACUNA, "kernels"], capture_output=True, text=True, check=True).stdout.splitlines()
    kernel = next(line.split()[1] for line in kernels if line.startswith("dense") and line.split()[-1] == "yes")
    record = ROOT / f"bench/record/{kernel}/{datetime.date.today()}-plans.jsonl"
    partial = record.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as work, partial.open("w") as out:
        for run in runs(pathlib.Path(work)):
            print(json.dumps(run), file=sys.stderr)
            print(json.dumps(run), file=out, flush=True)
    partial.rename(record)
    subprocess.run(["cargo", "xtask", "plot"], check=True, cwd=ROOT)


main()

#!/usr/bin/env bash
# The main job on a real checkpoint, end to end, ending in Hugging Face transformers:
# prune -> verify -> eval beside dense -> run -> export -> the same perplexity there.
# Needs ../shared (checkpoints and texts); skips visibly where that is absent, fails under LACUNA_REQUIRE_SHARED=1.
set -euo pipefail
cd "$(dirname "$0")/.."
model=../shared/models/stories-3m data=../shared/data/text
if [ ! -d "$model" ]; then
    echo "round trip: SKIPPED, $model is not here"
    [ "${LACUNA_REQUIRE_SHARED:-0}" = 0 ]
    exit
fi
lacuna=target/release/lacuna
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A Python environment of its own, made once for each set of requirements.
hf=target/hf-$(cksum < scripts/requirements.txt | cut -d' ' -f1)
if [ ! -f "$hf/ready" ]; then
    python3 -m venv "$hf"
    "$hf/bin/pip" install --quiet --requirement scripts/requirements.txt
    touch "$hf/ready"
fi

"$lacuna" prune "$model" "$work/sparse" --pattern 64:2:8 --criterion ria --selection exact \
    --calibration "$data/tinystories-calib.txt" --seed 0
"$lacuna" verify "$work/sparse" --json > "$work/verify.json"
"$lacuna" eval "$work/sparse" --data "$data/tinystories-eval.jsonl" --baseline "$model" --json | tee "$work/ours.json"
"$lacuna" run "$work/sparse" "Once upon a time" --max-new-tokens 24
"$lacuna" export "$work/sparse" "$work/dense" --format dense
"$lacuna" verify "$work/dense" --pattern 64:2:8 --quiet | tail -n 1
TQDM_DISABLE=1 "$hf/bin/python" scripts/hf_perplexity.py "$work/dense" "$data/tinystories-eval.jsonl" | tee "$work/theirs.json"

python3 - "$work" <<'EOF'
import json, sys
load = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
ours, theirs, verdict = load("ours"), load("theirs"), load("verify")
assert verdict["violations"] == 0 and len(verdict["layers"]) == 42, verdict["violations"]
assert all(layer["kernel"] not in ("dense", "none", "reference") for layer in verdict["layers"])
assert ours["tokens"] == theirs["tokens"] == 66657, (ours["tokens"], theirs["tokens"])
assert abs(ours["baseline"]["nll"] - 1.2553) <= 0.001, ours["baseline"]
difference = abs(ours["perplexity"] - theirs["perplexity"])
print(f"perplexity {ours['perplexity']:.4f} here, {theirs['perplexity']:.4f} there: {difference:.4f} apart (limit 0.01)")
assert difference <= 0.01
EOF

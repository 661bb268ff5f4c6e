#!/usr/bin/env bash
# Times whole encoders at batch 32, ours dense and at 64:2:8 beside dense rivals, in f32 and bf16:
# bench/record/KERNEL/YYYY-MM-DD-encoders.jsonl, KERNEL the one that this machine prefers, then the table of
# docs/performance.md. Wants an idle machine.
#
#     bench/encoders.sh                       # all engines: an hour or so
#     bench/encoders.sh openvino              # only some
#
# BERT-base's and DeiT-base's shapes have random weights; MiniLM-L6 and ViT-Tiny are those of ../shared, left out visibly
# where that is absent. Rivals run the dense export of the pruned model, so that answers can be compared. THREADS, PYTHON (one
# with what bench/engines/requirements.txt lists) and MODELS (some of the four) may be set; all have defaults.
set -euo pipefail
cd "$(dirname "$0")/.."

engines=("$@")
[ $# -gt 0 ] || engines=(openvino onnxruntime pytorch)
threads=${THREADS:-$(nproc)}
if [ -z "${PYTHON:-}" ]; then
    bench/engines/setup.sh target/engines
    PYTHON=target/engines/bin/python
fi
cargo build --release --quiet --package lacuna
lacuna=${CARGO_TARGET_DIR:-target}/release/lacuna
folder=bench/record/$("$lacuna" kernels | awk '$1 == "dense" && $NF == "yes" && !found++ { print $2 }')
mkdir -p "$folder"
record=$folder/$(date -u +%F)-encoders.jsonl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for model in ${MODELS:-bert-base deit-base minilm-l6 vit-tiny}; do
    for type in f32 bf16; do
        case $model in
            *-base) cargo xtask synth --like "$model" --dtype "$type" --output "$work/dense" ;;
            *)
                if [ ! -d "../shared/models/$model" ]; then
                    echo "$model: SKIPPED, ../shared/models/$model is not here"
                    continue
                fi
                cp -rL "../shared/models/$model" "$work/dense"
                chmod -R u+w "$work/dense" ;;
        esac
        # Speed depends on the pattern, not on which weights are kept.
        "$lacuna" prune "$work/dense" "$work/sparse" --pattern 64:2:8 --recipe magnitude --values "$type" --quiet
        "$lacuna" export "$work/sparse" "$work/export" --format dense --quiet
        rivals=()
        for engine in "${engines[@]}"; do
            rivals+=(--engine "$PYTHON bench/engines/encoder.py --engine $engine --model $work/export")
        done
        "$lacuna" bench "$work/sparse" --batch 32 --prompt-tokens 128 --activations "$type" --rounds 5 \
            --threads "$threads" "${rivals[@]}" --json |
            sed "s/^{/{\"model\":\"$model\",\"value_type\":\"$type\",/" | tee -a "$record.partial"
        rm -rf "$work/dense" "$work/sparse" "$work/export"
    done
done
mv "$record.partial" "$record"
echo "wrote $record"
cargo xtask plot

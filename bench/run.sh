#!/usr/bin/env bash
# Times our kernels and the rival engines side by side: bench/record/KERNEL/YYYY-MM-DD-kernels.csv, KERNEL the one
# that this machine prefers, then the figure and the table of docs/performance.md. Wants an idle machine.
#
#     bench/run.sh quick                  # LLaMA-2-7B's layers and a small model's: ten minutes or so
#     bench/run.sh full                   # all layers, patterns and token counts: hours
#     bench/run.sh full bf16 int8         # only some types of values
#
# A type of values is a slice, kept in target/bench when it is done: interrupted, the same command goes on after the last
# whole slice. The slices of one day, set and commit make up its record, in whatever order they came; a record that is
# made of others is not replaced. THREADS and ENGINES (a directory) may be set; both have defaults.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
    quick) what=(--shapes llama-2-7b,4864x896 --tokens 1,16,256 --patterns 64:2:5,64:2:8,64:2:16) ;;
    full) what=() ;;
    *) echo "usage: bench/run.sh quick|full [bf16|f32|int8|int4]..." >&2; exit 2 ;;
esac
set_name=$1
shift
values=("$@")
[ $# -gt 0 ] || values=(bf16 f32 int8 int4)

threads=${THREADS:-$(nproc)}
engines=${ENGINES:-target/engines}
bench/engines/setup.sh "$engines"
cargo build --release --quiet
lacuna=${CARGO_TARGET_DIR:-target}/release/lacuna

day=$(date -u +%F)
folder=bench/record/$("$lacuna" kernels | awk '$1 == "dense" && $NF == "yes" && !found++ { print $2 }')
record=$folder/$day-kernels.csv
slices=target/bench/$day-$set_name-$(git rev-parse --short HEAD)
mkdir -p "$slices" "$folder"
# One head, then the rows of every slice there is.
joined() {
    local parts=("$slices"/*.csv)
    if [ -f "${parts[0]}" ]; then
        head -n 1 "${parts[0]}"
        tail -q -n +2 "${parts[@]}"
    fi
}
if [ -f "$record" ] && grep --quiet --invert-match --line-regexp --fixed-strings --file <(joined) "$record"; then
    echo "error: $record is of another set or commit; move it away first" >&2
    exit 1
fi

for value in "${values[@]}"; do
    [ ! -f "$slices/$value.csv" ] || { echo "$value: done before ($slices/$value.csv)"; continue; }
    "$lacuna" bench --kernels --values "$value" "${what[@]}" --threads "$threads" --csv "$slices/$value.csv" \
        --engine "$engines/bin/python bench/engines/pytorch.py" \
        --engine "$engines/bin/python bench/engines/openvino_engine.py" \
        --engine "$engines/bin/python bench/engines/onnxruntime_engine.py" \
        --engine "$engines/bin/python bench/engines/llama_cpp_engine.py" \
        --engine "$engines/candle/release/candle-engine"
done

joined > "$record.partial"
mv "$record.partial" "$record"
echo "wrote $record"
cargo xtask plot

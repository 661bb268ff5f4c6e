#!/usr/bin/env bash
# Pruning at scale: LLaMA-2-7B's shapes (13.5 GB, random bf16 weights), by magnitude, undisturbed and killed twice.
# Needs about 25 GB of disk under the folder given (default: target/scale) and some minutes; CI does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/scale}
cargo build --release --quiet --package lacuna --package xtask
lacuna=target/release/lacuna
mkdir -p "$dir"
[ -d "$dir/dense" ] || target/release/xtask synth --like llama-2-7b --output "$dir/dense" 2> /dev/null
prune=("$lacuna" prune "$dir/dense" --pattern 64:2:8 --recipe magnitude --quiet)
rm -rf "$dir"/whole* "$dir"/killed*

# Where we may, each starts from the disk and not from the memory of the one before it.
forget() { sync; { echo 3 > /proc/sys/vm/drop_caches; } 2> /dev/null || echo "(no right to drop the page cache: from memory)"; }
forget
echo "the disk alone, past the page cache: reading all shards, then writing as many bytes as the result has"
TIMEFORMAT="%R s (user %U, system %S)"
time (for shard in "$dir"/dense/*.safetensors; do dd if="$shard" of=/dev/null iflag=direct bs=16M status=none; done) ||
    echo "(not on this file system)"
time (dd if=/dev/zero of="$dir/written" oflag=direct bs=4M count=1018 status=none && sync "$dir/written") ||
    echo "(not on this file system)"
rm -f "$dir/written"
echo "pruning:"
forget
time "${prune[@]}" "$dir/whole"

for seconds in 5 10; do
    "${prune[@]}" "$dir/killed" &
    sleep "$seconds"
    kill -9 $! && wait $! 2> /dev/null || true
    echo "killed after $seconds s with $(ls "$dir/killed.lacuna-partial" | wc -l) shards written"
    [ ! -e "$dir/killed" ]
done
"${prune[@]}" "$dir/killed"
diff --recursive "$dir/whole" "$dir/killed" && echo "the same bytes"
rm -rf "$dir/killed"
"$lacuna" verify "$dir/whole" --quiet | tail -n 1

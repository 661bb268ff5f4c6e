#!/usr/bin/env bash
# Installs the rival engines in DIR, by default target/engines: a Python environment and the candle engine. Does again
# only what has changed. Wants python3 with venv, cargo, a C++ compiler, some 10 GB and some 10 minutes of two cores.
set -euo pipefail
dir=${1:-target/engines}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")"

ready=$dir/ready-$(cksum < requirements.txt | cut -d' ' -f1)
if [ ! -f "$ready" ]; then
    python3 -m venv "$dir"
    # PyTorch's own index has a build without CUDA. PyPI's brings CUDA's libraries along, 3 GB that are never used here.
    index=()
    cpu=https://download.pytorch.org/whl/cpu
    if curl --silent --fail --head --max-time 20 "$cpu/torch/" > /dev/null; then index=(--extra-index-url "$cpu"); fi
    # llama.cpp comes as source and is compiled for this machine's instructions.
    CMAKE_ARGS=-DGGML_NATIVE=ON "$dir/bin/pip" install --no-binary llama-cpp-python "${index[@]}" \
        --requirement requirements.txt
    touch "$ready"
fi
RUSTFLAGS="-C target-cpu=native" cargo build --release --locked --manifest-path candle/Cargo.toml \
    --target-dir "$dir/candle"
echo "engines: ready in $dir"

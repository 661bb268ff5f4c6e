#!/usr/bin/env bash
# Runs the checks that need a GPU. `cargo xtask gpu-check` builds the program and calls this; a machine without cargo gets
# the program, built elsewhere, and this script:
#
#     scripts/gpu_check.sh BINARY [RECORD_DIRECTORY]
#
# Whatever is missing (compute-sanitizer, PyTorch) is named and left out. Fails if a check fails, with 2 if there is no GPU.
set -uo pipefail
binary=${1:?usage: scripts/gpu_check.sh BINARY [RECORD_DIRECTORY]}
here=$(cd "$(dirname "$0")/.." && pwd)
record=${2:-$here/bench/record}

# Libraries of CUDA where pip puts them.
libraries=$(python3 - <<'PYTHON' 2> /dev/null
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
roots = list(spec.submodule_search_locations) if spec else []
names = ("libnvrtc.so*", "libcublasLt.so*")
print(":".join(sorted({str(f.parent) for r in roots for n in names for f in pathlib.Path(r).rglob(n)})))
PYTHON
)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries${libraries:+:}/usr/local/cuda/lib64

failed=0
"$binary" --record "$record" micro correct models products || failed=$?
[ "$failed" -eq 2 ] && exit 2

if python3 -c 'import torch' 2> /dev/null; then
    echo "== cuSPARSELt"
    python3 "$here/bench/engines/cusparselt.py" --record "$record" || echo "== cuSPARSELt: SKIPPED (it says why above)"
else
    echo "== cuSPARSELt: SKIPPED (no PyTorch here)"
fi

if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        echo "== compute-sanitizer $tool"
        timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 3 "$binary" small
        case $? in
            0) ;;
            124) echo "== compute-sanitizer $tool: cut off after two minutes, nothing found until then" ;;
            *) echo "== compute-sanitizer $tool: FAILED (it does not work on every machine)" && failed=1 ;;
        esac
    done
else
    echo "== compute-sanitizer: SKIPPED (not here)"
fi

exit "$failed"

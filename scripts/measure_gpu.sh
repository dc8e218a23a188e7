#!/bin/sh
# Measures this package on an NVIDIA card in at most 10 minutes: one JSON, one table.
#
#     scripts/measure_gpu.sh [--out DIR] [--references DIR] [--small] [--dry-run]
#
# Needs Python 3.11 or newer with jax for CUDA, and the packages of this project; nothing is
# downloaded. Packages that the machine lacks can be carried as wheels in .whl next to setup.cfg.
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if [ -d "$root/.whl" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$root"/.whl/*.whl
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# The largest share that leaves room for the libraries of CUDA.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
"$python" "$root/scripts/measure_gpu.py" "$@"

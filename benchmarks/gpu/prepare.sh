#!/usr/bin/env bash
# Compile what a GPU run needs, for a machine that has neither the compiler nor a network:
#
#   benchmarks/gpu/prepare.sh [DIRECTORY]        default: .gpu-run, which git ignores
#
# DIRECTORY gets modules without weights, single ops with operands and results, and the wheels of
# IREE's runtime and of ml_dtypes, which it imports, for Python 3.12: some 40 MB (it fails beyond 64 MiB).  Copy it with the repository
# and run benchmarks/gpu/run.sh there.  TARGET and TINY=1 are for trying the run without a GPU:
#
#   TARGET=cpu TINY=1 benchmarks/gpu/prepare.sh .gpu-try && benchmarks/gpu/run.sh .gpu-try local-task
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.gpu-run}
tools/setup.sh compile plugins
.venv/bin/python plugins/build.py
.venv/bin/python plugins/build_gpu.py cuda
mkdir -p "$out"
version=$(.venv/bin/python -c 'from importlib import metadata; print(metadata.version("iree-base-runtime"))')
ml_dtypes=$(.venv/bin/python -c 'from importlib import metadata; print(metadata.version("ml_dtypes"))')
.venv/bin/python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
  -d "$out" "iree-base-runtime==$version" "ml_dtypes==$ml_dtypes"
PYTHONPATH=. .venv/bin/python benchmarks/gpu/prepare.py "$out" --target "${TARGET:-cuda:sm_80}" \
  ${TINY:+--tiny}
bytes=$(du -sb "$out" | cut -f1)
echo "$out: $((bytes >> 20)) MiB"
[ "$bytes" -le $((64 << 20)) ] || { echo "more than the 64 MiB that can travel" >&2; exit 1; }

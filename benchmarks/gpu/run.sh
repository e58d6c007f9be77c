#!/usr/bin/env bash
# Measure on this machine's GPU what prepare.sh compiled, in at most 8 minutes:
#
#   benchmarks/gpu/run.sh [DIRECTORY [DEVICE [JSON]]]      default: .gpu-run cuda gpu-results.json
#
# Needs Python 3.12 with numpy; IREE's runtime is taken from the wheel in DIRECTORY unless Python
# has it.  torch, if it is there, measures the device's limits and its own products and attention.
set -euo pipefail
cd "$(dirname "$0")/../.."
directory=${1:-.gpu-run} device=${2:-cuda} json=${3:-gpu-results.json}
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if ! "$python" -c 'import iree.runtime' 2>/dev/null; then
  "$python" -m zipfile -e "$directory"/iree_base_runtime-*.whl "$site"
fi
! command -v nvidia-smi >/dev/null || nvidia-smi || true
PYTHONUNBUFFERED=1 PYTHONPATH="$site" "$python" benchmarks/gpu/run.py "$directory" \
  --device "$device" --json "$json" --seconds 420

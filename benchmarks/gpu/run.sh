#!/usr/bin/env bash
# Measure on this machine's GPU what prepare.sh compiled, in at most 8 minutes:
#
#   benchmarks/gpu/run.sh [DIRECTORY [DEVICE [JSON]]]      default: .gpu-run cuda gpu-results.json
#
# Needs Python 3.12 with numpy; IREE's runtime and ml_dtypes are taken from the wheels in DIRECTORY
# unless Python has them.  torch, if it is there, measures the device's limits and its own products
# and attention.  Results are written as they come: what ends the run early ends no more than that.
set -euo pipefail
cd "$(dirname "$0")/../.."
directory=${1:-.gpu-run} device=${2:-cuda} json=${3:-gpu-results.json}
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for package in ml_dtypes iree_base_runtime; do
  module=${package/iree_base_runtime/iree.runtime}
  # ml_dtypes first: iree.runtime does not import without it.
  if ! PYTHONPATH="$site" "$python" -c "import $module" 2>/dev/null; then
    "$python" -m zipfile -e "$directory/$package"-*.whl "$site"
  fi
done
# IREE opens libcuda.so, a name that only packages for developers have; the driver is libcuda.so.1.
"$python" - "$site" <<'FIND'
import ctypes, os, sys
try:
    ctypes.CDLL("libcuda.so")
except OSError:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        sys.exit()  # no driver: IREE says so
    with open("/proc/self/maps") as maps:
        found = next(line.split(None, 5)[5].strip() for line in maps if "/libcuda.so" in line)
    os.mkdir(f"{sys.argv[1]}/lib")
    os.symlink(found, f"{sys.argv[1]}/lib/libcuda.so")
FIND
[ ! -d "$site/lib" ] || export LD_LIBRARY_PATH="$site/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
! command -v nvidia-smi >/dev/null || timeout 20 nvidia-smi || true
PYTHONUNBUFFERED=1 PYTHONPATH="$site" timeout --kill-after=10 450 "$python" benchmarks/gpu/run.py \
  "$directory" --device "$device" --json "$json" --seconds 420

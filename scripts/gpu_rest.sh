#!/usr/bin/env bash
# Runs what gpu_check.sh leaves out, in at most 570 seconds: torch.compile as a contender, training, screening, the
# tests of the detector that need a GPU, and the whole parity table. OUTPUT, .wheels/ and the exit codes are as for
# gpu_check.sh.
# Usage: bash scripts/gpu_rest.sh [OUTPUT]
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/../gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m scripts.gpu.jobs rest "$output"

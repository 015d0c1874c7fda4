#!/usr/bin/env bash
# Builds, checks and times the kernels on this machine's GPU, in at most 570 seconds, the most telling steps first.
# OUTPUT (default: gpu-results) gets log.txt and results.json. Python packages that the machine lacks may lie in
# .wheels/ as wheels. Exit code: 1 if a step failed, 2 without a GPU.
# Usage: bash scripts/gpu_check.sh [OUTPUT]
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/../gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.device check "$output"

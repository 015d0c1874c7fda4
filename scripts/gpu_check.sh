#!/usr/bin/env bash
# Builds, checks and times the kernels on this machine's GPU in at most 570 seconds. The most important steps come
# first. OUTPUT (default: gpu-results) receives log.txt and results.json. Python packages that the machine lacks are
# installed from wheels in .wheels/. Exit code: 1 if a step failed, 2 if there is no GPU.
# Usage: bash scripts/gpu_check.sh [OUTPUT]
set -euo pipefail
output=$(realpath -m "${1:-$(dirname "$0")/../gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m scripts.gpu.jobs check "$output"

#!/usr/bin/env bash
# Trains for six minutes on this machine's GPU, and keeps in OUTPUT what a later run needs to go on exactly.
#
# DATA is one tar file with
#   config.json   as `npr train FOLDER... --print-config` prints it, "folders" and "validation" relative to the tar
#   the folders   with 0_real and 1_fake
#   run/          only to go on with a run: what OUTPUT had of it, after `cat state.pt.* > state.pt`
# OUTPUT, .wheels/ and exit codes are those of gpu_check.sh. The time being up counts as a failed step.
# Usage: bash scripts/gpu_train.sh DATA [OUTPUT]
set -euo pipefail
data=$(realpath -m "${1:?Usage: bash scripts/gpu_train.sh DATA [OUTPUT]}")
output=$(realpath -m "${2:-$(dirname "$0")/../gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.device train "$data" "$output"

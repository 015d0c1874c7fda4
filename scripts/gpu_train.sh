#!/usr/bin/env bash
# Trains for six minutes on this machine's GPU. OUTPUT receives everything that a later run needs to continue exactly.
#
# DATA is one tar file with
#   config.json   from `npr train FOLDER... --print-config`; "folders" and "validation" are paths inside the tar
#   the folders   with 0_real and 1_fake
#   run/          only to continue a run: its files in OUTPUT, after `cat state.pt.* > state.pt`
# OUTPUT, .wheels/ and the exit codes are as for gpu_check.sh. Running out of time counts as a failed step.
# Usage: bash scripts/gpu_train.sh DATA [OUTPUT]
set -euo pipefail
data=$(realpath -m "${1:?Usage: bash scripts/gpu_train.sh DATA [OUTPUT]}")
output=$(realpath -m "${2:-$(dirname "$0")/../gpu-results}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m scripts.gpu.jobs train "$data" "$output"

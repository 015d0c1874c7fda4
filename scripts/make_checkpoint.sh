#!/usr/bin/env bash
# Trains and calibrates the bundled checkpoint, and writes it, its results and its card. This takes about two hours on
# two cores.
#
#   scripts/make_checkpoint.sh DATA VALIDATION RUNS
#
# scripts/make_training_data.py makes DATA. VALIDATION is only used for measuring. Runs that are complete in RUNS are
# not repeated. The first and second run train without compression, so that the network learns the traces of
# up-sampling. The third run trains with JPEG, so that the network looks for traces that survive compression and does
# not take compressed images for real ones. The third run forgets some of what was learned before, so its weights are
# averaged with the second's.
set -euo pipefail
DATA=$(realpath "$1") VALIDATION=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
DESCRIPTION='7,650 crops of real photographs (wallpapers, sample photographs of software packages, ImageNet samples) and as many re-creations of them by a latent-diffusion autoencoder (taef2), super-resolution networks (Real-ESRGAN, SPAN, waifu2x, Real-CUGAN), a style-transfer network, a DCGAN and simulated up-sampling decoders; see scripts/make_checkpoint.sh'
mkdir -p "$RUNS"

# run NAME EPOCHS OPTION...
run() {
    [ "$(wc -l < "$RUNS/$1/history.jsonl" 2> /dev/null || echo 0)" -ge "$2" ] && return
    npr train -o "$RUNS/$1" --epochs "$2" --name preview --crop-size 128 --set training_data="$DESCRIPTION" \
        --set licence=Apache-2.0 --set blur_probability=0 --set webp_probability=0 --set rescale_probability=0 "${@:3}"
}
PACKAGED=$DATA/packaged SIMULATED=$DATA/simulated
run first 2 "$PACKAGED/train" --set jpeg_probability=0 --set learning_rate=0.001
run second 8 "$PACKAGED/train" "$SIMULATED/train" --dtype bfloat16 --set jpeg_probability=0 \
    --set start="$RUNS/first/last.safetensors" --set learning_rate=0.0006 --set decay=0.75 --set decay_epochs=1
run third 4 "$PACKAGED/train" "$SIMULATED/train" --dtype bfloat16 --set jpeg_probability=0.6 --set jpeg_quality=65,100 \
    --set start="$RUNS/second/last.safetensors" --set learning_rate=0.0005 --set decay=0.65 --set decay_epochs=1

python scripts/average_checkpoints.py "$RUNS/third/last.safetensors" "$RUNS/second/last.safetensors" --share 0.25 \
    -o npr_model/weights/preview.safetensors

# Measures what to expect for a new kind of generator: each family of generators is left out of a training once. All
# these trainings start from a checkpoint that has seen simulated fakes only.
LIKE_THIRD=(--dtype bfloat16 --set jpeg_probability=0.4 --set jpeg_quality=65,100 --set decay=0.65 --set decay_epochs=1)
run simulated 2 "$SIMULATED/train" --set learning_rate=0.001 "${LIKE_THIRD[@]}"
npr train --print-config --epochs 1 --crop-size 128 --set blur_probability=0 --set webp_probability=0 \
    --set rescale_probability=0 --set learning_rate=0.0006 --set start="$RUNS/simulated/last.safetensors" \
    "${LIKE_THIRD[@]}" > "$RUNS/leave_families_out.json"
python scripts/leave_families_out.py "$PACKAGED/train" "$PACKAGED/validation" --config "$RUNS/leave_families_out.json" \
    -o "$RUNS/left_out" --results "$RUNS/left_out.json"

npr calibrate npr_model/weights/preview.safetensors "$PACKAGED/validation" \
    -o npr_model/weights/preview.safetensors --overwrite
python scripts/make_card.py measure "$VALIDATION" --held-out "$PACKAGED/validation" --left-out "$RUNS/left_out.json" \
    --results benchmarks/results/checkpoint.json
python scripts/make_card.py print benchmarks/results/checkpoint.json > npr_model/weights/preview.md

#!/usr/bin/env bash
# Trains and measures the variants of NPR that docs/ablation.md compares, and writes the page. This takes an afternoon on
# two cores.
#
#   scripts/documents/make_ablation.sh VALIDATION TRAINING RUNS
#
# VALIDATION and TRAINING hold <generator>/{0_real,1_fake}. No image of VALIDATION is copied. RUNS keeps the trained
# variants; those that are complete are not trained again.
set -euo pipefail
VALIDATION=$(realpath "$1") TRAINING=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/../.."
PAGE=docs/ablation.md
mkdir -p "$RUNS"
. scripts/documents/page.sh

text '# Which grid size and anchor?'
text "\`scripts/documents/make_ablation.sh VALIDATION TRAINING RUNS\` runs the command below and writes this page. VALIDATION has $(images_of "$VALIDATION"). None of them was in a training set. \`scripts/checkpoints/make_training_data.py\` made TRAINING. The sets are small, so the intervals are wide."
text "This repeats the paper's Table 7 with three kinds of fakes and two short epochs. That is enough to show how the command works, but too little to rank similar variants."
run 'npr ablate $TRAINING --evaluate $VALIDATION -o $RUNS/ablation --preset wild --set crop_size=64 --set epochs=2 \
    --set classes=taef2-autoencoder,realesrgan-x4plus,waifu2x-upconv_7_photo --set learning_rate=0.001 \
    --set jpeg_probability=0 --set webp_probability=0 --set blur_probability=0 --set rescale_probability=0'
tables "$RUNS/ablation/ablation.md"

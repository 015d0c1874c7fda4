#!/usr/bin/env bash
# Trains and measures the detectors that docs/comparison.md compares, and writes the page. This takes an afternoon on
# two cores.
#
#   scripts/make_comparison.sh VALIDATION TRAINING RUNS
#
# VALIDATION and TRAINING hold <generator>/{0_real,1_fake}. No image of VALIDATION is copied. RUNS keeps the trained
# detectors; those that are complete are not trained again.
set -euo pipefail
VALIDATION=$(realpath "$1") TRAINING=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/.."
PAGE=docs/comparison.md
mkdir -p "$RUNS"
. scripts/page.sh

text '# Detectors and variants, trained alike'
text "\`scripts/make_comparison.sh VALIDATION TRAINING RUNS\` runs the commands below and writes this page. VALIDATION has $(images_of "$VALIDATION"). None of them was in a training set. \`scripts/make_training_data.py\` made TRAINING. The sets are small, so the intervals are wide."

text '## How do other detectors fare?'
text 'All detectors were trained in the same way, from random weights, for two short epochs. The numbers show what an afternoon on a small machine gives, not what the authors of the detectors reached. [Another page](detectors.md) describes the detectors.'
SAME='--epochs 2 --crop-size 128 --set learning_rate=0.001'
for augmentation in jpeg webp blur rescale; do SAME="$SAME --set ${augmentation}_probability=0"; done
text "With \`SAME=\"$SAME\"\`:"
checkpoints=
for detector in npr cnndetection durall f3net frank patchfor; do
    penalty=
    [ $detector = frank ] && penalty=' --set weight_decay=0.01'
    command="npr train \$TRAINING -o \$RUNS/$detector --name $detector --set detector=$detector \$SAME$penalty"
    if [ "$(cat "$RUNS/$detector/history.jsonl" 2> /dev/null | wc -l)" = 2 ]; then show "$command"; else run "$command"; fi
    checkpoints="$checkpoints -c \$RUNS/$detector/last.safetensors"
done
run "npr compare \$VALIDATION$checkpoints -o \$RUNS/comparison"
tables "$RUNS/comparison/comparison.md"
run "npr compare \$VALIDATION --equalise jpeg:90$checkpoints -o \$RUNS/comparison-equalised"
tables "$RUNS/comparison-equalised/comparison.md"

text '## Which grid size and anchor?'
text "This repeats the paper's Table 7 with three kinds of fakes and two short epochs. That is enough to show how the command works, but too little to rank similar variants."
run 'npr ablate $TRAINING --evaluation $VALIDATION -o $RUNS/ablation --preset wild --set crop_size=64 --set epochs=2 \
    --set classes=taef2-autoencoder,realesrgan-x4plus,waifu2x-upconv_7_photo --set learning_rate=0.001 \
    --set jpeg_probability=0 --set webp_probability=0 --set blur_probability=0 --set rescale_probability=0'
tables "$RUNS/ablation/ablation.md"

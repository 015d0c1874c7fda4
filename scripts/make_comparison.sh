#!/usr/bin/env bash
# Trains what docs/comparison.md compares, measures it and writes the page. An afternoon on two cores.
#
#   scripts/make_comparison.sh VALIDATION TRAINING RUNS
#
# VALIDATION and TRAINING hold <generator>/{0_real,1_fake}; nothing of VALIDATION is copied. Trainings are kept in RUNS,
# and not done again.
set -euo pipefail
VALIDATION=$(realpath "$1") TRAINING=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/.."
PAGE=docs/comparison.md
mkdir -p "$RUNS"
. scripts/page.sh

text '# Detectors and variants, trained alike'
text "Made by \`scripts/make_comparison.sh VALIDATION TRAINING RUNS\`, which runs the commands below. VALIDATION has $(images_of "$VALIDATION"), none of which was in a training set; TRAINING is what \`scripts/make_training_data.py\` makes. The sets are small: mind the intervals."

text '## How do other detectors fare?'
text 'Each trained alike, from random weights, for two short epochs: what an afternoon on a small machine gives, not what their authors reached. [What they are](detectors.md).'
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

text '## Which relationship?'
text "The paper's Table 7 on three kinds of fakes and two short epochs: enough to see the command work, too little to rank close variants."
run 'npr ablate $TRAINING --evaluation $VALIDATION -o $RUNS/ablation --preset wild --set crop_size=64 --set epochs=2 \
    --set classes=taef2-autoencoder,realesrgan-x4plus,waifu2x-upconv_7_photo --set learning_rate=0.001 \
    --set jpeg_probability=0 --set webp_probability=0 --set blur_probability=0 --set rescale_probability=0'
tables "$RUNS/ablation/ablation.md"

#!/usr/bin/env bash
# Trains and measures the detectors that docs/comparison.md compares, and writes the page. This takes two hours on two
# cores.
#
#   scripts/documents/make_comparison.sh VALIDATION TRAINING RUNS
#
# VALIDATION and TRAINING hold <generator>/{0_real,1_fake}. No image of them is copied. RUNS keeps the trained detectors
# and what was measured; what is complete is not done again. EPOCHS=N trains N epochs.
set -euo pipefail
VALIDATION=$(realpath "$1") TRAINING=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/../.."
PAGE=docs/comparison.md
mkdir -p "$RUNS"
. scripts/documents/page.sh

text '# Detectors, trained alike'
text "\`scripts/documents/make_comparison.sh VALIDATION TRAINING RUNS\` runs the commands below and writes this page. TRAINING has $(images_of "$TRAINING"). VALIDATION has $(images_of "$VALIDATION"). People published these images in public repositories. No repository is in both sets."

text 'All detectors were trained with the same crops, for the same number of epochs, from random weights; only `frank` and `ojha` have settings of their own, without which they do not work, and the encoder of `ojha` is pretrained. The table shows what a few hours on two cores give, not what the authors of the detectors reached: networks of millions of weights are still near chance (a ROC AUC of 50) after so few steps. `wild-2` and `npr+clip` of this package, which were trained for longer on more crops of these images, stand first. [Another page](detectors.md) describes the detectors and how they differ from the authors'"'"' versions.'
EPOCHS=${EPOCHS:-1} # a finished run goes on with more of them
run "npr compare --train \$TRAINING --evaluate \$VALIDATION --detectors all -c wild-2 -c npr+clip \\
    -o \$RUNS/comparison --set epochs=$EPOCHS --set crop_size=128 --set learning_rate=0.001 \\
    --set dtype=bfloat16 --set balance_groups=0.5"
tables "$RUNS/comparison/comparison.md"

#!/usr/bin/env bash
# Runs everything that docs/evaluation.md shows and writes the page, its tables and its figures.
#
#   scripts/make_report.sh VALIDATION TRAINING RUNS
#
# VALIDATION and TRAINING hold <generator>/{0_real,1_fake}; nothing of VALIDATION is copied. Trainings are kept in RUNS,
# and not done again.
set -euo pipefail
VALIDATION=$(realpath "$1") TRAINING=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
PAGE=docs/evaluation.md FIGURES=docs/evaluation
mkdir -p "$FIGURES" "$RUNS"

# A command, shown on the page as it is written here, then run.
show() { printf '```\n%s\n```\n\n' "$1" >> "$PAGE"; }
run() { show "$1"; eval "$1" >&2; }
text() { printf '%s\n\n' "$1" >> "$PAGE"; }
tables() { sed 's/^###/####/' "$1" >> "$PAGE"; echo >> "$PAGE"; }
figure() { text "![$2]($(basename "$FIGURES")/$1)"; }

: > "$PAGE"
text '# The commands that measure, and what they measure on the bundled checkpoint'
text "Made by \`scripts/make_report.sh VALIDATION TRAINING RUNS\`, which runs the commands below. VALIDATION has $(find "$VALIDATION"/*/1_fake -type f | wc -l) generated images of four generators and $(find "$VALIDATION"/*/0_real -type f | wc -l) photographs of other sources, none of which any training here has seen; TRAINING is what \`scripts/make_training_data.py\` makes. The sets are small: mind the intervals. [Every number of the paper](../npr_model/published) ships with the package; \`npr evaluate --preset\` sets it beside a measurement on the paper's own sets, which are not at hand here."

text '## Is the set fair?'
run 'npr audit $VALIDATION -o $RUNS/audit.md'
tables "$RUNS/audit.md"

text '## How good is the checkpoint?'
text 'On the files as they are, where the codec tells much, and with both classes cut to one size and written as JPEG 90.'
run 'npr evaluate $VALIDATION -o $RUNS/evaluation.md --plots $FIGURES/as-they-are'
tables "$RUNS/evaluation.md"
for figure in "$FIGURES"/as-they-are/*.png; do figure "as-they-are/$(basename "$figure")" "$(basename "$figure" .png)"; done
run 'npr evaluate $VALIDATION --equalise jpeg:90 -o $RUNS/equalised.md --plots $FIGURES/equalised'
tables "$RUNS/equalised.md"
for figure in "$FIGURES"/equalised/*.png; do figure "equalised/$(basename "$figure")" "$(basename "$figure" .png)"; done

text '## What do common changes do to it?'
run 'npr robustness $VALIDATION -o $RUNS/robustness'
tables "$RUNS/robustness/robustness.md"
mkdir -p "$FIGURES/robustness"
for figure in "$RUNS"/robustness/*.png; do
    cp "$figure" "$FIGURES/robustness/"
    figure "robustness/$(basename "$figure")" "$(basename "$figure" .png)"
done

text '## Why that verdict?'
run 'npr explain examples/generated/antoine-barres.png --other examples/real/antoine-barres.png -o $FIGURES/explain'
for figure in "$FIGURES"/explain/*.png; do figure "explain/$(basename "$figure")" "$(basename "$figure" .png)"; done

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

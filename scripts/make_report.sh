#!/usr/bin/env bash
# Runs everything that docs/evaluation.md shows, on the bundled checkpoint, and writes the page, its tables and its figures.
# A quarter of an hour on two cores.
#
#   scripts/make_report.sh VALIDATION RUNS
#
# VALIDATION holds <generator>/{0_real,1_fake}; nothing of it is copied. RUNS must not have results of another checkpoint.
set -euo pipefail
VALIDATION=$(realpath "$1") RUNS=$(realpath -m "$2")
cd "$(dirname "$0")/.."
PAGE=docs/evaluation.md FIGURES=docs/evaluation
mkdir -p "$FIGURES" "$RUNS"
. scripts/page.sh

text '# Evaluation of the bundled checkpoint'
text "Made by \`scripts/make_report.sh VALIDATION RUNS\`, which runs the commands below. VALIDATION has $(images_of "$VALIDATION"), none of which was in a training set. The sets are small: mind the intervals. [Every number of the paper](../npr_model/evaluation/published) ships with the package; \`npr evaluate --benchmark\` shows them beside measurements on the paper's own sets, which were not available here. [Other detectors, and the paper's Table 7](comparison.md)."

text '## Is the set fair?'
run 'npr audit $VALIDATION -o $RUNS/audit.md'
tables "$RUNS/audit.md"

text '## How good is the checkpoint?'
text 'On the unchanged files, where the codec alone says much about the class, and with both classes cut to one size and re-encoded as JPEG 90.'
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
rm "$FIGURES/explain/explanation.json"  # thousands of lines of numbers
for figure in "$FIGURES"/explain/*.png; do figure "explain/$(basename "$figure")" "$(basename "$figure" .png)"; done

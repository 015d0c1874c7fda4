#!/usr/bin/env bash
# Measures the checkpoint "wild-2" and writes docs/results.md with its tables and figures. This takes a quarter of an
# hour on two cores.
#
#   scripts/documents/make_results.sh VALIDATION RUNS
#
# VALIDATION holds <generator>/{0_real,1_fake}. None of its images is copied. RUNS must not hold results of another
# checkpoint.
set -euo pipefail
VALIDATION=$(realpath "$1") RUNS=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
PAGE=docs/results.md FIGURES=docs/results
mkdir -p "$FIGURES" "$RUNS"
. scripts/documents/page.sh

text '# Evaluation of the checkpoint `wild-2`'
text "\`scripts/documents/make_results.sh VALIDATION RUNS\` runs the commands below and writes this page. VALIDATION has $(images_of "$VALIDATION"). None of them comes from a repository of the training set, but most of the generators are of families that the training set has. The sets are small, so the intervals are wide. The paper's own test sets were not available. [The numbers of the paper](../npr_model/evaluation/published) are part of the package, and \`npr evaluate --benchmark\` shows them beside measurements on these sets. Other pages [compare detectors](comparison.md) and [repeat the paper's Table 7](ablation.md)."

text '## Is the set fair?'
run 'npr audit $VALIDATION -o $RUNS/audit.md'
tables "$RUNS/audit.md"

text '## How good is the checkpoint?'
text 'The first table is for the unchanged files, whose format alone says much about the class. For the second table, all images were cut to one size and re-encoded as JPEG 90.'
run 'npr evaluate $VALIDATION -o $RUNS/evaluation.md --plots $FIGURES/as-they-are'
tables "$RUNS/evaluation.md"
for figure in "$FIGURES"/as-they-are/*.png; do figure "as-they-are/$(basename "$figure")" "$(basename "$figure" .png)"; done
run 'npr evaluate $VALIDATION --equalise jpeg:90 -o $RUNS/equalised.md --plots $FIGURES/equalised'
tables "$RUNS/equalised.md"
for figure in "$FIGURES"/equalised/*.png; do figure "equalised/$(basename "$figure")" "$(basename "$figure" .png)"; done

text '## How do common changes affect it?'
run 'npr robustness $VALIDATION -o $RUNS/robustness'
tables "$RUNS/robustness/robustness.md"
mkdir -p "$FIGURES/robustness"
for figure in "$RUNS"/robustness/*.png; do
    cp "$figure" "$FIGURES/robustness/"
    figure "robustness/$(basename "$figure")" "$(basename "$figure" .png)"
done

text '## Why does an image get its verdict?'
run 'npr explain examples/generated/antoine-barres.png --other examples/real/antoine-barres.png -o $FIGURES/explain'
rm "$FIGURES/explain/explanation.json"  # thousands of lines of numbers
for figure in "$FIGURES"/explain/*.png; do figure "explain/$(basename "$figure")" "$(basename "$figure" .png)"; done

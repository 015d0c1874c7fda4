#!/usr/bin/env bash
# Makes the bundled checkpoint, its results, its card, the picture in README and docs/results.md. This takes three
# quarters of an hour on two cores. After an interruption, the same command goes on where it stopped: RUNS must not hold
# files of another version.
#
#   scripts/checkpoints/make_wild.sh DATA RUNS
#
# DATA/validation holds images for docs/results.md. DATA/wild holds train/ and validation/, each with
# <family>/{0_real,1_fake}, and start.safetensors: the paper's network, trained for 18 epochs with the preset "wild" on
# the originals of train/ (its metadata has the whole config). It was fine-tuned from an earlier checkpoint of this
# repository, whose weights are averaged into it. Then the last layer is fitted anew. The validation images choose the
# share of the average, the strength of the fit and the thresholds.
#
# The earlier checkpoint is in the history of the repository alone. So this needs a full clone: a shallow clone and an
# archive of the files do not have it.
set -euo pipefail
USAGE='Usage: scripts/checkpoints/make_wild.sh DATA RUNS, in a full clone of the repository'
DATA=$(realpath "${1:?$USAGE}") RUNS=$(realpath -m "${2:?$USAGE}")
WILD="$DATA/wild"
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
NAME=wild-2
DESCRIPTION='3,441 images that people published in 124 repositories: the output of 147 families of generators, and photographs, scans, paintings, drawings and screenshots from 76 sources; before that, crops of 388 photographs and re-creations of them by autoencoders, super-resolution and style-transfer networks. The weights are an average: 70 % of the network trained with the config below, 30 % of its predecessor. The last layer was fitted to 3,741 crops of the published images by logistic regression'
CURVE=docs/results/learning-curve.csv
mkdir -p "$RUNS"
AVERAGED="$RUNS/averaged.safetensors" FITTED="$RUNS/$NAME.safetensors"
if [ ! -e "$AVERAGED" ]; then
    if ! git show 1e01354:npr_model/weights/preview.safetensors > "$RUNS/earlier.safetensors"; then
        echo "The earlier checkpoint is not in this repository's history, as in a shallow clone. $USAGE" >&2
        exit 1
    fi
    python -m scripts.checkpoints.average_checkpoints "$WILD/start.safetensors" "$RUNS/earlier.safetensors" --share 0.3 \
        --name averaged --training-data "$DESCRIPTION" -o "$AVERAGED"
fi
if [ ! -e "$FITTED" ]; then
    python -m scripts.checkpoints.fit_last_layer "$AVERAGED" "$WILD/train" --name "$NAME" --training-data "$DESCRIPTION" \
        --validation "$WILD/validation" --curve "$CURVE" -o "$FITTED"
fi
npr calibrate "$FITTED" "$WILD/validation" --view sample:8x128 -o "npr_model/weights/$NAME.safetensors" --overwrite
python -m scripts.checkpoints.make_card measure "$WILD/validation" --training "$WILD/train" --checkpoint "$NAME" \
    --results "docs/results/$NAME.csv"
python -m scripts.checkpoints.make_card print "docs/results/$NAME.csv" --curve "$CURVE" --checkpoint "$NAME" \
    > "npr_model/weights/$NAME.md"
python -m scripts.documents.make_picture
scripts/documents/make_results.sh "$DATA/validation" "$RUNS/report-of-$NAME"

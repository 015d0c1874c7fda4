#!/usr/bin/env bash
# Makes the bundled checkpoints fast-1 and cascade, their results, and the card of fast-1. An interrupted run goes on
# where it stopped, if RUNS still holds its files; files of another run must not be there.
#
#   scripts/checkpoints/make_fast.sh WILD CROPS RUNS
#
# WILD holds train/ and validation/, each with <family>/{0_real,1_fake}. CROPS holds more crops of the whole images of
# train/ in the same layout: scripts/checkpoints/cut_crops.py makes them. The validation images choose the range of doubt of the
# cascade and the thresholds; nothing is trained on them.
set -euo pipefail
WILD=$(realpath "$1") CROPS=$(realpath "$2") RUNS=$(realpath -m "$3")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
NAME=fast-1 WEIGHTS=npr_model/weights RESULTS=docs/results
DESCRIPTION='15,622 crops of the images that wild-2 was trained on. It learned from their labels, and to agree with wild-2. The last layer was fitted to 3,741 of the crops by logistic regression'
RUN="$RUNS/fast" FITTED="$RUNS/$NAME.safetensors"
if [ ! -e "$FITTED" ]; then
    mkdir -p "$RUNS"
    if [ ! -e "$RUNS/train" ]; then # one flat picture is in both classes, which npr train refuses
        cp -rs "$WILD/train" "$RUNS/train"
        rm -f "$RUNS/train/stylegan2_wikiart/1_fake/sunayana-981__stylegan2_wikiart__d726e14e50.webp"
    fi
    if [ -e "$RUN" ]; then
        npr train --resume "$RUN"
    else
        npr train "$RUNS/train" "$CROPS" --output "$RUN" --preset wild --set size=fast --set teacher=wild-2 \
            --set crop_size=128 --set jpeg_probability=0.5 --set balance_groups=0.5 --set batch_size=64 \
            --set learning_rate=2.5e-3 --set decay=0.72 --set decay_epochs=1 --set average_decay=0.998 \
            --set name=fast --set licence=Apache-2.0 --epochs 12
    fi
    python -m scripts.checkpoints.fit_last_layer "$RUN/last.safetensors" "$WILD/train" --name $NAME --strength 1 \
        --training-data "$DESCRIPTION" -o "$FITTED"
fi
npr calibrate "$FITTED" "$WILD/validation" --view sample:8x128 -o $WEIGHTS/$NAME.safetensors --overwrite
python -m scripts.checkpoints.make_cascade "$WILD/validation" --first $NAME --second wild-2 -o $WEIGHTS/cascade.safetensors
npr calibrate $WEIGHTS/cascade.safetensors "$WILD/validation" -o $WEIGHTS/cascade.safetensors --overwrite
for name in $NAME cascade; do
    python -m scripts.checkpoints.make_card measure "$WILD/validation" --training "$WILD/train" --checkpoint $name \
        --results $RESULTS/$name.csv
done
python -m scripts.checkpoints.make_card print $RESULTS/$NAME.csv --beside $RESULTS/cascade.csv $RESULTS/wild-2.csv \
    --checkpoint $NAME > $WEIGHTS/$NAME.md

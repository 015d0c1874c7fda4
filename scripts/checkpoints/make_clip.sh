#!/usr/bin/env bash
# Makes the bundled checkpoints clip-3, npr+clip and cascade+clip, and the card of the pair. Embedding takes most of the
# time: 0.1 to 0.3 seconds an image on one core, for 11,700 images and four times the validation images.
#
#   scripts/checkpoints/make_clip.sh WILD ORIGINALS
#
# WILD holds train/ and validation/, each with crops in <family>/{0_real,1_fake}. ORIGINALS holds the whole images of
# train/ in the same layout. The validation images choose the weights of the pair and all thresholds; nothing is trained
# on them.
set -euo pipefail
WILD=$(realpath "$1") ORIGINALS=$(realpath "$2")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export NPR_MODEL_EMBEDDINGS=${NPR_MODEL_EMBEDDINGS:-$(mktemp -d)/embeddings.sqlite}
WEIGHTS=npr_model/weights
python -m scripts.checkpoints.make_clip_probe "$ORIGINALS" "$WILD/train" -o $WEIGHTS/clip-3.safetensors
npr calibrate $WEIGHTS/clip-3.safetensors "$WILD/validation" -o $WEIGHTS/clip-3.safetensors --overwrite
python -m scripts.checkpoints.make_pair "$WILD/validation" -o $WEIGHTS/npr+clip.safetensors
npr calibrate $WEIGHTS/npr+clip.safetensors "$WILD/validation" -o $WEIGHTS/npr+clip.safetensors --overwrite
python -m scripts.checkpoints.make_cascade "$WILD/validation" --first fast-1 --second npr+clip --most 0.25 \
    -o $WEIGHTS/cascade+clip.safetensors
npr calibrate $WEIGHTS/cascade+clip.safetensors "$WILD/validation" -o $WEIGHTS/cascade+clip.safetensors --overwrite
python -m scripts.checkpoints.make_pair_card "$WILD/validation" --training "$WILD/train" > "$WEIGHTS/npr+clip.md"

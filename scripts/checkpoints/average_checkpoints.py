"""Averages a fine-tuned network with the network it started from, so that it forgets less (Wortsman et al., CVPR 2022).

    python -m scripts.checkpoints.average_checkpoints FINE_TUNED STARTED_FROM --share 0.25 --name N \\
        --training-data TEXT -o OUTPUT

Weights and batch-norm statistics become (1 - share) * FINE_TUNED + share * STARTED_FROM. The other metadata are
FINE_TUNED's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from npr_model import checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fine_tuned")
    parser.add_argument("started_from")
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--training-data", required=True)
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error(f"--share must be in 0 .. 1, not {arguments.share}")
    ours, theirs = checkpoints.load(arguments.fine_tuned), checkpoints.load(arguments.started_from)
    others = theirs.model.state_dict()
    averaged = {
        name: ((1 - arguments.share) * tensor.double() + arguments.share * others[name].double()).to(tensor.dtype)
        for name, tensor in ours.model.state_dict().items()
    }
    ours.model.load_state_dict(averaged)
    metadata = dataclasses.replace(
        ours.metadata, name=arguments.name, training_data=arguments.training_data, licence=arguments.licence
    )
    checkpoints.save(arguments.output, ours.model, metadata)


if __name__ == "__main__":
    main()

"""Measures how well a detector finds generators of a family that was left out of its training.

    python scripts/leave_families_out.py TRAINING VALIDATION --config CONFIG -o RUNS --results RESULTS.json

scripts/make_training_data.py makes TRAINING and VALIDATION. A family is the part of a generator's name before the first
"-". The families are divided into folds. For each fold, a network is trained with CONFIG (a config of npr train) on the
families of the other folds, in a folder below RUNS. A complete run is not trained again. If CONFIG starts from a
checkpoint, that checkpoint must not have seen any of the families.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from npr_model import checkpoints
from npr_model.evaluation.evaluate import collect, evaluate
from npr_model.imaging.perturbations import codec
from npr_model.scoring.scorer import Scorer
from npr_model.training import config
from npr_model.training.loop import Callbacks, Epoch, train
from npr_model.training.run_folder import LAST


def family(generator: str) -> str:
    return generator.partition("-")[0]


def print_epoch(epoch: Epoch) -> None:
    print(epoch.number, epoch.loss, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    generators = sorted(path.name for path in arguments.training.iterdir() if path.is_dir())
    families = sorted({family(name) for name in generators})
    samples = collect([arguments.validation])
    results: dict[str, dict] = {}
    for fold in range(arguments.folds):
        left_out = families[fold :: arguments.folds]
        run = arguments.output / "-".join(left_out)
        kept = tuple(name for name in generators if family(name) not in left_out)
        settings = config.load(arguments.config).changed(folders=(str(arguments.training),), classes=kept)
        if not (run / LAST).exists() or len((run / "history.jsonl").read_text().splitlines()) < settings.epochs:
            train(settings, run, resume=run.exists(), callbacks=Callbacks(on_epoch=print_epoch))
        scorer = Scorer(checkpoints.load(run / LAST))
        unseen = [sample for sample in samples if family(sample.group) in left_out]
        for setting in (None, "jpeg:90"):
            result = evaluate(scorer, unseen, equalise=codec(setting) if setting else None)
            for name, values in result.generators.items():
                row = results.setdefault(name, {"family": family(name), "images": values.fake})
                row["auc_jpeg_90" if setting else "auc"] = values.roc_auc
        print({name: row for name, row in results.items() if row["family"] in left_out}, flush=True)
    epochs = config.load(arguments.config).epochs
    content = {"epochs": epochs, "folds": arguments.folds, "generators": dict(sorted(results.items()))}
    arguments.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

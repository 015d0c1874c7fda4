"""Which grid size and anchor are best: the paper's Table 7, one training for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npr_model import checkpoints
from npr_model.datasets.folders import Sample
from npr_model.errors import InputError, reason
from npr_model.evaluation import published
from npr_model.evaluation.evaluate import evaluate
from npr_model.evaluation.metrics import Metrics
from npr_model.files import write_text
from npr_model.imaging.views import View
from npr_model.reporting.tables import Table, percent
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.training.config import CONFIG, TrainConfig
from npr_model.training.loop import Callbacks, train

GRID_SIZES = (2, 3)
ANCHORS: tuple[int | str, ...] = (0, 1, 2, 3, "mean", "max")  # as in Table 7, where w_1 is anchor 0
RESULT = "evaluation.json"


@dataclass(frozen=True)
class Variant:
    """A grid size and an anchor, as :class:`npr_model.NPRDetector` takes them."""

    grid_size: int
    anchor: int | str

    def __str__(self) -> str:
        return f"grid{self.grid_size}-anchor-{self.anchor}"

    @property
    def paper_name(self) -> str:
        """The paper's name of the anchor: w_1 for 0, mean, max."""
        return self.anchor if isinstance(self.anchor, str) else f"w_{self.anchor + 1}"


@dataclass(frozen=True)
class Outcome:
    """Metrics of a variant on the evaluation images."""

    variant: Variant
    model: str
    generators: dict[str, Metrics]
    mean: Metrics | None


def variants(grid_sizes: Iterable[int] = GRID_SIZES, anchors: Iterable[int | str] = ANCHORS) -> list[Variant]:
    """Return all pairs. Raises InputError for an anchor that a grid size does not have."""
    chosen = [Variant(grid_size, anchor) for grid_size in grid_sizes for anchor in anchors]
    for variant in chosen:
        known = variant.anchor in ("mean", "max") or (
            isinstance(variant.anchor, int) and 0 <= variant.anchor < variant.grid_size**2
        )
        if variant.grid_size < 1 or not known:
            raise InputError(
                f"there is no anchor {variant.anchor} in cells of {variant.grid_size}x{variant.grid_size} pixels: use "
                f"0 to {max(0, variant.grid_size**2 - 1)}, mean or max"
            )
    return chosen


def ablate(
    config: TrainConfig,
    chosen: Sequence[Variant],
    samples: Sequence[Sample],
    folder: Path,
    *,
    on_variant: Callable[[Variant], None] = lambda variant: None,
    on_row: Callable[[Row], None] = lambda row: None,
    callbacks: Callbacks = Callbacks(),
) -> list[Outcome]:
    """Train and evaluate each variant in its own folder below ``folder``.

    Started variants are resumed; finished ones are read. The checkpoint of the last epoch is evaluated, as validation
    must not choose among variants. ``callbacks`` are told of each training. Raises InputError, also for a folder with a
    run of another config.
    """
    if config.detector != "npr":
        raise InputError(f"the detector {config.detector} has no grid size or anchor to vary")
    outcomes = []
    for variant in chosen:
        run = folder / str(variant)
        result = run / RESULT
        on_variant(variant)
        own = config.changed(grid_size=variant.grid_size, anchor=variant.anchor, name=str(variant))
        train(own, run, resume=(run / CONFIG).exists(), callbacks=callbacks)
        loaded = checkpoints.load(run / "last.safetensors")
        if not (outcome := _read(result, variant, loaded.model_id)):
            scorer = Scorer(loaded, view=View.parse(config.view))
            evaluation = evaluate(scorer, samples, threshold=0.0, on_row=on_row)
            outcome = Outcome(variant, loaded.model_id, evaluation.generators, evaluation.mean)
            write_text(result, json.dumps(evaluation.as_dict(), indent=1) + "\n")
        outcomes.append(outcome)
    return outcomes


def table(outcomes: Sequence[Outcome], note: str) -> Table:
    """Return Table 7: for each variant, accuracy and average precision of each generator and their mean.

    The paper's mean on ForenSynths is shown beside them.
    """
    generators = list(outcomes[0].generators)
    columns = ["grid", "anchor"]
    columns += [f"{name}, {what}" for name in (*generators, "mean") for what in ("accuracy", "AP")]
    columns += ["published mean accuracy", "published mean AP"]
    rows = []
    for outcome in outcomes:
        cells = [str(outcome.variant.grid_size), outcome.variant.paper_name]
        for row in (*(outcome.generators[name] for name in generators), outcome.mean):
            cells += [percent(row.accuracy), percent(row.average_precision)] if row else ["-", "-"]
        theirs = published.ablation().get((outcome.variant.grid_size, outcome.variant.paper_name), {})
        mean = theirs.get(published.MEAN)
        cells += [f"{mean.accuracy:.1f}", f"{mean.average_precision:.1f}"] if mean else ["", ""]
        rows.append(tuple(cells))
    return Table("Ablation of grid size and anchor", tuple(columns), tuple(rows), (note,))


def write(outcomes: Sequence[Outcome], note: str, folder: Path) -> list[Path]:
    """Write the table as ablation.md and all digits as ablation.json; return their paths."""
    values = [asdict(outcome) for outcome in outcomes]
    texts = {"ablation.md": table(outcomes, note).markdown(), "ablation.json": json.dumps(values, indent=2) + "\n"}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _read(path: Path, variant: Variant, model: str) -> Outcome | None:
    """Read a saved outcome; None if there is none, or one of another checkpoint."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["model"] != model:
            return None
        generators = {name: Metrics.from_dict(row) for name, row in values["generators"].items()}
        return Outcome(variant, model, generators, Metrics.from_dict(values["mean"]) if values["mean"] else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): remove it") from error

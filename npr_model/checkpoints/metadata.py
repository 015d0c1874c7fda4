"""What a checkpoint says of itself, as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.imaging.views import View
from npr_model.verdicts import Calibration, OperatingPoint

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself. A .pth file has no metadata and gets these defaults: the authors' network."""

    name: str = ""
    detector: str = "npr"
    architecture: Mapping[str, Any] = field(default_factory=dict)  # arguments of the network; {} for its defaults
    view: View = field(default_factory=lambda: View("native"))
    decoder: str = ""
    classes: tuple[str, str] = ("real", "generated")
    training_data: str = ""
    calibration: Calibration | None = None
    licence: str = ""
    training: dict[str, Any] | None = None  # the training's config, without its folders

    def to_json(self) -> str:
        """Return one JSON object: format_version, architecture, and the other fields."""
        values = vars(self) | {"view": str(self.view)}
        if self.calibration is not None:
            values["calibration"] = _as_values(self.calibration)
        architecture = {"detector": values.pop("detector"), **values.pop("architecture")}
        return json.dumps({"format_version": FORMAT_VERSION, "architecture": architecture} | values)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Inverse of :meth:`to_json`. Ignores unknown keys. Raises ValueError, TypeError or KeyError."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        version = values["format_version"]
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(f"format version {version!r}, but this program reads up to {FORMAT_VERSION}")
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        # JSON has no tuples.
        architecture = {n: tuple(v) if isinstance(v, list) else v for n, v in values["architecture"].items()}
        known |= {"detector": architecture.pop("detector", "npr"), "architecture": architecture}
        if "view" in known:
            known["view"] = View.parse(str(known["view"]))
        if "classes" in known:
            known["classes"] = tuple(known["classes"])
        if known.get("calibration") is not None:
            known["calibration"] = _calibration(known["calibration"])
        return cls(**known)

    def network(self, backend: str | None = None, parts: Sequence[DetectorNetwork] = ()) -> DetectorNetwork:
        """Return a network of this architecture with random weights.

        Args:
            backend: For NPR only.
            parts: The networks that it joins.

        Raises:
            InputError: The architecture has unknown arguments, or the detector joins networks of other detectors.
        """
        kind = detector_class(self.detector)
        if unknown := sorted(self.architecture.keys() - set(kind.architecture)):
            raise InputError(f"the detector {self.detector} has no {', '.join(unknown)}")
        found, needed = [part.detector for part in parts], [*kind.joins.values()]
        if len(found) != len(needed) or any(name not in names for name, names in zip(found, needed, strict=True)):
            possible = [" or ".join(names) for names in needed]
            raise InputError(f"the detector {self.detector} joins {_listed(possible)}, not {_listed(found)}")
        network = kind(*parts, **self.architecture)
        network.backend = backend
        return network


def _as_values(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON values."""
    points = [dataclasses.asdict(point) for point in calibration.points]
    conditions = {name: _as_values(own) for name, own in calibration.conditions.items()}
    return vars(calibration) | {"points": points, "conditions": conditions}


def _calibration(values: dict[str, Any]) -> Calibration:
    """Return a calibration from its JSON values."""
    points = tuple(OperatingPoint(**point) for point in values.get("points", ()))
    conditions = {name: _calibration(own) for name, own in values.get("conditions", {}).items()}
    return Calibration(**values | {"points": points, "conditions": conditions})


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) or "nothing"

"""From a logit to a probability and a verdict, by thresholds at fixed false-positive rates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from npr_model.errors import InputError

VERDICTS = ("real", "generated", "uncertain")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold that a share ``rate`` of photographs exceed, found on so many ``photographs``.

    With 95 % confidence not more than ``upper`` of photographs like those exceed it.
    """

    rate: float
    threshold: float
    photographs: int
    upper: float

    @property
    def note(self) -> str:
        """What a verdict by this threshold means."""
        return f"{100 * self.rate:g} % false positives on {self.photographs} photographs"


@dataclass(frozen=True)
class Calibration:
    """How a logit becomes a verdict: generated above ``threshold``, but uncertain from ``low`` to ``high``.

    ``points`` are thresholds at other false-positive rates, for :meth:`at`; the probability that an image was generated
    is sigmoid(logit / ``temperature``).
    """

    threshold: float = 0.0
    low: float | None = None
    high: float | None = None
    note: str = ""
    points: tuple[OperatingPoint, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.band
        if not all(map(math.isfinite, (low, self.threshold, high))) or not low <= self.threshold <= high:
            raise ValueError(f"need finite low <= threshold <= high, got {low}, {self.threshold}, {high}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not all(math.isfinite(point.threshold) for point in self.points):
            raise ValueError("the thresholds of a calibration must be finite")

    @property
    def band(self) -> tuple[float, float]:
        """The uncertain logits, (low, high); empty where they are not given."""
        return (
            self.threshold if self.low is None else float(self.low),
            self.threshold if self.high is None else float(self.high),
        )

    def at(self, rate: float) -> Calibration:
        """The same with the verdict of another of ``points``; the lower edge of the uncertain band stays, but is never
        above the threshold. Raises InputError, listing the rates there are."""
        for point in self.points:
            if math.isclose(point.rate, rate):
                low = None if self.low is None else min(self.low, point.threshold)
                return dataclasses.replace(
                    self, threshold=point.threshold, low=low, high=point.threshold, note=point.note
                )
        rates = ", ".join(f"{point.rate:g}" for point in self.points) or "none; npr calibrate finds some"
        raise InputError(f"the checkpoint has no threshold at the false-positive rate {rate:g}; it has: {rates}")

    def probability(self, logit: float) -> float:
        """That the image was generated, were real and generated ones equally frequent as in training."""
        logit /= self.temperature
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))

    def verdict(self, logit: float) -> str:
        """One of VERDICTS."""
        low, high = self.band
        if low < high and low <= logit <= high:
            return "uncertain"
        return "generated" if logit > self.threshold else "real"

"""From a logit to a probability and a verdict, by thresholds at fixed false-positive rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from npr_model.errors import InputError

DECLARED = "generated (declared)"  # the file says so itself; the logit does not count
UNCERTAIN = "uncertain"
VERDICTS = ("real", "generated", UNCERTAIN, DECLARED)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its false-positive rate.

    Attributes:
        rate: Share of photographs that exceed the threshold.
        threshold: The logit.
        photographs: Number of photographs that it was found on.
        upper: Upper bound of the rate on photographs like these, with 95 % confidence.
    """

    rate: float
    threshold: float
    photographs: int
    upper: float

    @property
    def note(self) -> str:
        """What a verdict by this threshold means, in words."""
        return f"{100 * self.rate:g} % false positives on {self.photographs} photographs"


@dataclass(frozen=True)
class Calibration:
    """How a logit becomes a probability and a verdict.

    Attributes:
        threshold: Larger logits are "generated".
        low, high: Logits from low to high are "uncertain". None: there is no uncertain band.
        note: What the verdicts mean, in words.
        points: Thresholds at other false-positive rates, for :meth:`at`.
        temperature: The probability is sigmoid(logit / temperature).
        conditions: Thresholds for the files of one condition (:mod:`npr_model.imaging.condition`), by its name. The
            others have the thresholds above.
    """

    threshold: float = 0.0
    low: float | None = None
    high: float | None = None
    note: str = ""
    points: tuple[OperatingPoint, ...] = ()
    temperature: float = 1.0
    conditions: Mapping[str, Calibration] = field(default_factory=dict)

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
        """The uncertain logits as (low, high); both are the threshold if there is no band."""
        return (
            self.threshold if self.low is None else float(self.low),
            self.threshold if self.high is None else float(self.high),
        )

    def at(self, rate: float) -> Calibration:
        """Return the calibration with the thresholds of another rate among ``points``.

        A condition that has too few photographs for the rate gets the threshold of all. The lower edge of the uncertain
        band stays, but never above the threshold. Raises InputError, which lists the rates.
        """
        for point in self.points:
            if math.isclose(point.rate, rate):
                low = None if self.low is None else min(self.low, point.threshold)
                with_rate = {
                    name: own.at(rate)
                    for name, own in self.conditions.items()
                    if any(math.isclose(p.rate, rate) for p in own.points)
                }
                return dataclasses.replace(
                    self,
                    threshold=point.threshold,
                    low=low,
                    high=point.threshold,
                    note=point.note,
                    conditions=with_rate,
                )
        rates = ", ".join(f"{point.rate:g}" for point in self.points) or "none; npr calibrate adds some"
        raise InputError(f"the checkpoint has no threshold at the false-positive rate {rate:g}; it has: {rates}")

    def of(self, condition: str | None) -> Calibration:
        """Return the calibration for the files of a condition; None if the condition is unknown."""
        return self if condition is None else self.conditions.get(condition, self)

    def probability(self, logit: float) -> float:
        """Probability that the image was generated, if real and generated images are equally frequent."""
        logit /= self.temperature
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))

    def verdict(self, logit: float) -> str:
        """Return "real", "generated" or "uncertain"."""
        low, high = self.band
        if low < high and low <= logit <= high:
            return UNCERTAIN
        return "generated" if logit > self.threshold else "real"

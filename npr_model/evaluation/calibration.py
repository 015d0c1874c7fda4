"""From logits with known classes to verdicts: thresholds at fixed false-positive rates, and a temperature.

Thresholds are order statistics, as in split conformal prediction (Vovk et al. 2005). For n photographs with sorted
logits s_1 <= ... <= s_n, the threshold for the rate a is s_k with k = ceil((n + 1)(1 - a)); larger logits are called
generated. A new photograph that is exchangeable with the n is then called generated with probability at most 1 - k / (n
+ 1) <= a, for any distribution and with ties. For k > n, that is n < 1 / a - 1, there is no such threshold: the rate is
refused, not extrapolated.

This probability includes the draw of the n photographs. For the n at hand the rate itself is random: for a continuous
distribution it follows Beta(n + 1 - k, k). Its 95 % quantile is stored with the threshold as ``upper``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from npr_model.errors import InputError
from npr_model.verdicts import Calibration, OperatingPoint

RATES = (0.05, 0.01, 0.001)
UNCERTAIN_RATE = 0.2
CONFIDENCE = 0.95
MAX_TEMPERATURE = 100.0


class CalibrationError(InputError):
    """Images or rates that do not allow a calibration."""


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and warnings about what it does not guarantee, one line each."""

    calibration: Calibration
    warnings: tuple[str, ...]


def calibrate(
    reals: Sequence[float],
    fakes: Sequence[float] = (),
    *,
    rates: Sequence[float] = RATES,
    uncertain_rate: float = UNCERTAIN_RATE,
    temperature: float = 1.0,
    conditions: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Calibrated:
    """Calibrate on logits.

    Args:
        reals: Logits of photographs.
        fakes: Logits of generated images, for the temperature.
        rates: False-positive rates. The first one that has enough photographs gives the default verdict.
        uncertain_rate: Logits between this rate's threshold and the verdict's threshold are uncertain.
        temperature: Used if there are no ``fakes``.
        conditions: Those of ``reals`` whose files have the same condition, by its name. Each condition with enough
            photographs for the default rate gets thresholds of its own.

    Raises:
        CalibrationError: A rate is not in 0 .. 1, or there are too few photographs for all rates.
    """
    require_enough(len(reals), rates, uncertain_rate)
    count, points, warnings = len(reals), [], []
    for rate in rates:
        if count < needed(rate):
            warnings.append(
                f"no threshold at {100 * rate:g} %: it needs {needed(rate)} photographs, but there are {count}"
            )
            continue
        points.append(operating_point(reals, rate))
        if points[-1].upper > 2 * rate:
            warnings.append(
                f"the threshold at {100 * rate:g} % is uncertain: with {count} photographs the true rate may be up to "
                f"{100 * points[-1].upper:.2g} % (95 % confidence)"
            )
    if len(fakes):
        temperature = fit_temperature(reals, fakes)
        if temperature >= MAX_TEMPERATURE:
            warnings.append(
                "the logits do not separate generated images from photographs; all probabilities are about 0.5"
            )
        elif temperature <= 1 / MAX_TEMPERATURE:
            warnings.append("the logits separate all images, so the temperature is at its lower limit")
    own = {}
    for name, logits in sorted(conditions.items()):
        if len(logits) >= needed(points[0].rate):
            found = [operating_point(logits, point.rate) for point in points if len(logits) >= needed(point.rate)]
            own[name] = _with_band(found, logits, uncertain_rate, temperature)
        else:
            warnings.append(
                f"{len(logits)} photographs with the condition {name} are too few for a threshold of their own at "
                f"{100 * points[0].rate:g} %"
            )
    calibration = dataclasses.replace(_with_band(points, reals, uncertain_rate, temperature), conditions=own)
    return Calibrated(calibration, tuple(warnings))


def _with_band(
    points: Sequence[OperatingPoint], reals: Sequence[float], uncertain_rate: float, temperature: float
) -> Calibration:
    """Return a calibration whose default rate is that of the first point, with the band below its threshold."""
    first, low = points[0], None
    if len(reals) >= needed(uncertain_rate):
        low = min(operating_point(reals, uncertain_rate).threshold, first.threshold)
    return Calibration(first.threshold, low, first.threshold, first.note, tuple(points), temperature)


def require_enough(count: int, rates: Sequence[float], uncertain_rate: float) -> None:
    """Raise CalibrationError if a rate is not in 0 .. 1, or ``count`` photographs are too few for all rates."""
    for rate in (*rates, uncertain_rate):
        if not 0 < rate < 1:
            raise CalibrationError(f"a false-positive rate must lie between 0 and 1, got {rate:g}")
    least = min(map(needed, rates))
    if count < least:
        given = "1 photograph is" if count == 1 else f"{count} different photographs are"
        raise CalibrationError(f"{given} too few to calibrate; at least {least} are needed")


def needed(rate: float) -> int:
    """Smallest number of photographs for a threshold at ``rate``: ceil(1 / rate) - 1."""
    return math.ceil(1 / Fraction(str(rate))) - 1


def rank(count: int, rate: float) -> int:
    """k = ceil((count + 1)(1 - rate)), counted from 1; more than ``count`` if there are too few.

    Exact for decimal rates.
    """
    return math.ceil((count + 1) * (1 - Fraction(str(rate))))


def operating_point(reals: Sequence[float], rate: float) -> OperatingPoint:
    """Return the threshold that at most ``rate`` of photographs exceed.

    Raises CalibrationError if there are too few photographs.
    """
    count, k = len(reals), rank(len(reals), rate)
    if k > count:
        raise CalibrationError(
            f"{count} photographs are too few for {100 * rate:g} %; at least {needed(rate)} are needed"
        )
    return OperatingPoint(
        rate=float(rate),
        threshold=float(np.sort(np.asarray(reals, float))[k - 1]),
        photographs=count,
        upper=float(beta.ppf(CONFIDENCE, count + 1 - k, k)),
    )


def log_loss(reals: Sequence[float], fakes: Sequence[float], temperature: float) -> float:
    """Mean of the two classes' mean log losses, in nats, so that the classes count equally."""
    losses = np.logaddexp(0, np.asarray(reals) / temperature), np.logaddexp(0, -np.asarray(fakes) / temperature)
    return float(np.mean([loss.mean() for loss in losses]))


def fit_temperature(reals: Sequence[float], fakes: Sequence[float]) -> float:
    """Return the temperature T that minimises the log loss of sigmoid(logit / T).

    It lies between 1 / MAX_TEMPERATURE and MAX_TEMPERATURE. The loss is convex in 1 / T, so the minimum is unique.
    """
    limit = MAX_TEMPERATURE
    reciprocal = minimize_scalar(
        lambda reciprocal: log_loss(reals, fakes, 1 / reciprocal),
        bounds=(1 / limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    ).x
    candidates = (1 / limit, limit, float(reciprocal))  # the bounded search stops just before its bounds
    return 1 / min(candidates, key=lambda reciprocal: log_loss(reals, fakes, 1 / reciprocal))

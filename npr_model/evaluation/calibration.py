"""From the logits of images whose class is known to verdicts: thresholds at fixed false-positive rates, an uncertain
band, and a temperature.

Thresholds are order statistics, as in split conformal prediction (Vovk et al. 2005). Of n photographs with the sorted
logits s_1 <= ... <= s_n, the threshold for the rate a is s_k with k = ceil((n + 1)(1 - a)), and an image is called
generated above it. If a new photograph is exchangeable with the n, it is called generated with a probability of at
most 1 - k / (n + 1) <= a, whatever the distribution and with ties. For k > n, that is n < 1 / a - 1, there is no such
threshold, and the rate is refused rather than extrapolated.

That probability is over the draw of the n photographs, too. For the n at hand the rate is random: with a continuous
distribution it has the law Beta(n + 1 - k, k), whose 95 % quantile is kept beside the threshold as ``upper``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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
    """Images or rates that allow no calibration."""


@dataclass(frozen=True)
class Result:
    """``calibration``, and in ``warnings``, one line each, what it cannot promise."""

    calibration: Calibration
    warnings: tuple[str, ...]


def calibrate(
    reals: Sequence[float],
    fakes: Sequence[float] = (),
    *,
    rates: Sequence[float] = RATES,
    uncertain_rate: float = UNCERTAIN_RATE,
    temperature: float = 1.0,
) -> Result:
    """Calibrate on the logits of photographs and, for the temperature, of generated images; without any it stays
    ``temperature``.

    The first of ``rates`` that the number of photographs allows gives the default verdict. Uncertain is what lies above
    the threshold for ``uncertain_rate`` but not above that of the verdict. Raises CalibrationError.
    """
    require_enough(len(reals), rates, uncertain_rate)
    count, points, warnings = len(reals), [], []
    for rate in rates:
        if count < needed(rate):
            warnings.append(f"no threshold at {100 * rate:g} %: it takes {needed(rate)} photographs, there are {count}")
            continue
        points.append(operating_point(reals, rate))
        if points[-1].upper > 2 * rate:
            warnings.append(
                f"the threshold at {100 * rate:g} % rests on few photographs: with {count} the true rate may be "
                f"{100 * points[-1].upper:.2g} % (95 % confidence)"
            )
    if len(fakes):
        temperature = fit_temperature(reals, fakes)
        if temperature >= MAX_TEMPERATURE:
            warnings.append("the logits do not tell the generated images from the photographs; probabilities are 0.5")
        elif temperature <= 1 / MAX_TEMPERATURE:
            warnings.append("the logits tell all images apart, so that the temperature has no lower limit but our own")
    first = points[0]
    low = None
    if count >= needed(uncertain_rate):
        low = min(operating_point(reals, uncertain_rate).threshold, first.threshold)
    calibration = Calibration(
        threshold=first.threshold,
        low=low,
        high=first.threshold,
        note=first.note,
        points=tuple(points),
        temperature=temperature,
    )
    return Result(calibration, tuple(warnings))


def require_enough(count: int, rates: Sequence[float], uncertain_rate: float) -> None:
    """Raise CalibrationError for a rate outside 0 .. 1, and where ``count`` photographs are too few for all rates."""
    for rate in (*rates, uncertain_rate):
        if not 0 < rate < 1:
            raise CalibrationError(f"a false-positive rate must lie between 0 and 1, got {rate:g}")
    least = min(map(needed, rates))
    if count < least:
        raise CalibrationError(f"{count} photographs are too few to calibrate; at least {least} are needed")


def needed(rate: float) -> int:
    """The least number of photographs for a threshold at ``rate``: ceil(1 / rate) - 1."""
    return math.ceil(1 / Fraction(str(rate))) - 1


def rank(count: int, rate: float) -> int:
    """k = ceil((count + 1)(1 - rate)), from 1; above ``count`` where there are too few. Exact for decimal rates."""
    return math.ceil((count + 1) * (1 - Fraction(str(rate))))


def operating_point(reals: Sequence[float], rate: float) -> OperatingPoint:
    """The threshold that ``rate`` of photographs exceed at most. Raises CalibrationError where they are too few."""
    count, k = len(reals), rank(len(reals), rate)
    if k > count:
        raise CalibrationError(f"{count} photographs are too few for {100 * rate:g} %; it takes {needed(rate)}")
    return OperatingPoint(
        rate=float(rate),
        threshold=float(np.sort(np.asarray(reals, float))[k - 1]),
        photographs=count,
        upper=float(beta.ppf(CONFIDENCE, count + 1 - k, k)),
    )


def log_loss(reals: Sequence[float], fakes: Sequence[float], temperature: float) -> float:
    """Mean of the two classes' mean log losses, in nats: as if real and generated images were equally frequent."""
    losses = np.logaddexp(0, np.asarray(reals) / temperature), np.logaddexp(0, -np.asarray(fakes) / temperature)
    return float(np.mean([loss.mean() for loss in losses]))


def fit_temperature(reals: Sequence[float], fakes: Sequence[float]) -> float:
    """The temperature T of least log loss of sigmoid(logit / T), from 1 / MAX_TEMPERATURE to MAX_TEMPERATURE.

    The loss is convex in 1 / T, so that the minimum found is the only one.
    """
    limit = MAX_TEMPERATURE
    found = minimize_scalar(
        lambda inverse: log_loss(reals, fakes, 1 / inverse),
        bounds=(1 / limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    ).x
    candidates = (1 / limit, limit, float(found))  # the bounded search stops just short of its bounds
    return 1 / min(candidates, key=lambda inverse: log_loss(reals, fakes, 1 / inverse))

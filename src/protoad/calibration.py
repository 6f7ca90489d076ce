"""A threshold from good parts alone, with a promise about how often a good part is rejected (conformal prediction).

Split: scores of good parts that the detector has not learnt from. If parts are exchangeable, a further good part is
rejected with probability at most `false_reject_rate`, whatever the detector and whatever the distribution of its
scores (Vovk et al., Algorithmic Learning in a Random World, 2005). The probability is over the calibration parts, too:
one detector's own rate scatters around it, less so with more parts.

Cross: every part is scored by a detector that learnt from the others, and a new part by all of these detectors. Uses
each part twice; the promise weakens to twice the rate (jackknife+; Barber et al., Annals of Statistics 49, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from protoad.errors import CalibrationError

__all__ = ["Calibration", "Verdict", "calibrate", "needed_parts"]

Method = Literal["split", "cross"]


@dataclass(frozen=True)
class Verdict:
    """What calibration says of one part.

    Attributes:
        p_value: share of good parts that score as high, this one counted among them, in (0, 1].
        reject: whether p_value <= the false reject rate.
    """

    p_value: float
    reject: bool


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out good parts, and the rate of false rejects that was asked for.

    Args:
        scores: of at least one good part, finite.
        false_reject_rate: in (0, 1).
        method: "split": one detector that has seen none of these parts; "cross": score i is that of a detector that
            has seen all parts but i.

    Attributes:
        scores: ascending for "split", in the order given for "cross".

    Raises:
        CalibrationError: for a rate outside (0, 1), no scores, or one that is not finite.
    """

    scores: tuple[float, ...]
    false_reject_rate: float
    method: Method = "split"

    def __post_init__(self) -> None:
        if not 0 < self.false_reject_rate < 1:
            raise CalibrationError(f"false_reject_rate: expected a share in (0, 1), got {self.false_reject_rate}")
        scores = tuple(float(score) for score in self.scores)
        if not scores:
            raise CalibrationError("scores: expected those of at least one good part, got none")
        bad = [score for score in scores if not math.isfinite(score)]
        if bad:
            raise CalibrationError(f"scores: expected finite numbers, got {bad[0]}")
        object.__setattr__(self, "scores", tuple(sorted(scores)) if self.method == "split" else scores)

    @property
    def guaranteed_rate(self) -> float:
        """What the probability of rejecting a good part stays below: the rate, or twice the rate for "cross"."""
        return min(1.0, self.false_reject_rate * (2 if self.method == "cross" else 1))

    @property
    def enough(self) -> bool:
        """Whether there are parts enough for any part to be rejected at this rate."""
        return len(self.scores) >= needed_parts(self.false_reject_rate)

    @property
    def threshold(self) -> float:
        """A part with a score above it is rejected; infinity where there are too few parts.

        For "cross" a summary: each detector has scores of its own, and what decides is the p-value.
        """
        rank = math.ceil((len(self.scores) + 1) * (1 - _exact(self.false_reject_rate)))
        return sorted(self.scores)[rank - 1] if rank <= len(self.scores) else math.inf

    def __call__(self, score: float | Sequence[float]) -> Verdict:
        """Judges a part.

        Args:
            score: of the part; for "cross" its scores by all detectors, in the order of `scores`. NaN is rejected with
                the smallest p-value there is.

        Raises:
            CalibrationError: if "cross" gets another number of scores than it has detectors.
        """
        given = np.atleast_1d(np.asarray(score, dtype=np.float64))
        if given.size != (1 if self.method == "split" else len(self.scores)):
            expected = "one score" if self.method == "split" else f"{len(self.scores)} scores, one of each detector"
            raise CalibrationError(f"score: expected {expected}, got {given.size}")
        as_high = int((np.asarray(self.scores) >= given).sum())
        p_value = Fraction(1 + as_high, len(self.scores) + 1)
        return Verdict(float(p_value), p_value <= _exact(self.false_reject_rate))


def calibrate(
    scores: Sequence[float], *, false_reject_rate: float = 0.05, method: Method = "split", force: bool = False
) -> Calibration:
    """Gives the calibration for scores of held-out good parts; arguments as in `Calibration`.

    Args:
        scores: of held-out good parts.
        false_reject_rate: in (0, 1).
        method: "split" or "cross".
        force: whether to go on with too few parts: the threshold is then infinite, and nothing is rejected.

    Raises:
        CalibrationError: for too few parts (n < 1 / rate - 1), or a bad rate or score.

    Examples:
        >>> calibrated = calibrate(range(19), false_reject_rate=0.05)
        >>> calibrated.threshold, calibrated(17.5), calibrated(18.5)
        (18.0, Verdict(p_value=0.1, reject=False), Verdict(p_value=0.05, reject=True))
    """
    found = Calibration(tuple(scores), false_reject_rate, method)
    if not found.enough and not force:
        count = len(found.scores)
        raise CalibrationError(
            f"{count} held-out good parts can promise no false reject rate below {1 / (count + 1):.1%}; "
            f"{false_reject_rate:.1%} needs {needed_parts(false_reject_rate)}: give more parts or a higher rate"
        )
    return found


def needed_parts(false_reject_rate: float) -> int:
    """Gives the fewest held-out good parts with which a part can be rejected at this rate: 1 / rate - 1, rounded up."""
    return math.ceil(1 / _exact(false_reject_rate)) - 1


def _exact(rate: float) -> Fraction:
    """The decimal that was meant: in binary 0.05 is a little more than a twentieth, and 19 parts would not do."""
    return Fraction(repr(float(rate)))

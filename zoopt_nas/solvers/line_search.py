"""A line search for the strong Wolfe conditions, which is told values and asks for steps.

Source: Moré and Thuente, "Line search algorithms with guaranteed sufficient decrease", ACM
Transactions on Mathematical Software 20, 1994.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Accepted is a step t with φ(t) <= φ(0) + μ t φ'(0) and |φ'(t)| <= η |φ'(0)|.
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MAX_TRIALS = 40
# While no interval holds a minimum, the next step is so many times further from the best one.
_LEAST_GROWTH, _MOST_GROWTH = 1.1, 4.0
# An interval that two trials do not shrink to this part is halved.
_SHRINKAGE = 0.66
# An interval of this width, as a part of the step, has no step left to try.
_LEAST_WIDTH = 1e-14


@dataclass(frozen=True)
class Trial:
    """A step with the value and the slope there."""

    step: float
    value: float
    slope: float

    def less(self, slope: float) -> Trial:
        """Returns the trial of the function from which a line of ``slope`` is subtracted."""
        return Trial(self.step, self.value - slope * self.step, self.slope - slope)


class LineSearch:
    """The search along one direction, from step 0.

    Args:
        value: φ(0).
        slope: φ'(0), negative.
        first: the first step to try.

    Attributes:
        step: the step whose value and slope are wanted; once accepted, that one.
        is_done: whether the last step told was accepted.
        has_failed: whether no step will be found; the best one told is then ``best``.
        best: the best end of the interval.
    """

    def __init__(self, value: float, slope: float, first: float) -> None:
        self._start = Trial(0.0, value, slope)
        self._line = SUFFICIENT_DECREASE * slope
        self.best = self._start
        self._other = self._start
        self._has_interval = False
        self._is_first_stage = True
        self._widths = (math.inf, math.inf)  # of the last two intervals
        self._limit = math.inf  # steps from here on have failed
        self._n_trials = 0
        self.step = first
        self.is_done = False
        self.has_failed = not slope < 0

    def tell(self, value: float, slope: float) -> None:
        """Takes in what was found at ``step``, and sets the next one."""
        self._n_trials += 1
        if not (math.isfinite(value) and math.isfinite(slope)):
            self._limit = self.step
            self._propose(self.best.step + 0.5 * (self.step - self.best.step))
            return
        trial = Trial(self.step, value, slope)
        allowed = self._start.value + self._line * trial.step
        if value <= allowed and abs(slope) <= CURVATURE * -self._start.slope:
            self.is_done = True
            return
        if value <= allowed and slope >= 0:
            self._is_first_stage = False
        # First the function minus its line of sufficient decrease is minimized, as its minimum is
        # sure to be acceptable, then the function itself.
        is_shifted = self._is_first_stage and allowed < value <= self.best.value
        line = self._line if is_shifted else 0.0
        step = self._next(self.best.less(line), self._other.less(line), trial.less(line))
        self._update(trial, line)
        if self._has_interval:
            width = abs(self._other.step - self.best.step)
            if width >= _SHRINKAGE * self._widths[0]:
                step = self.best.step + 0.5 * (self._other.step - self.best.step)
            self._widths = (self._widths[1], width)
        self._propose(step)

    def _propose(self, step: float) -> None:
        if self._has_interval:
            low, high = sorted((self.best.step, self._other.step))
            self.has_failed = high - low <= _LEAST_WIDTH * high
            if not low < step < high:
                step = low + 0.5 * (high - low)
        else:
            self.has_failed = not self.best.step < step < self._limit
        self.has_failed = self.has_failed or self._n_trials >= MAX_TRIALS
        self.step = step

    def _next(self, best: Trial, other: Trial, trial: Trial) -> float:
        """Returns the step that suits the four cases of section 4."""
        cubic, secant = _cubic(best, trial), _secant(best, trial)
        if trial.value > best.value:
            quadratic = _quadratic(best, trial)
            if abs(cubic - best.step) < abs(quadratic - best.step):
                return cubic
            return cubic + (quadratic - cubic) / 2
        if trial.slope * best.slope < 0:
            return max((cubic, secant), key=lambda step: abs(step - trial.step))
        ahead = trial.step - best.step
        longest = trial.step + _MOST_GROWTH * ahead
        if abs(trial.slope) < abs(best.slope):
            if not (math.isfinite(cubic) and (cubic - trial.step) * ahead > 0):
                cubic = longest
            if self._has_interval:
                step = min((cubic, secant), key=lambda step: abs(step - trial.step))
                farthest = trial.step + _SHRINKAGE * (other.step - trial.step)
                return min(step, farthest) if ahead > 0 else max(step, farthest)
            step = max((cubic, secant), key=lambda step: abs(step - trial.step))
            return self._within_growth(step, trial.step, ahead)
        if self._has_interval:
            return _cubic(other, trial)
        return self._within_growth(longest, trial.step, ahead)

    def _within_growth(self, step: float, last: float, ahead: float) -> float:
        step = min(max(step, last + _LEAST_GROWTH * ahead), last + _MOST_GROWTH * ahead)
        return step if step < self._limit else last + 0.5 * (self._limit - last)

    def _update(self, trial: Trial, line: float) -> None:
        best, new = self.best.less(line), trial.less(line)
        if new.value > best.value:
            self._other, self._has_interval = trial, True
            return
        if new.slope * best.slope < 0:
            self._other, self._has_interval = self.best, True
        self.best = trial


def _cubic(a: Trial, b: Trial) -> float:
    """Returns the minimum of the cubic through two trials with their slopes; NaN if it has none."""
    theta = 3 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope
    scale = max(abs(theta), abs(a.slope), abs(b.slope))
    if not 0 < scale < math.inf:
        return math.nan
    square = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
    root = math.copysign(scale * math.sqrt(max(square, 0.0)), b.step - a.step)
    divisor = b.slope - a.slope + 2 * root
    if divisor == 0:
        return math.nan
    return b.step - (b.slope + root - theta) / divisor * (b.step - a.step)


def _quadratic(a: Trial, b: Trial) -> float:
    """Returns the minimum of the parabola through two values and the slope of the first."""
    width = b.step - a.step
    return a.step + a.slope / ((a.value - b.value) / width + a.slope) / 2 * width


def _secant(a: Trial, b: Trial) -> float:
    """Returns the minimum of the parabola with the slopes of two trials; NaN if they are equal."""
    change = a.slope - b.slope
    return b.step + b.slope / change * (b.step - a.step) if change != 0 else math.nan

"""Performance profiles, data profiles and their scores, as OptiProfiler defines them.

The target of a tolerance τ is f_best + τ (f(x0) - f_best), with the best true value that any method
found (Moré and Wild, "Benchmarking derivative-free optimization algorithms", 2009). The work of a
run is the number of its evaluations until the target. A performance profile is the fraction of the
problems that a method solves with at most 2^x times the work of the best one; a data profile, with
at most 2^x - 1 simplex gradients of n + 1 evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from profiles_suite import Progress

TOLERANCES = 10.0 ** -np.arange(1, 11)
# The profiles end at this multiple of the largest ratio that any method needs.
OVERHANG = 1.1


def work(runs: Sequence[Sequence[Progress]], tolerance: float) -> np.ndarray:
    """Return the evaluations until the target, (n_methods, n_runs); inf if it was missed.

    ``runs`` holds, for each method, the same problems in the same order. The target of a start
    without a finite value is any value.
    """
    needed = np.full((len(runs), len(runs[0])), np.inf)
    for j, same in enumerate(zip(*runs, strict=True)):
        first = same[0].first
        best = min([first, *(float(run.values[-1]) for run in same if run.values.size)])
        target = max(tolerance * first + (1 - tolerance) * best, best)
        if not np.isfinite(first):
            target = np.inf
        for i, run in enumerate(same):
            is_hit = run.values <= target
            if is_hit.any():
                needed[i, j] = run.when[int(np.argmax(is_hit))]
    return needed


def performance_ratios(needed: np.ndarray) -> np.ndarray:
    """Return log2 of the work over the least work of a method, (n_methods, n_runs)."""
    best = needed.min(axis=0)
    return np.log2(needed / np.where(np.isfinite(best), best, 1.0))


def simplex_gradients(needed: np.ndarray, dims: np.ndarray) -> np.ndarray:
    """Return log2(1 + work / (n + 1)), (n_methods, n_runs)."""
    return np.log2(1 + needed / (dims + 1))


def end(ratios: np.ndarray) -> float:
    """Return where a profile of these ratios ends."""
    finite = ratios[np.isfinite(ratios)]
    return OVERHANG * max(float(finite.max(initial=0.0)), float(np.finfo(float).eps))


def profile(ratios: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the fraction of the problems with ratios up to ``at``, (n_methods, len(at))."""
    return np.mean(ratios[:, :, None] <= at, axis=1)


def areas(ratios: np.ndarray) -> np.ndarray:
    """Return the area under the profile of each method, over that of the best; (n_methods,)."""
    gaps = np.where(np.isfinite(ratios), end(ratios) - ratios, 0.0).mean(axis=1)
    return gaps / gaps.max() if gaps.max() > 0 else gaps


def scores(runs: Sequence[Sequence[Progress]]) -> np.ndarray:
    """Return the score of each method, (n_methods,): the default ``score_fun`` of OptiProfiler.

    It is the mean, over the tolerances 10^-1 to 10^-10, of the area under the performance profile
    relative to the largest one. So it is 1 for a method that is the best at each tolerance, and
    depends on the others.
    """
    return np.mean([areas(performance_ratios(work(runs, tau))) for tau in TOLERANCES], axis=0)


def solved(runs: Sequence[Sequence[Progress]], tolerance: float) -> np.ndarray:
    """Return the fraction of the problems that each method solves, (n_methods,)."""
    return np.isfinite(work(runs, tolerance)).mean(axis=1)

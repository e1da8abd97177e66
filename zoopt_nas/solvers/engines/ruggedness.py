"""Whether an objective is rugged: how often its values turn along a random line.

Along a line, a smooth objective with a few minima rises and falls a few times. Where it has many
local minima within the scale of a first step, values at a few points turn up and down at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, array_namespace, copy, device
from zoopt_nas.solvers.state import SolverState, within_bounds

# The number of points on each side of the centre. If the values of the first side do not turn, the
# objective counts as smooth, as it does in the end if all turn fewer than MIN_TURNS times. The
# N_PEAKS largest values are left out then, because a smooth objective may have poles. Of
# independent values, 6 never turn with a probability of 0.3 %, and 10 turn fewer than four times
# with one of 6 %.
N_SIDE = 6
MIN_TURNS = 4
N_PEAKS = 2


@dataclass(eq=False)
class LineTest:
    """Points on a line, from the farthest on the second side to the farthest on the first."""

    points: Array  # (2 N_SIDE, dim)
    values: list[float] = field(default_factory=list)  # of the last points, as far as known


def begin(state: SolverState, centre: Array, scales: Array) -> LineTest:
    """Return a test of the line through ``centre`` along a random diagonal, ± ``scales``, (dim,).

    The distances are random, so that they fit no period.
    """
    xp = array_namespace(centre)
    ticks = xp.arange(-N_SIDE, N_SIDE, dtype=centre.dtype, device=device(centre))
    places = (ticks + sampling.uniform(state.rng, 2 * N_SIDE, centre)) / N_SIDE
    way = scales * sampling.rademacher(state.rng, 1, centre)[0]
    return LineTest(within_bounds(state, centre + places[:, None] * way[None, :]))


def side(test: LineTest) -> Array:
    """Return the points of the next side, (N_SIDE, dim)."""
    return copy(test.points[:N_SIDE] if test.values else test.points[N_SIDE:])


def tell(test: LineTest, values: Sequence[float]) -> bool | None:
    """Take in the values of a side; return whether the objective is rugged, or None: not known."""
    is_first = not test.values
    test.values = [*values, *test.values]
    if is_first:
        return None if n_turns(test.values) > 0 else False
    return n_turns(without_peaks(test.values)) >= MIN_TURNS


def without_peaks(values: Sequence[float]) -> list[float]:
    """Return the finite values without the N_PEAKS largest ones."""
    finite = [value for value in values if math.isfinite(value)]
    for _ in range(min(N_PEAKS, len(finite))):
        finite.remove(max(finite))
    return finite


def n_turns(values: Sequence[float]) -> int:
    """Return how often a sequence turns up or down, without failures and equal neighbours."""
    finite = [value for value in values if math.isfinite(value)]
    rises = [after > before for before, after in pairwise(finite) if after != before]
    return sum(before != after for before, after in pairwise(rises))

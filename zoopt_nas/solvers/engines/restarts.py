"""How far restarts spread around their centre."""

from __future__ import annotations

# The spreads of one cycle, in units of the first scales: the scale of a start is a guess, so the
# neighbourhood to search may be larger or smaller.
SPREADS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 8.0)


def spread(n_restarts: int) -> float:
    """Return the standard deviation of an origin; two restarts in a row have the same."""
    return SPREADS[(n_restarts - 1) // 2 % len(SPREADS)]

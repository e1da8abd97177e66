"""Nelder-Mead in a box: from corners, edges and the middle, in boxes of any width."""

import numpy as np
import pytest

from zoopt_nas import Box, minimize


# Per coordinate: the least value is at 0.4 of the width of the box, or beyond its upper bound.
def ends_in_a_box(method, low, high, start, is_inside, dim, maxfev):
    width = high - low
    middle = low + 0.4 * width * np.ones(dim)
    if not is_inside:
        middle[::2] = high + 0.1 * width
    least = ((np.clip(middle, low, high) - middle) ** 2).sum() / width**2
    for seed in range(3):
        result = minimize(
            lambda x: float(((x - middle) ** 2).sum()) / width**2,
            start(seed),
            "nelder_mead",
            bounds=Box(low, high, method),
            maxfev=maxfev,
            rng=seed,
        )
        yield result.fun - least


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "beyond"])
@pytest.mark.parametrize("corner", ["lower", "upper", "mixed", "edge", "middle"])
@pytest.mark.parametrize(("low", "high"), [(-5, 5), (0, 1), (3, 3.001), (-1e3, 1e3)])
@pytest.mark.parametrize("method", ["clip", "reflect"])
def test_nelder_mead_in_a_box_from_anywhere(method, low, high, corner, is_inside):
    def start(seed):
        share = np.random.default_rng(seed).integers(0, 2, 3).astype(float)
        share = {
            "lower": np.zeros(3),
            "upper": np.ones(3),
            "mixed": share,
            "edge": np.array([1.0, 0.5, share[2]]),
            "middle": np.full(3, 0.5),
        }[corner]
        return np.clip(low + share * (high - low), low, high)

    gaps = list(ends_in_a_box(method, low, high, start, is_inside, 3, 800 if high > 100 else 400))
    assert max(gaps) < 1e-3


def test_nelder_mead_keeps_a_fixed_coordinate():
    box = Box([0.0, 0.5, -1.0], [1.0, 0.5, 1.0], "clip")
    middle = np.array([0.3, 0.0, 0.3])
    result = minimize(
        lambda x: float(((x - middle) ** 2).sum()), [1.0, 0.5, 1.0], "nelder_mead",
        bounds=box, maxfev=300, rng=0,
    )  # fmt: skip
    np.testing.assert_allclose(result.x, [0.3, 0.5, 0.3], atol=1e-4)

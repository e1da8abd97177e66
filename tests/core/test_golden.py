"""Where each solver stands after 20 steps from (1, ..., 5) on the sphere function, at seed 0.

A change here is a change of behaviour: intend it, and say so in the changelog. The values are those
of NumPy's PCG64; to print the table anew, run this file as a script.
"""

import numpy as np
import pytest

from zoopt_nas import GLD, MGS, RS
from zoopt_nas.testing import run_steps

SOLVERS = {
    "rs": RS(learning_rate=0.02, smoothing=0.01, n_samples=4),
    "rs-one_point": RS(learning_rate=0.002, smoothing=0.5, n_samples=4, estimator="one_point"),
    "rs-one_pair": RS(learning_rate=0.02, smoothing=0.01, n_samples=1, direction="gaussian"),
    "rs-orthogonal": RS(learning_rate=0.02, smoothing=0.01, n_samples=4, orthogonal=True),
    "mgs-density_free": MGS(sigma=0.025, temperature=0.01, n_samples=4, weighting="density_free"),
    "mgs-exact": MGS(sigma=0.025, temperature=0.01, n_samples=4, weighting="exact"),
    "mgs-fixed_norm": MGS(sigma=0.025, temperature=0.01, n_samples=4, weighting="fixed_norm"),
    "gld-search": GLD(schedule="search", max_radius=1.0, min_radius=1e-3),
    "gld-fast": GLD(max_radius=1.0, schedule="fast", condition_number=4.0, direction="ball"),
    "gld-deterministic": GLD(
        schedule="search", max_radius=1.0, min_radius=1e-3, direction="gaussian", deterministic=True
    ),
}

X_AFTER_20_STEPS = {
    "rs": [0.874017486011, 0.618891678006, 1.31117118091, 1.85227168904, 1.90329044867],
    "rs-one_point": [2.02623772087, 2.645575886, 2.55200440825, 5.56494361904, 2.41533259209],
    "rs-one_pair": [1.56535584953, 0.576918800737, 0.106121452077, 1.77009103676, 1.06133275535],
    "rs-orthogonal": [0.406387745728, 0.814735386931, 1.13462533642, 1.88211059361, 1.99326800604],
    "mgs-density_free": [0.834366986917, 1.77536382964, 2.97699596622, 3.6418364188, 4.58738795308],
    "mgs-exact": [0.826560629604, 1.78256299264, 2.97358566099, 3.63857496085, 4.59237837316],
    "mgs-fixed_norm": [0.837740205259, 1.77613406649, 2.90950064157, 3.68557270614, 4.68509061913],
    "gld-search": [1.21944208239, 0.654999953488, 0.343346835274, 1.51532746692, 3.11585090533],
    "gld-fast": [-0.0774632671047, -0.242316576678, 0.201887521951, 0.198941581391, 0.187780886135],
    "gld-deterministic": [
        1.50540879775,
        1.34951500292,
        0.539192074305,
        2.04754357952,
        2.5810135982,
    ],
}


def after_20_steps(name):
    solver = SOLVERS[name]
    return run_steps(solver, solver.init(np.arange(1.0, 6.0), rng=0), 20)


@pytest.mark.parametrize("name", SOLVERS)
def test_x_after_20_steps(name):
    np.testing.assert_allclose(after_20_steps(name), X_AFTER_20_STEPS[name], rtol=1e-9)


if __name__ == "__main__":
    for name in SOLVERS:
        numbers = ", ".join(f"{x:.12g}" for x in after_20_steps(name))
        print(f'    "{name}": [{numbers}],')  # noqa: T201 (the table, for pasting)

"""What the three weightings of MGS do at the dimensions of architecture search.

A noisy quadratic in 56 (S1, S2, S4) and 196 (DARTS) dimensions stands for the search loss; N = 4,
with and without the guide of Eq. 26 (the noisy negative gradient). Prints the noiseless loss after
200 steps, median over seeds, as a multiple of that of ``density_free``, and the mean N_e.

    python benchmarks/mgs_weightings.py [seeds]
"""

from __future__ import annotations

import statistics
import sys

import numpy as np

from zoopt_nas import MGS
from zoopt_nas.solvers.mgs import WEIGHTINGS

N_STEPS = 200
NOISE = 0.01  # standard deviation of a value; of the guide, relative to each gradient entry


def run(weighting: str, dim: int, guided: bool, seed: int) -> tuple[float, float]:
    """Final noiseless loss, and N_e averaged over the steps."""
    rng = np.random.default_rng(seed)
    curvature = np.geomspace(0.1, 1.0, dim) / dim
    solver = MGS(sigma=0.1, temperature=0.01, n_samples=4, weighting=weighting)
    state = solver.init(rng.standard_normal(dim), rng=seed)

    def loss(x: np.ndarray) -> np.ndarray:
        return 0.5 * (curvature * x**2).sum(axis=-1)

    n_effective = []
    for _ in range(N_STEPS):
        guide = None
        if guided:
            guide = -curvature * state.x * (1 + NOISE * rng.standard_normal(dim))
        points = solver.ask(state, guide=guide)
        solver.tell(state, points, loss(points) + NOISE * rng.standard_normal(len(points)))
        n_effective.append(float(state.metrics["n_effective"]))
    return float(loss(state.x)), statistics.mean(n_effective)


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    for dim in (56, 196):
        for guided in (False, True):
            runs = {w: [run(w, dim, guided, seed) for seed in seeds] for w in WEIGHTINGS}
            base = statistics.median(loss for loss, _ in runs["density_free"])
            for weighting, ends in runs.items():
                ratio = statistics.median(loss for loss, _ in ends) / base
                n_effective = statistics.mean(n for _, n in ends)
                print(
                    f"dim {dim:3d}, guide {'yes' if guided else 'no ':3s}, {weighting:12s}: "
                    f"loss {ratio:5.2f} x, N_e {n_effective:.2f}"
                )


if __name__ == "__main__":
    main()

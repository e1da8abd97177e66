"""How well a search in NAS-Bench-201 ranks cells: its values against the true accuracy.

    OMP_NUM_THREADS=1 python benchmarks/cell_ranking.py TABLE RUN [RUN ...] [--cells 200]

RUN is the folder of a search on paths. With fresh weights the cells are those that the search has
evaluated. With shared weights they are random cells, scored with the weights of the last
checkpoint on the validation images. The script prints Spearman's rank correlation with the true
CIFAR-10 accuracy over all cells and over those above 92 %, and the true accuracy of the cell that
ranks first, of the ten that do, and of the best one there is.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from scipy.stats import spearmanr

from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.networks.space import Path
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.score import score_batches, value_of
from zoopt_nas.nas.settings.config import FRESH, MIXED
from zoopt_nas.nas.tabular.table import TESTS, CellTable

GOOD = 92.0


def trained_cells(run: Snapshot) -> dict[Path, float]:
    """Return the values of the cells that a search with fresh weights has evaluated."""
    cells = run.own_state()["objective"]["known"]
    return {tuple(path): float(value) for path, value, *_ in cells}


def random_cells(run: Snapshot, n: int) -> dict[Path, float]:
    """Return the values of random cells with the weights of the supernet."""
    space = run.supernet.space
    (draw,) = run.draws(1, n_train=0, n_val=None, noise_seed=0)
    alphas = torch.randn(n, space.dim, generator=torch.Generator().manual_seed(0))
    paths = {space.path(space.discretize(alpha)) for alpha in alphas}
    with torch.no_grad():
        return {
            path: float(value_of(run.config.score, score_batches(run.supernet, path, draw.val)))
            for path in sorted(paths)
        }


def correlation(values: list[float], true: list[float]) -> str:
    """Return Spearman's rank correlation; a low value is a good cell."""
    if len(values) < 3:
        return "-"
    return f"{spearmanr([-value for value in values], true).statistic:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--cells", type=int, default=200)
    args = parser.parse_args()
    table = CellTable.load(args.table)
    print("| run | cells | correlation | above 92 % | first | mean of ten | best |")
    print("|---" * 7 + "|")
    for name in args.runs:
        run = Snapshot(RunFolder.open(name))
        if run.config.paths == MIXED:
            raise SystemExit(f"{name} must be a search on paths")
        is_fresh = run.config.weights == FRESH
        values = trained_cells(run) if is_fresh else random_cells(run, args.cells)
        true = {path: table.accuracy(path, TESTS[0]) for path in values}
        order = sorted(values, key=values.__getitem__)
        good = [path for path in order if true[path] > GOOD]
        cells = [len(order)]
        rho = [
            correlation([values[p] for p in part], [true[p] for p in part])
            for part in (order, good)
        ]
        tops = [true[order[0]], statistics.fmean(true[p] for p in order[:10]), max(true.values())]
        print("| " + " | ".join([name, *map(str, cells), *rho, *(f"{t:.2f}" for t in tops)]) + " |")


if __name__ == "__main__":
    main()

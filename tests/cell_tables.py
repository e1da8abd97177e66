"""Small tables in the form of NAS-Bench-201, whose best cell is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zoopt_nas.nas.networks.nasbench201_cell import CELL_OPERATIONS as OPERATIONS
from zoopt_nas.nas.tabular.table import (
    COLUMNS,
    N_CELLS,
    PLACES,
    TESTS,
    CellTable,
    cell_of,
    published_string,
)

HEADER = ",".join(("arch", *COLUMNS))
# A value for each operation of each edge: whole numbers, so that sums are exact. The best operation
# differs from edge to edge; a step at one edge has one effect, so there is one local optimum.
GAINS = np.array([[(3 * op + edge) % 5 for op in range(5)] for edge in range(6)])
BEST_CELL = tuple(int(op) for op in GAINS.argmax(axis=1))
SIGNAL = 40.0 + GAINS[np.arange(6), np.arange(N_CELLS)[:, None] // PLACES % len(OPERATIONS)].sum(
    axis=1
)


def separable_values() -> np.ndarray:
    """All columns, (15625, 6): signals are ``SIGNAL``; the test accuracies are 10, 20, 30 more."""
    shifts = [10.0 * (1 + TESTS.index(name)) if name in TESTS else 0.0 for name in COLUMNS]
    return SIGNAL[:, None] + np.array(shifts)


def separable_table() -> CellTable:
    return CellTable(separable_values())


def write_table(path: Path, cells: Iterable[int] = range(N_CELLS)) -> Path:
    """Write the rows of some cells of the separable table."""
    values = separable_values()
    rows = [",".join((published_string(cell_of(n)), *map(str, values[n].tolist()))) for n in cells]
    path.write_text("\n".join((HEADER, *rows)) + "\n")
    return path

"""The table of NAS-Bench-201: every cell of its space with the accuracies of its network.

Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
Search", ICLR 2020, arXiv 2001.00326.

A cell is a tuple of one operation index for each edge, in the order of ``EDGES``. Its number is the
tuple read in base 5, so that all cells have the numbers 0 to 15,624.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoopt_nas.errors import DataError, InvalidValueError, MissingDataError, UnknownNameError
from zoopt_nas.nas.networks.nasbench201_cell import CELL_OPERATIONS as OPERATIONS
from zoopt_nas.nas.networks.nasbench201_cell import EDGES, FORM, format_cell, whole_cell

N_CELLS = len(OPERATIONS) ** len(EDGES)
# The value of each edge's operation in the number of a cell.
PLACES = len(OPERATIONS) ** np.arange(len(EDGES))[::-1]

TESTS = ("cifar10_test_200ep", "cifar100_test_200ep", "imagenet16_test_200ep")
SIGNALS = ("cifar10_valid_12ep", "cifar100_valid_12ep", "imagenet16_valid_12ep")
COLUMNS = TESTS + SIGNALS
# The test accuracies in the metrics of a search.
TRUE_ACCURACIES = ("true_cifar10", "true_cifar100", "true_imagenet16")

Cell = tuple[int, ...]

_INDEX = {name: i for i, name in enumerate(OPERATIONS)}


def parse_cell(text: str) -> Cell:
    """Return the cell of a published string such as ``|none~0|+|none~0|none~1|+|...|``.

    Raises:
        InvalidValueError: the string has another form.
        UnknownNameError: an operation is unknown.
    """
    names = whole_cell(text)
    if names is None:
        raise InvalidValueError(f"a cell must read {FORM}, got {text!r}")
    try:
        return tuple(_INDEX[name] for name in names)
    except KeyError as error:
        raise UnknownNameError("operation", error.args[0], OPERATIONS) from None


def published_string(cell: Sequence[int]) -> str:
    """Return the published string of a cell.

    Raises:
        InvalidValueError: it is not a tuple of six operation indices.
    """
    return format_cell([OPERATIONS[op] for op in check_cell(cell)])


def check_cell(cell: Sequence[int]) -> Cell:
    """Return the cell if it has six operation indices.

    Raises:
        InvalidValueError: it does not.
    """
    if len(cell) != len(EDGES) or not all(op in range(len(OPERATIONS)) for op in cell):
        raise InvalidValueError(
            f"a cell must have {len(EDGES)} operation indices from 0 to {len(OPERATIONS) - 1}, "
            f"got {tuple(cell)}"
        )
    return tuple(int(op) for op in cell)


def number_of(cell: Sequence[int]) -> int:
    """Return the number of a cell."""
    return _read_in_base(check_cell(cell))


def _read_in_base(cell: Cell) -> int:
    number = 0
    for operation in cell:
        number = number * len(OPERATIONS) + operation
    return number


def cell_of(number: int) -> Cell:
    """Return the cell with a number from 0 to 15,624."""
    return tuple(int(op) for op in number // PLACES % len(OPERATIONS))


class CellTable:
    """Accuracies of the cells of NAS-Bench-201, in percent; a table may lack cells.

    Args:
        values: (15625, 6), by the number of the cell and in the order of ``COLUMNS``; NaN in the
            rows of missing cells.
        name: what error messages call the table.
    """

    def __init__(self, values: np.ndarray, name: str = "the table") -> None:
        if values.shape != (N_CELLS, len(COLUMNS)):
            raise InvalidValueError(
                f"values must have the shape {(N_CELLS, len(COLUMNS))}, got {values.shape}"
            )
        self._values = values
        self._has_cell = ~np.isnan(values).any(axis=1)
        self.name = name

    @classmethod
    def load(cls, path: str | Path) -> CellTable:
        """Read a CSV file with the column ``arch`` and ``COLUMNS``; other columns are ignored.

        Raises:
            DataError: the file is malformed; the message has the line.
            MissingDataError: the file does not exist or cannot be read.
        """
        rows: dict[int, list[float]] = {}
        lines: dict[int, int] = {}
        for line, number, row in _rows(Path(path)):
            if number in rows:
                raise DataError(f"{path}, line {line} repeats the cell of line {lines[number]}")
            rows[number], lines[number] = row, line
        if not rows:
            raise DataError(f"{path} has no cell below its header")
        values = np.full((N_CELLS, len(COLUMNS)), np.nan)
        values[list(rows)] = list(rows.values())
        return cls(values, str(path))

    def __len__(self) -> int:
        return int(self._has_cell.sum())

    def __contains__(self, arch: str | Sequence[int]) -> bool:
        return bool(self._has_cell[_number(arch)])

    def accuracy(self, arch: str | Sequence[int], column: str) -> float:
        """Return the accuracy of a cell in percent.

        Args:
            arch: the published string, or six operation indices.
            column: one of ``COLUMNS``.

        Raises:
            DataError: the table lacks the cell.
            InvalidValueError: ``arch`` is no cell.
            UnknownNameError: an operation or the column is unknown.
        """
        number = _number(arch)
        value = float(self._values[number, _column_index(column)])
        if math.isnan(value):
            raise DataError(f"{self.name} has no cell {published_string(cell_of(number))}")
        return value

    def true_accuracies(self, arch: str | Sequence[int]) -> dict[str, float]:
        """Return the test accuracies of a cell as fractions; empty if the table lacks it.

        The keys are ``TRUE_ACCURACIES``.
        """
        if arch not in self:
            return {}
        pairs = zip(TRUE_ACCURACIES, TESTS, strict=True)
        return {name: self.accuracy(arch, column) / 100 for name, column in pairs}

    def column(self, name: str) -> np.ndarray:
        """Return the accuracies of all cells, (15625,), by number; read-only.

        Raises:
            DataError: the table lacks a cell.
            UnknownNameError: the column is unknown.
        """
        column = self._values[:, _column_index(name)].copy()
        missing = np.flatnonzero(np.isnan(column))
        if len(missing):
            raise DataError(
                f"{self.name} lacks {len(missing)} of {N_CELLS} cells, first "
                f"{published_string(cell_of(missing[0]))}; a benchmark needs all of them"
            )
        column.flags.writeable = False
        return column


def _number(arch: str | Sequence[int]) -> int:
    return number_of(parse_cell(arch) if isinstance(arch, str) else arch)


def _column_index(name: str) -> int:
    if name not in COLUMNS:
        raise UnknownNameError("column", name, COLUMNS)
    return COLUMNS.index(name)


def _rows(path: Path) -> Iterator[tuple[int, int, list[float]]]:
    """Yield the line, the number of the cell and its accuracies, for each row of a file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{path} is empty")
            missing = [name for name in ("arch", *COLUMNS) if name not in header]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}")
            places = [header.index(name) for name in COLUMNS]
            arch = header.index("arch")
            for row in reader:
                if row:
                    where = f"{path}, line {reader.line_num}"
                    if len(row) != len(header):
                        raise DataError(f"{where}: {len(row)} fields, the header has {len(header)}")
                    numbers = [_accuracy(row[place], where) for place in places]
                    yield reader.line_num, _number_in_file(row[arch], where), numbers
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no table {path}") from error
    except OSError as error:
        raise MissingDataError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error


def _number_in_file(text: str, where: str) -> int:
    try:
        return _read_in_base(parse_cell(text))
    except (InvalidValueError, UnknownNameError) as error:
        raise DataError(f"{where}: {error}") from error


def _accuracy(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise DataError(f"{where}: an accuracy must be a number from 0 to 100, got {text!r}")
    return value

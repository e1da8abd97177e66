"""Put measured results beside the published figures that they reproduce."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from zoopt_nas.nas.data.datasets import DATASETS
from zoopt_nas.nas.reports.collect import NOT_A_DIFFERENCE, Collection, Group
from zoopt_nas.nas.reports.published import (
    NASBENCH201_DATASETS,
    TABLES,
    TEST_ERROR,
    Line,
    PublishedTable,
)
from zoopt_nas.nas.settings.defaults import RDARTS_SIZES
from zoopt_nas.nas.settings.methods import ZERO_ORDER, kind_of
from zoopt_nas.solvers import SOLVERS, make_solver

NOTHING = "–"
FULL_SIZE = "as published"
_SDARTS_SIZE = (20, 36)
_PAPER = {"n_samples": 4, "inner_steps": 10}  # N and M where a table is not about them
_N_SHOWN = 3  # settings that tell two groups of one method apart


class Cell(NamedTuple):
    """The text of a cell, its value for sorting, and the group whose details it links to."""

    text: str
    value: float | str
    group: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of a report; ``is_measured`` says for each row whether it has a measured number."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_measured: tuple[bool, ...] = field(repr=False)

    @property
    def n_measured(self) -> int:
        """The number of rows with a measured number."""
        return sum(self.is_measured)

    def only_measured(self) -> Table:
        """Return the table without the rows that have no measured number."""
        pairs = zip(self.rows, self.is_measured, strict=True)
        rows = tuple(row for row, is_measured in pairs if is_measured)
        return replace(self, rows=rows, is_measured=(True,) * len(rows))


def make_tables(found: Collection) -> list[Table]:
    """Return the published tables with what was measured, and one of all other results."""
    names = name_groups(found.groups)
    tables, placed = [], set()
    for published in TABLES:
        table, groups = _compare(published, found.groups, names)
        tables.append(table)
        placed |= groups
    others = [group for group in found.groups if group.number not in placed]
    return [*tables, _others(others, names)] if others else tables


def text_cell(text: str) -> Cell:
    """Return a cell that is sorted by its number if it begins with one, otherwise by its text."""
    try:
        return Cell(text, float(text.partition(" ")[0]))
    except ValueError:
        return Cell(text, text)


def name_groups(groups: Sequence[Group]) -> dict[int, str]:
    """Return the method of each group, with the settings in which groups of one method differ."""
    names = {}
    for group in groups:
        search = group.search
        if search is None:
            names[group.number] = group.training.genotype if group.training else NOTHING
            continue
        alike = [
            other.search
            for other in groups
            if other.search is not None
            and (other.search.algo, other.search.space) == (search.algo, search.space)
        ]
        different = [
            f"{name} {value}"
            for name, value in vars(search).items()
            if name not in {"dataset", *NOT_A_DIFFERENCE}
            and any(getattr(other, name) != value for other in alike)
        ]
        more = [f"{len(different) - _N_SHOWN} more"] if len(different) > _N_SHOWN else []
        names[group.number] = ", ".join([search.algo, *different[:_N_SHOWN], *more])
    return names


def dataset_of(name: str) -> str:
    """Return the data set that a name stands for: ``cifar10`` also for ``folder/cifar10.npz``."""
    return name if name in DATASETS else Path(name).stem


def mean_and_std(values: Sequence[float], unit: float, digits: int) -> str:
    """Return ``mean ± std`` with n - 1, or the mean alone for one value, times ``unit``."""
    mean = f"{unit * statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {unit * statistics.stdev(values):.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit that is not longer than it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


_MEASURED = (
    "method", "measured mean ± std", "best", "n", "parameters (M)", "search time", "seeds", "size",
    "hardware", "details",
)  # fmt: skip


def _compare(
    published: PublishedTable, groups: Sequence[Group], names: dict[int, str]
) -> tuple[Table, set[int]]:
    """Return a table, and the numbers of the groups in it."""
    rows: list[tuple[Cell, ...]] = []
    is_measured: list[bool] = []
    placed: set[int] = set()
    for line in published.lines:
        head = tuple(map(text_cell, (*line.labels, line.figure, *line.others)))
        there = [group for group in groups if _measures(group, published, line)]
        for group in there:
            rows.append(head + _measured(group, _metric(published, line), names))
            is_measured.append(True)
        if not there:
            rows.append(head + (Cell(NOTHING, ""),) * len(_MEASURED))
            is_measured.append(False)
        placed |= {group.number for group in there}
    if published.metric != TEST_ERROR:
        for dataset, group in _unpublished(groups, placed):
            head = (text_cell(dataset), *(Cell(NOTHING, ""),) * 2)
            rows.append(head + _measured(group, f"true_{dataset}", names))
            is_measured.append(True)
            placed = placed | {group.number}
        order = sorted(range(len(rows)), key=lambda i: NASBENCH201_DATASETS.index(rows[i][0].text))
        rows, is_measured = [rows[i] for i in order], [is_measured[i] for i in order]
    columns = (*published.columns, published.figure, *published.others, *_MEASURED)
    table = Table(
        published.key, published.title, published.note, columns, tuple(rows), tuple(is_measured)
    )
    return table, placed


def _unpublished(groups: Sequence[Group], placed: set[int]) -> Iterator[tuple[str, Group]]:
    """Yield the groups with true accuracies whose method has no published figure."""
    for dataset in NASBENCH201_DATASETS:
        for group in groups:
            if group.number not in placed and _has(group, f"true_{dataset}"):
                yield dataset, group


def _metric(published: PublishedTable, line: Line) -> str:
    return TEST_ERROR if published.metric == TEST_ERROR else f"true_{line.dataset}"


def _has(group: Group, metric: str) -> bool:
    return all(metric in result.numbers for result in group.results)


def _measures(group: Group, published: PublishedTable, line: Line) -> bool:
    """Whether a group measures what a line has published, at any size."""
    search, training = group.search, group.training
    if search is None or not _has(group, _metric(published, line)):
        return False
    if (search.space, search.algo in line.methods) != (line.space, True):
        return False
    if published.metric != TEST_ERROR:
        return True
    if training is None or dataset_of(training.dataset) != line.dataset:
        return False
    return _has_values(group, published, line) and _has_size(group, published, line)


def _has_values(group: Group, published: PublishedTable, line: Line) -> bool:
    """Whether N and M are those of a line; a sweep over one of them is no part of other tables."""
    for name, usual in _PAPER.items():
        value = _value(group, name)
        if name == published.varies:
            if value != line.value:
                return False
        elif name in group.varied and value != usual:
            return False
    # A table over N or M compares runs that differ in nothing else.
    others = [name for name in _PAPER if name != published.varies]
    if published.varies is None or published.varies in group.varied:
        return True
    return all(_value(group, name) == _PAPER[name] for name in others)


def _value(group: Group, name: str) -> int | None:
    """Return N or M of a zero-order search; None if the method has no such number."""
    search = group.search
    if search is None or kind_of(search.algo) != ZERO_ORDER:
        return None
    if name == "inner_steps":
        return search.inner_steps
    if search.algo not in SOLVERS:
        return None
    n: int | None = getattr(make_solver(search.algo, dict(search.solver)), "n_samples", None)
    return n


def _has_size(group: Group, published: PublishedTable, line: Line) -> bool:
    """Whether the network may belong to the protocol of a table.

    A network of the size of another protocol does not; one of any other size is a reduced one.
    """
    training = group.training
    if training is None or published.protocol not in ("rdarts", "sdarts"):
        return True
    sizes = {"rdarts": RDARTS_SIZES[line.dataset][line.space], "sdarts": _SDARTS_SIZE}
    size = training.n_cells, training.init_channels
    return size == sizes[published.protocol] or size not in sizes.values()


def _measured(group: Group, metric: str, names: dict[int, str]) -> tuple[Cell, ...]:
    """Return the cells of a group."""
    values = [result.numbers[metric] for result in group.results]
    best = min(values) if metric == TEST_ERROR else max(values)
    n = len(values)
    return (
        text_cell(names[group.number]),
        Cell(mean_and_std(values, 100, 2), statistics.fmean(values)),
        Cell(f"{100 * best:.2f}", best),
        Cell(str(n), n),
        _mean(group, "n_parameters", 1e-6),
        _time(group),
        Cell(", ".join(str(result.seed) for result in group.results), group.results[0].seed),
        text_cell("; ".join(group.size) or FULL_SIZE),
        text_cell("; ".join(group.machines)),
        Cell(f"run set {group.number}", group.number, group.number),
    )


def _mean(group: Group, name: str, unit: float) -> Cell:
    if not _has(group, name):
        return Cell(NOTHING, "")
    values = [result.numbers[name] for result in group.results]
    return Cell(mean_and_std(values, unit, 2), statistics.fmean(values))


def _time(group: Group) -> Cell:
    if not _has(group, "seconds"):
        return Cell(NOTHING, "")
    mean = statistics.fmean(result.numbers["seconds"] for result in group.results)
    return Cell(duration(mean), mean)


def _others(groups: Sequence[Group], names: dict[int, str]) -> Table:
    """Return the table of results that reproduce no published figure."""
    rows = []
    for group in groups:
        config = group.configs[-1]
        space = group.search.space if group.search else NOTHING
        head = (text_cell(dataset_of(config.dataset)), text_cell(space))
        if _has(group, TEST_ERROR):
            rows.append((*head, *_measured(group, TEST_ERROR, names)))
        else:  # a search alone: only its time and its skip connections are results
            method, seeds = text_cell(names[group.number]), _measured(group, "seconds", names)[-4:]
            skips = _mean(group, "skip_connections", 1.0)
            blank = Cell(NOTHING, "")
            n = Cell(str(len(group.results)), len(group.results))
            if skips.text != NOTHING:
                skips = Cell(f"{skips.text} skip connections", skips.value)
            rows.append((*head, method, skips, blank, n, blank, _time(group), *seeds))
    return Table(
        "others",
        "Other results",
        "Results that no published figure above describes: the test error in percent of a "
        "retraining, and the skip connections of a search that was not retrained.",
        ("data set", "space", *_MEASURED),
        tuple(rows),
        (True,) * len(rows),
    )

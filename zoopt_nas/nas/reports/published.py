"""The published figures that a report compares with: the tables of ZARTS, and of NAS-Bench-201.

Sources: ZARTS (Wang et al., 2022), Tables 2 to 7; its Tables 2 and 7 take other methods from
R-DARTS and SmoothDARTS. NAS-Bench-201: Dong and Yang (ICLR 2020) and the papers of the methods,
test accuracy after 200 epochs; ZO-* and ReLIZO from Table 2 of ReLIZO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_CIFAR10, _CIFAR100 = "cifar10", "cifar100"
TEST_ERROR = "test_error"
S1_TO_S4 = ("s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class Line:
    """One published figure, and which runs measure the same.

    Attributes:
        labels: the first columns of the table.
        figure: as printed, in percent.
        dataset: of the retraining; in NAS-Bench-201, of the table's accuracy.
        space: of the search.
        methods: names of the methods here that are this one; empty if there is none.
        value: of the varied setting, in a table over one.
        others: further published columns, such as parameters.
    """

    labels: tuple[str, ...]
    figure: str
    dataset: str
    space: str
    methods: tuple[str, ...] = ()
    value: int | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedTable:
    """A table with its lines.

    Attributes:
        key: identifies the table.
        title: its heading.
        note: how its figures came about.
        columns: the names of ``Line.labels``.
        figure: the name of the column of the figure.
        lines: in the published order.
        metric: the measured number, ``test_error`` or ``true_<dataset>``.
        others: the names of ``Line.others``.
        varies: the setting that the table is about.
        protocol: of the retraining, where other tables have the same data, space and method.
    """

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    figure: str
    lines: tuple[Line, ...] = field(repr=False)
    metric: str = TEST_ERROR
    others: tuple[str, ...] = ()
    varies: str | None = None
    protocol: str | None = None


def _rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each line, which ``|`` separates."""
    for line in text.strip().splitlines():
        yield [cell.strip() for cell in line.split("|")]


# Published name to methods here; DARTS may be of first or second order.
_TABLE2_METHODS = {
    "DARTS": ("darts1", "darts2"), "R-DARTS (DP)": ("dp",), "R-DARTS (L2)": ("l2",),
    "DARTS-ES": ("es",), "DARTS-ADA": ("ada",),
    "ZARTS-RS": ("rs",), "ZARTS-MGS": ("mgs",), "ZARTS-GLD": ("gld",),
}  # fmt: skip
_TABLE2 = """
cifar10 |s1|3.84 |3.11 |2.78 |3.01 |3.10 |2.83 |2.65 |2.50
cifar10 |s2|4.85 |3.48 |3.31 |3.26 |3.35 |3.35 |3.24 |3.08
cifar10 |s3|3.34 |2.93 |2.51 |2.74 |2.59 |2.59 |2.56 |2.56
cifar10 |s4|7.20 |3.58 |3.56 |3.71 |4.84 |4.90 |3.70 |3.52
cifar100|s1|29.46|25.93|24.25|28.37|24.03|23.64|23.16|23.33
cifar100|s2|26.05|22.30|22.24|23.25|23.52|21.54|20.91|21.13
cifar100|s3|28.90|22.36|23.99|23.73|23.37|22.62|22.33|21.90
cifar100|s4|22.85|22.18|21.94|21.26|23.20|23.33|21.31|21.00
svhn    |s1|4.58 |2.55 |4.79 |2.72 |2.53 |2.40 |2.51 |2.48
svhn    |s2|3.53 |2.52 |2.51 |2.60 |2.54 |2.52 |2.45 |2.48
svhn    |s3|3.41 |2.49 |2.48 |2.50 |2.50 |2.41 |2.52 |2.44
svhn    |s4|3.05 |2.61 |2.50 |2.51 |2.46 |2.59 |2.48 |2.53
"""
_TABLE7_METHODS = {
    "PC-DARTS": ("pc",), "SDARTS-RS": ("sdarts_rs",), "SDARTS-ADV": ("sdarts_adv",),
    "ZARTS, best": ("mgs",), "ZARTS, average": ("mgs",),
}  # fmt: skip
_TABLE7 = """
cifar10 |s1|3.11 |2.78 |2.73 |2.65 |2.79 ± 0.14
cifar10 |s2|3.02 |2.75 |2.65 |2.39 |2.65 ± 0.17
cifar10 |s3|2.51 |2.53 |2.49 |2.64 |2.74 ± 0.10
cifar10 |s4|3.02 |2.93 |2.87 |2.74 |2.99 ± 0.21
cifar100|s1|18.87|17.02|16.88|17.62|18.20 ± 0.48
cifar100|s2|18.23|17.56|17.24|16.41|17.35 ± 0.75
cifar100|s3|18.05|17.73|17.12|17.03|17.72 ± 0.46
cifar100|s4|17.16|17.17|15.46|16.57|17.33 ± 0.73
svhn    |s1|2.28 |2.26 |2.16 |2.13 |2.17 ± 0.03
svhn    |s2|2.39 |2.37 |2.07 |2.06 |2.10 ± 0.03
svhn    |s3|2.27 |2.21 |2.05 |2.20 |2.25 ± 0.05
svhn    |s4|2.37 |2.35 |1.98 |2.04 |2.20 ± 0.11
"""
# Statistic, data set, name, methods here, parameters (M), error, GPU days.
_TABLE3 = """
best   |cifar10 |DARTS (1st)    |darts1       |3.3|3.00|0.4
best   |cifar10 |DARTS (2nd)    |darts2       |3.4|2.76|1.0
best   |cifar10 |P-DARTS        |p_darts      |3.4|2.50|0.3
best   |cifar10 |GDAS           |gdas         |3.4|2.93|0.2
best   |cifar10 |ZARTS          |mgs          |3.5|2.46|1.0
average|cifar10 |DARTS (1st)    |darts1       |-  |3.38 ± 0.23|0.4
average|cifar10 |MergeNAS       |merge_nas    |2.9|2.68 ± 0.01|0.6
average|cifar10 |SGAS (Cri. 2)  |sgas2        |3.9|2.67 ± 0.21|0.3
average|cifar10 |R-DARTS        |dp l2 es ada |-  |2.95 ± 0.21|1.6
average|cifar10 |SDARTS-ADV     |sdarts_adv   |3.3|2.61 ± 0.02|1.3
average|cifar10 |Amended-DARTS  |amended_darts|3.3|2.71 ± 0.09|1.7
average|cifar10 |ZARTS          |mgs          |3.7 ± 0.3|2.54 ± 0.07|1.0
best   |cifar100|AmoebaNet      |             |3.1|18.93|3150
best   |cifar100|PNAS           |             |3.2|19.53|150
best   |cifar100|ENAS           |             |4.6|19.43|0.45
best   |cifar100|P-DARTS        |p_darts      |3.6|17.49|0.3
best   |cifar100|GDAS           |gdas         |3.4|18.38|0.2
best   |cifar100|ROME           |rome         |4.4|17.33|0.3
best   |cifar100|ZARTS          |mgs          |4.0|15.46|1.0
average|cifar100|DARTS          |darts1 darts2|-  |20.58 ± 0.44|0.4
average|cifar100|R-DARTS        |dp l2 es ada |-  |18.01 ± 0.26|1.6
average|cifar100|ROME           |rome         |4.4|17.41 ± 0.12|0.3
average|cifar100|ZARTS          |mgs          |4.1 ± 0.13|16.29 ± 0.53|1.0
"""
# Name, methods here, multiply-adds (M), parameters (M), error, GPU days.
_TABLE4 = """
AmoebaNet-A       |             |555|5.1|25.5|3150
NASNet-A          |             |564|5.3|26.0|1800
PNAS              |             |588|5.1|25.8|225
MdeNAS            |             |-  |6.1|25.5|0.16
DARTS (2nd)       |darts2       |574|4.7|26.7|1.0
P-DARTS           |p_darts      |557|4.9|24.4|0.3
PC-DARTS          |pc           |586|5.3|25.1|0.1
FairDARTS-B       |fair_darts   |541|4.8|24.9|0.4
FairNAS-C         |             |321|4.4|25.3|12
SNAS              |snas         |522|4.3|27.3|1.5
GDAS              |gdas         |581|5.3|26.0|0.2
SPOS              |             |323|3.5|25.6|12
ProxylessNAS      |             |465|7.1|24.9|8.3
FBNet-C           |             |375|5.5|25.1|9
Amended-DARTS     |amended_darts|586|5.2|24.7|1.7
ZARTS (5.6M)      |mgs          |647|5.6|24.3|1.0
ZARTS (5.0M)      |mgs          |573|5.0|24.5|1.0
"""
# Value, error, parameters (M), GPU days.
_TABLE5 = """
2|2.63 ± 0.12|2.87|0.5
4|2.54 ± 0.07|3.71|1.0
6|2.51 ± 0.09|3.53|1.1
8|2.57 ± 0.11|4.31|1.5
"""
_TABLE6 = """
2 |2.62 ± 0.15|2.91
5 |2.60 ± 0.09|3.40
8 |2.57 ± 0.03|3.52
10|2.54 ± 0.07|3.71
"""
# Name, methods here, accuracy on CIFAR-10, CIFAR-100 and ImageNet16-120.
_NASBENCH201 = """
best cell          |           |94.37        |73.51        |47.31
mean of all cells  |random     |87.06 ± 12.94|61.41 ± 12.17|33.59 ± 9.51
ENAS               |           |53.89 ± 0.58 |13.96        |14.84
RSPS               |random_ws  |84.07 ± 3.61 |52.31        |26.28
DARTS (1st and 2nd)|darts1 darts2|54.30      |15.61        |16.32
GDAS               |gdas       |93.61 ± 0.09 |70.70 ± 0.30 |41.71 ± 0.98
SETN               |           |87.64        |59.05        |32.52
PC-DARTS           |pc         |93.41        |67.48        |41.31
SNAS               |snas       |92.77        |69.34        |43.16
DSNAS              |           |93.08        |31.01        |41.07
iDARTS             |           |93.58        |70.83        |40.89
FairNAS            |           |93.23        |71.00        |42.19
DARTS-             |darts_minus|93.80 ± 0.40 |71.53        |45.12
EG-NAS             |           |93.56        |70.91        |46.13
DrNAS              |drnas      |94.36        |73.51        |46.34
β-DARTS            |beta_darts |94.36        |73.51        |46.34
TE-NAS             |           |93.90        |71.24        |42.38
NASWOT (N = 1000)  |           |92.96        |69.98        |44.44
ZO-AdaMM           |           |89.59 ± 2.25 |63.28 ± 4.86 |35.63 ± 4.73
ZO-SGD             |           |91.60 ± 1.15 |67.49 ± 1.05 |39.79 ± 1.83
ZO-signSGD         |           |89.74 ± 3.64 |62.41 ± 8.91 |35.28 ± 7.51
ReLIZO             |lizo       |92.45 ± 1.84 |69.03 ± 1.98 |42.31 ± 3.87
REINFORCE          |           |93.85 ± 0.37 |71.71 ± 1.09 |45.24 ± 1.18
"""
NASBENCH201_DATASETS = ("cifar10", "cifar100", "imagenet16")


def _by_method(text: str, methods: Mapping[str, tuple[str, ...]]) -> tuple[Line, ...]:
    return tuple(
        Line((dataset, space, name), figure, dataset, space, here)
        for dataset, space, *figures in _rows(text)
        for (name, here), figure in zip(methods.items(), figures, strict=True)
    )


def _of_values(text: str) -> tuple[Line, ...]:
    return tuple(
        Line((value,), error, _CIFAR10, "darts", ("mgs",), int(value), tuple(others))
        for value, error, *others in _rows(text)
    )


def _nasbench201() -> tuple[Line, ...]:
    return tuple(
        Line((dataset, name), figures[i], dataset, "nasbench201", tuple(here.split()))
        for i, dataset in enumerate(NASBENCH201_DATASETS)
        for name, here, *figures in _rows(_NASBENCH201)
    )


_ERROR = "published error %"
TABLES = (
    PublishedTable(
        "table2", "Table 2: S1 to S4 as in R-DARTS",
        "The published error is the best of four searches.",
        ("data set", "space", "published as"), _ERROR, _by_method(_TABLE2, _TABLE2_METHODS),
        protocol="rdarts"),
    PublishedTable(
        "table3", "Table 3: CIFAR, the DARTS space",
        "The published figure is the best model, or the mean of four searches. The figures of ROME "
        "are of ROME-v1, and rome is ROME-v2.",
        ("data set", "statistic", "published as"), _ERROR,
        tuple(
            Line((dataset, statistic, name), error, dataset, "darts", tuple(here.split()),
                 others=(size, cost))
            for statistic, dataset, name, here, size, error, cost in _rows(_TABLE3)),
        others=("published parameters (M)", "published GPU days"), protocol="darts"),
    PublishedTable(
        "table4", "Table 4: ImageNet, the DARTS space",
        "The published error is the top-1 error of one architecture.",
        ("published as",), _ERROR,
        tuple(
            Line((name,), error, "imagenet", "darts", tuple(here.split()),
                 others=(macs, size, cost))
            for name, here, macs, size, error, cost in _rows(_TABLE4)),
        others=("published multiply-adds (M)", "published parameters (M)", "published GPU days")),
    PublishedTable(
        "table5", "Table 5: number of samples N",
        "MGS on CIFAR-10 in the DARTS space; the published figure is the mean of three searches.",
        ("N",), _ERROR, _of_values(_TABLE5),
        others=("published parameters (M)", "published GPU days"), varies="n_samples"),
    PublishedTable(
        "table6", "Table 6: number of inner steps M",
        "MGS on CIFAR-10 in the DARTS space; the published figure is the mean of three searches.",
        ("M",), _ERROR, _of_values(_TABLE6),
        others=("published parameters (M)",), varies="inner_steps"),
    PublishedTable(
        "table7", "Table 7: S1 to S4 as in SmoothDARTS",
        "The published error of other methods is the best of four searches.",
        ("data set", "space", "published as"), _ERROR, _by_method(_TABLE7, _TABLE7_METHODS),
        protocol="sdarts"),
    PublishedTable(
        "nasbench201", "NAS-Bench-201",
        "Accuracy of the found cell after 200 epochs, looked up in the table.",
        ("data set", "published as"), "published accuracy %", _nasbench201(), metric="true"),
)  # fmt: skip
"""The tables, in the order of a report."""

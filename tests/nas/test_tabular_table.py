"""The table of NAS-Bench-201: published strings, look-ups, and what a wrong file says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell_tables import BEST_CELL, HEADER, SIGNAL, separable_values, write_table
from zoopt_nas.errors import DataError, InvalidValueError, MissingDataError, UnknownNameError
from zoopt_nas.nas.tabular.table import (
    COLUMNS,
    N_CELLS,
    SIGNALS,
    CellTable,
    cell_of,
    number_of,
    parse_cell,
    published_string,
)

PUBLISHED = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)
CELL = (4, 2, 1, 2, 1, 1)
ROW = f"{PUBLISHED},85.863,52.913,26.633,63.364,31.84,18.467"


def write(path, *lines: str):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_published_string():
    assert parse_cell(PUBLISHED) == CELL
    assert published_string(CELL) == PUBLISHED
    assert number_of(CELL) == int("421211", 5)


@given(st.tuples(*[st.integers(0, 4)] * 6))
def test_strings_and_numbers_name_the_same_cell(cell):
    assert parse_cell(published_string(cell)) == cell
    assert cell_of(number_of(cell)) == cell


def test_numbers_run_over_all_cells():
    assert N_CELLS == 5**6
    assert cell_of(0) == (0,) * 6
    assert cell_of(N_CELLS - 1) == (4,) * 6
    assert cell_of(1) == (0, 0, 0, 0, 0, 1)  # the last edge counts ones


@pytest.mark.parametrize(
    "text",
    ["", "none", PUBLISHED[:-1], PUBLISHED + "|", PUBLISHED.replace("~1", "~0"), PUBLISHED[1:]],
)
def test_a_string_of_another_form(text):
    with pytest.raises(InvalidValueError, match=r"a cell must read \|op~0\|\+"):
        parse_cell(text)


def test_an_unknown_operation_has_a_near_name():
    with pytest.raises(UnknownNameError, match="did you mean 'avg_pool_3x3'"):
        parse_cell(PUBLISHED.replace("avg_pool", "max_pool"))


@pytest.mark.parametrize("cell", [(0,) * 5, (0,) * 7, (0, 0, 0, 0, 0, 5), (-1, 0, 0, 0, 0, 0)])
def test_what_is_no_cell(cell):
    for function in (published_string, number_of):
        with pytest.raises(InvalidValueError, match="must have 6 operation indices from 0 to 4"):
            function(cell)


def test_look_ups_in_an_incomplete_table(tmp_path):
    table = CellTable.load(write(tmp_path / "t.csv", HEADER, ROW))
    assert len(table) == 1
    assert PUBLISHED in table
    assert CELL in table
    assert (0,) * 6 not in table
    assert table.accuracy(PUBLISHED, "cifar10_test_200ep") == 85.863
    assert table.accuracy(CELL, "imagenet16_valid_12ep") == 18.467
    with pytest.raises(DataError, match=r"t\.csv has no cell \|none~0\|\+\|none~0\|none~1\|\+"):
        table.accuracy((0,) * 6, "cifar10_test_200ep")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10_valid_12ep'"):
        table.accuracy(CELL, "cifar10_valid_12")
    with pytest.raises(DataError, match=r"lacks 15624 of 15625 cells, first \|none~0\|\+"):
        table.column(SIGNALS[0])


def test_columns_in_another_order_and_more_of_them(tmp_path):
    names = ["extra", *reversed(COLUMNS), "arch"]
    row = ["x", *map(str, range(6, 0, -1)), PUBLISHED]
    table = CellTable.load(write(tmp_path / "t.csv", ",".join(names), "", ",".join(row)))
    assert [table.accuracy(CELL, name) for name in COLUMNS] == [1, 2, 3, 4, 5, 6]


def test_a_complete_table(tmp_path):
    table = CellTable.load(write_table(tmp_path / "t.csv"))
    assert len(table) == N_CELLS
    for k, name in enumerate(COLUMNS):
        assert np.array_equal(table.column(name), separable_values()[:, k])
    assert SIGNAL.max() == table.accuracy(BEST_CELL, SIGNALS[0]) == 40 + 6 * 4
    with pytest.raises(ValueError, match="read-only"):
        table.column(SIGNALS[0])[0] = 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "t.csv has no column arch, cifar10_test_200ep,"),
        ([HEADER], "t.csv has no cell below its header"),
        ([HEADER.replace("arch,", "")], "t.csv has no column arch"),
        (
            [HEADER.replace(",imagenet16_valid_12ep", ""), ROW],
            "t.csv has no column imagenet16_valid_12ep",
        ),
        ([HEADER, ROW, ROW], "t.csv, line 3 repeats the cell of line 2"),
        ([HEADER, ROW.rpartition(",")[0]], "t.csv, line 2: 6 fields, the header has 7"),
        ([HEADER, ROW.replace("31.84", "good")], "from 0 to 100, got 'good'"),
        ([HEADER, ROW.replace("31.84", "")], "from 0 to 100, got ''"),
        ([HEADER, ROW.replace("31.84", "nan")], "from 0 to 100, got 'nan'"),
        ([HEADER, ROW.replace("31.84", "100.5")], "from 0 to 100, got '100.5'"),
        ([HEADER, ROW.replace("31.84", "-1")], "from 0 to 100, got '-1'"),
        ([HEADER, ROW.replace("avg_pool", "max_pool")], "t.csv, line 2: unknown operation"),
        ([HEADER, ROW.replace("~2", "~3")], "t.csv, line 2: a cell must read"),
    ],
)
def test_a_wrong_file_is_one_line(lines, message, tmp_path):
    with pytest.raises(DataError) as error:
        CellTable.load(write(tmp_path / "t.csv", *lines))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(MissingDataError, match=r"there is no table .*none\.csv"):
        CellTable.load(tmp_path / "none.csv")
    with pytest.raises(MissingDataError, match="cannot read"):
        CellTable.load(tmp_path)  # a folder
    empty, binary = tmp_path / "empty.csv", tmp_path / "binary.csv"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.csv is empty"):
        CellTable.load(empty)
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=r"binary\.csv is not a CSV file"):
        CellTable.load(binary)


def test_values_of_another_shape():
    with pytest.raises(InvalidValueError, match=r"values must have the shape \(15625, 6\)"):
        CellTable(np.zeros((3, 6)))

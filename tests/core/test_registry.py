"""The tables of names: built-in entries, and entry points of other packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zoopt_nas.errors import EntryPointError, UnknownNameError
from zoopt_nas.registry import Registry
from zoopt_nas.solvers import SOLVERS
from zoopt_nas.solvers.rs import RS

GROUP = "zoopt_nas.numbers"
NUMBERS: Registry[object] = Registry(
    "number", {"one": 1}, group=GROUP, check=lambda entry: isinstance(entry, int | float)
)


def test_an_entry_is_imported_when_it_is_asked_for(third_party):
    third_party(GROUP, one="no_such_module:x", tau="math:tau", broken="no_such_module:x")
    assert list(NUMBERS) == ["one", "broken", "tau"]
    assert len(NUMBERS) == 3
    assert all(name in NUMBERS for name in ("one", "broken", "tau"))
    assert NUMBERS["one"] == 1  # the built-in entry wins
    assert NUMBERS["tau"] == pytest.approx(6.283185307179586)
    assert [NUMBERS.is_built_in(name) for name in ("one", "tau")] == [True, False]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module:x", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("math:no_such_name", "cannot be loaded: AttributeError: module 'math' has no attribute"),
        ("math:sqrt", "must be a number, got <built-in function sqrt>"),
    ],
)
def test_an_entry_that_cannot_be_used_says_so_in_one_line(value, reason, third_party):
    third_party(GROUP, broken=value, tau="math:tau")
    with pytest.raises(EntryPointError) as caught:
        NUMBERS["broken"]
    start = f"number 'broken' of another package ({value}) {reason}"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert NUMBERS["tau"] == pytest.approx(6.283185307179586)


def test_a_wrong_name_finds_the_nearest_of_all(third_party):
    third_party(GROUP, three="math:pi")
    with pytest.raises(UnknownNameError, match="unknown number 'thre'; did you mean 'three'"):
        NUMBERS["thre"]


def test_what_is_installed_later_is_found(third_party):
    assert "walk" not in SOLVERS
    third_party("zoopt_nas.solvers", walk="zoopt_nas.solvers.rs:RS")
    assert SOLVERS["walk"] is RS


def test_importing_the_package_reads_no_entry_points():
    pytest.importorskip("torch")  # the code imports the whole package
    code = """
import zoopt_nas.registry
def refused(**arguments):
    raise AssertionError("entry points are read at import")
zoopt_nas.registry.entry_points = refused
from zoopt_nas import nas
for name in nas.__all__:
    getattr(nas, name)
import zoopt_nas_cli.main
nas.SearchConfig.for_dataset("digits", "darts2")
nas.SPACES["s3"], nas.METHODS["mgs"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""The order of the house: who may import whom, and what belongs in one place only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from zoopt_nas.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
# Each file of the core imports only from files above it.
ORDER = [
    *("errors", "_files", "registry", "_checks", "_arrays", "sampling", "bounds", "coordinates"),
    *("_calls", "_processes", "parallel", "objective", "problems"),
    *("solvers.encoding", "solvers.state", "solvers.widening"),
    "solvers.base",
    "solvers.engines.__init__",
    "solvers.engines.descent_state",
    "solvers.engines.box_steps",
    "solvers.engines.differences",
    "solvers.engines.resolution",
    "solvers.engines.first_look",
    "solvers.engines.second_differences",
    "solvers.engines.restarts",
    "solvers.engines.ruggedness",
    "solvers.engines.descent",
    "solvers.engines.subspace",
    "solvers.engines.comparison_state",
    "solvers.engines.comparison_metric",
    "solvers.engines.cma_rates",
    "solvers.engines.quadratic_model",
    "solvers.engines.small_matrices",
    "solvers.engines.interpolation",
    "solvers.engines.trust_step",
    "solvers.engines.trust_state",
    "solvers.engines.trust_start",
    "solvers.engines.trust_shape",
    "solvers.engines.trust_moves",
    "solvers.rs",
    "solvers.mgs",
    "solvers.gld",
    "solvers.lizo",
    "solvers.zo_signsgd",
    "solvers.zo_adamm",
    "solvers.quasi_newton",
    "solvers.trust_region",
    "solvers.adaptive_gld",
    "solvers.adaptive_mgs",
    "solvers.cma",
    "solvers.nelder_mead",
    "solvers.auto",
    *("solvers.__init__", "checkpoint", "progress", "_run", "_minimize", "diagnostics"),
    *("plots", "integrations.__init__", "integrations.scipy", "integrations.fillers"),
    *("integrations.optuna",),
    *("integrations.nevergrad", "integrations.torch"),
    "__init__",
    *("testing.cases", "testing.contract", "testing.robustness", "testing.__init__"),
]
# Each folder of `nas` imports only from folders above it.
ROOMS = (
    "settings",
    "kernels",
    "steps",
    "data",
    "networks",
    "runs",
    "drawing",
    "tabular",
    "search",
    "retraining",
    "exports",
    "analyses",
    "reports",
)
FILES = sorted((ROOT / "zoopt_nas").rglob("*.py")) + sorted((ROOT / "cli").rglob("*.py"))
CORE = [path for path in FILES if path.parts[-2] in ("zoopt_nas", "solvers")]
NAS = {
    ".".join(path.relative_to(ROOT / "zoopt_nas").with_suffix("").parts): path
    for path in FILES
    if "nas" in path.parts
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere, with what it takes out of each module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(dotted: str) -> str | None:
    """The module that ``zoopt_nas.x.y`` comes from; a package is its __init__."""
    if dotted.partition(".")[0] != "zoopt_nas":
        return None
    name = dotted.removeprefix("zoopt_nas").removeprefix(".")
    parent = name.rpartition(".")[0]
    for candidate in (name, f"{name}.__init__", parent, f"{parent}.__init__"):
        if candidate.removeprefix(".") in (*ORDER, *NAS):
            return candidate.removeprefix(".")
    raise AssertionError(f"there is no {dotted}")


def used_by(path: Path) -> set[str]:
    """The modules of the package that a file imports from."""
    return {name for name in map(module_of, imports_of(path)) if name is not None}


def room_of(name: str) -> str:
    return name.split(".")[1]


def mentions(path: Path, what: str) -> bool:
    return any(f"{name}.".startswith(f"{what}.") for name in imports_of(path))


def test_the_order_lists_every_file_of_the_core():
    listed = [f"zoopt_nas.{name}" for name in ORDER]
    files = [
        name_of(path) for path in FILES if not {"cli", "nas"} & set(path.parts[len(ROOT.parts) :])
    ]
    assert sorted(listed) == sorted(files)


@pytest.mark.parametrize("position", range(len(ORDER)), ids=lambda position: ORDER[position])
def test_a_file_of_the_core_imports_only_from_files_above_it(position):
    path = ROOT / "zoopt_nas" / (ORDER[position].replace(".", "/") + ".py")
    assert used_by(path) <= set(ORDER[:position])


def test_the_rooms_are_the_folders_of_nas():
    assert {path.name for path in (ROOT / "zoopt_nas" / "nas").iterdir() if path.is_dir()} - {
        "__pycache__"
    } == set(ROOMS)


@pytest.mark.parametrize("name", sorted(NAS.keys() - {"nas.__init__"}))
def test_a_file_of_nas_imports_only_from_rooms_above_its_own(name):
    above = ROOMS[: ROOMS.index(room_of(name))]
    for used in used_by(NAS[name]) & NAS.keys():
        assert room_of(used) in (*above, room_of(name)), used


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_do_not_import_each_other_in_a_circle(room):
    files = {name for name in NAS if room_of(name) == room}
    order = TopologicalSorter({name: used_by(NAS[name]) & files for name in files})
    assert set(order.static_order()) == files  # raises CycleError on a circle


def test_the_check_of_the_order_can_fail():
    assert module_of("zoopt_nas.nas.data.loading.load_dataset") == "nas.data.loading"
    assert module_of("zoopt_nas.nas.search.methods.METHODS") == "nas.search.methods.__init__"
    assert module_of("zoopt_nas.solvers.base.Solver") == "solvers.base"
    assert module_of("zoopt_nas.SOLVERS") == "__init__"
    assert module_of("zoopt_nas.sampling") == "sampling"
    assert module_of("zoopt_nas.nas.drawing.plots") == "nas.drawing.plots"
    assert module_of("torch.nn") is None


def test_who_imports_what():
    importers = {
        what: {name_of(path) for path in FILES if mentions(path, what)}
        for what in ("zoopt_nas_cli", "matplotlib", "sklearn", "torchvision", "typer", "rich")
    }
    assert importers["zoopt_nas_cli"] == set()  # inside cli/ imports are relative
    assert importers["matplotlib"] <= {
        *("zoopt_nas.plots", "zoopt_nas.nas.drawing.plots"),
        *("zoopt_nas.nas.drawing.figures", "zoopt_nas.nas.analyses.landscape.figure"),
        *("zoopt_nas.nas.analyses.plots", "zoopt_nas.nas.tabular.plots"),
        "zoopt_nas.nas.reports.pictures",
    }
    assert importers["sklearn"] == importers["torchvision"] == {"zoopt_nas.nas.data.datasets"}
    assert all(name.startswith("cli.") for name in importers["typer"])
    assert importers["rich"] == {"cli.console", "zoopt_nas.progress"}
    for path in CORE:
        assert not mentions(path, "torch.nn"), path
        assert not mentions(path, "zoopt_nas.nas"), path


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_habits_of_a_file(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert not {"utils", "helpers", "common", "misc"} & {path.stem, *path.stem.split("_")}
    assert ".cuda(" not in text
    tree = ast.parse(text)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {ast.unparse(function) for function in calls}
    if name_of(path) != "cli.console":
        assert "print" not in names
        assert not any(name.startswith(("sys.stdout", "sys.stderr")) for name in names)
    # No default random numbers: generators are passed in (seeded_init replaces torch's).
    assert not {"np.random.seed", "torch.manual_seed", "random.seed"} & names
    if name_of(path) != "cli.main":
        assert "sys.argv" not in text
    # Nothing happens at import: top-level statements draw nothing and read no environment.
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            code = ast.unparse(node)
            drawn = ("random.", "default_rng(", "Generator(", "environ", "getenv", "manual_seed")
            calls_made = [
                ast.unparse(n.func) + "(" for n in ast.walk(node) if isinstance(n, ast.Call)
            ]
            assert not any(word in call for call in calls_made for word in drawn), code


def test_a_name_is_the_file_the_key_and_the_label():
    for name in SOLVERS:
        assert SOLVERS[name].name == name
        assert SOLVERS[name].__module__ == f"zoopt_nas.solvers.{name}"
        assert (ROOT / "zoopt_nas" / "solvers" / f"{name}.py").is_file()


def test_a_command_is_a_file():
    text = (ROOT / "cli" / "main.py").read_text()
    for command, file in (
        ("search", "search"),
        ("train", "train"),
        ("show", "show"),
        ("diagnose", "diagnose"),
        ("convergence", "convergence"),
        ("sweep", "sweep"),
        ("report", "report"),
        ("export", "export"),
        ("list", "tables"),
        ("minimize", "minimize"),
        ("landscape", "landscape"),
    ):
        assert re.search(rf'app\.command\("{command}"[^)]*\)\({file}\.', text)
        assert (ROOT / "cli" / f"{file}.py").is_file()
    assert 'app.add_typer(bench.app, name="bench")' in text  # a group of commands

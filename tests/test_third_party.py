"""The package of docs/extending.md: all five seams from Python and from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from zoopt_nas_cli.main import run as run_command

import zoopt_nas
from page_package import EXTENDING, install, write_package
from zoopt_nas import nas
from zoopt_nas.errors import RunInterrupted
from zoopt_nas.nas.analyses.sweep import Sweep
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions

SIZES = ("--epochs", 2, "--init-channels", 2, "--n-cells", 1, "--batch-size", 16, "--device", "cpu")
SEARCH = ("--dataset", "stripes", "--space", "convs", *SIZES)


def run(*command: object, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder of the package, as the page has it."""
    folder = tmp_path_factory.mktemp("zoopt-nas-example")
    write_package(EXTENDING.read_text(encoding="utf-8"), folder)
    assert (folder / "pyproject.toml").is_file()
    return folder


@pytest.fixture
def installed(package, monkeypatch) -> None:
    """The package is installed for this process."""
    site = package / "src"
    if not list(site.glob("*.dist-info")):
        install(package)
    monkeypatch.syspath_prepend(site)


@pytest.fixture
def cli(installed, tmp_path, monkeypatch, capsys):
    """``cli("search", ...)`` runs a command in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    return call


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("solvers", "evolution", "Evolution strategy (1 + n): "),
        ("operations", "conv_3x3", "Sequential, 2336 weights on 16 channels"),
        ("spaces", "convs", "28 alphas over skip_connect, conv_3x3, sep_conv_3x3, max_pool_3x3"),
        ("datasets", "stripes", "2 classes, images of 8x8x1"),
        ("methods", "sign", "gradient: Steps of alpha_lr against the sign"),
        ("methods", "evolution", "zero-order: the solver evolution on alpha"),
    ],
)
def test_the_lists_have_the_names(what, name, text, cli):
    assert json.loads(cli("list", what, "--json"))[name].startswith(text)


def test_the_tables_have_the_names(installed):
    names = ("evolution", "conv_3x3", "convs", "stripes", "sign", "evolution")
    tables = (zoopt_nas.SOLVERS, nas.OPERATIONS, nas.SPACES, nas.DATASETS, nas.METHODS, nas.METHODS)
    for table, name in zip(tables, names, strict=True):
        assert name in table
        assert name in list(table)
        with pytest.raises(zoopt_nas.UnknownNameError, match=f"did you mean '{name}'"):
            table[f"{name}_"]
    assert len(nas.METHODS) == len(list(nas.METHODS))
    assert nas.METHODS["sign"].__module__ == "zoopt_nas_example.method"


def test_the_kind_of_a_method_gives_its_defaults(installed):
    assert SearchConfig.for_dataset("cifar10", "sign").warmup_epochs == 0
    assert SearchConfig.for_dataset("cifar10", "evolution").warmup_epochs == 10
    assert SearchConfig.for_dataset("cifar10", "sign", preset="paper").inner_momentum
    assert reductions(SearchConfig.for_dataset("cifar10", "sign", update_period=3)) == [
        "update_period 3, not 1"
    ]
    with pytest.raises(zoopt_nas.InvalidValueError, match="solver must have no options with sign"):
        nas.run_search(SearchConfig.for_dataset("digits", "sign", solver={"sigma": 1.0}))


def test_a_registered_data_set_at_full_size_is_not_reduced(installed):
    config = SearchConfig.for_dataset("stripes", "mgs")
    assert reductions(config) == []
    assert reductions(config.replace(epochs=11)) == ["epochs 11 of 50"]
    assert reductions(config.replace(dataset="digits"))[0] == "dataset digits"


def test_a_sweep_takes_all_of_them(installed):
    fields = {"dataset": "stripes", "space": "convs", "algo": "sign"}
    sweep = Sweep({"alpha_lr": (0.1, 0.2)}, seeds=(0,), search=fields)
    assert [run.config.algo for run in sweep.runs()] == ["sign", "sign"]
    Sweep({"step": (0.1, 0.2)}, seeds=(0,), search={**fields, "algo": "evolution"})
    with pytest.raises(zoopt_nas.UnknownNameError, match="unknown setting of sign 'step'"):
        Sweep({"step": (0.1,)}, seeds=(0,), search=fields)
    with pytest.raises(zoopt_nas.UnknownNameError, match="unknown option of evolution 'stepp'"):
        Sweep({"stepp": (0.1,)}, seeds=(0,), search={**fields, "algo": "evolution"})


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sign", "evolution"])
def test_search_train_and_show(algo, cli, tmp_path):
    more = ("--inner-steps", 1, "--n-samples", 1) if algo == "evolution" else ("--alpha-lr", 0.1)
    found = json.loads(cli("search", "--algo", algo, *SEARCH, *more, "--run-dir", "run", "--json"))
    assert len(found["genotype"]["normal"]) == 4
    assert {name for name, _ in found["genotype"]["normal"]} <= {
        *("skip_connect", "conv_3x3", "sep_conv_3x3")
    }
    shown = json.loads(cli("show", "run", "--json"))
    assert shown["genotype"] == found["genotype"]
    assert any("alpha" in path for path in shown["pictures"])
    genotype = nas.Genotype(
        *((("conv_3x3", 0), ("skip_connect", 1), ("conv_3x3", 0), ("conv_3x3", 2)),) * 2,
        *((2, 3),) * 2,
    )
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    small = ("--dataset", "stripes", *SIZES, "--no-auxiliary", "--run-dir", "trained", "--json")
    assert 0 <= json.loads(cli("train", "genotype.json", *small))["test_accuracy"] <= 1


@pytest.mark.slow
def test_a_sweep_of_searches_by_a_method(cli):
    vary = ("--vary", "alpha_lr=0.1,0.2", "--seeds", "0", "--algo", "sign")
    swept = json.loads(cli("sweep", *vary, *SEARCH, "--run-dir", "sweep", "--json"))
    assert [run["point"] for run in swept["runs"]] == [{"alpha_lr": 0.1}, {"alpha_lr": 0.2}]
    norms = [
        row["gradient_norm"]
        for row in nas.RunFolder.open("sweep/alpha_lr=0.1-seed0").rows("metrics.jsonl")
    ]
    assert len(norms) == 2
    assert all(norm > 0 for norm in norms)


@pytest.mark.slow
def test_a_search_by_a_method_goes_on_bit_for_bit(installed, tmp_path, without_seconds):
    config = SearchConfig.for_dataset(
        *("stripes", "sign"),
        **{"space": "convs", "epochs": 3, "init_channels": 2, "n_cells": 1, "batch_size": 16},
        **{"alpha_lr": 0.1, "device": "cpu"},
    )

    class Stop(nas.Observer):
        def should_stop(self) -> bool:
            return True

    whole = nas.run_search(config)
    with pytest.raises(RunInterrupted):
        nas.run_search(config, run_dir=tmp_path / "run", observer=Stop())
    resumed = nas.resume_search(tmp_path / "run")
    assert resumed.genotype == whole.genotype
    assert resumed.alpha.tolist() == whole.alpha.tolist()
    assert without_seconds(resumed.metrics) == without_seconds(whole.metrics)


@pytest.fixture(scope="module")
def site(package, tmp_path_factory) -> Path:
    """Where pip has installed the package, without a network."""
    target = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    done = run(
        *(sys.executable, "-m", "pip", "install", *offline, "--target", target, package),
        site=target,
        cwd=package,
    )
    assert done.returncode == 0, done.stderr
    assert list(target.glob("zoopt_nas_example-*.dist-info/entry_points.txt"))
    return target


def command_line(*arguments: object, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    main = "from zoopt_nas_cli.main import main; main()"
    return run(sys.executable, "-c", main, *arguments, site=site, cwd=cwd)


@pytest.mark.slow
def test_minimize_knows_the_name_and_its_options(site, tmp_path):
    code = """
import zoopt_nas
assert list(zoopt_nas.SOLVERS)[-1] == "evolution"
def fun(x): return float((x**2).sum())
result = zoopt_nas.minimize(
    fun, [1.0, -2.0], method="evolution", maxfev=400, rng=0, options={"n_samples": 6}
)
assert type(zoopt_nas.SOLVERS["evolution"]()).__module__ == "zoopt_nas_example.solver"
assert (result.nfev, result.fun < 0.1) == (400, True), result
try:
    zoopt_nas.minimize(fun, [1.0], method="evolution", options={"n_sample": 6})
except zoopt_nas.UnknownNameError as error:
    print(error)
"""
    done = run(sys.executable, "-c", code, site=site, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "unknown option of evolution 'n_sample'; did you mean 'n_samples'?\n"


@pytest.mark.slow
def test_the_command_line_minimizes_and_searches_with_it(site, tmp_path):
    (tmp_path / "bowl.py").write_text("def fun(x):\n    return float((x**2).sum())\n")
    limits = ("--maxfev", 200, "--seed", 0, "--option", "step=0.5", "--json")
    bowl = ("minimize", "bowl:fun", "--x0", "1,-2", "--algo", "evolution")
    done = command_line(*bowl, *limits, site=site, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["fun"] < 0.1  # 5 at the start

    more = ("--algo", "sign", *SEARCH, "--run-dir", "run", "--json")
    done = command_line("search", *more, site=site, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["genotype"]["normal"]) == 4
    config = (tmp_path / "run" / "config.toml").read_text()
    assert 'algo = "sign"' in config


@pytest.mark.slow
def test_its_own_tests_pass(site, package):
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "error")
    done = run(sys.executable, "-m", "pytest", *options, "tests", site=site, cwd=package)
    assert done.returncode == 0, done.stdout
    n_passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert n_passed > 20

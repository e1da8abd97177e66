"""What can be read without running anything: help, version, lists, and what that imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import zoopt_nas
from zoopt_nas.nas.data.datasets import DATASETS
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search.algorithm import METHODS
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

COMMANDS = (
    "search",
    "train",
    "show",
    "export",
    "landscape",
    "diagnose",
    "convergence",
    "sweep",
    "report",
    "bench",
    "minimize",
    "list",
)
PANELS = {
    "search": ["What to do", "Run folder", "Supernet", "Weights", "Alpha", "Data", "Machine"],
    "train": ["What to do", "Run folder", "Network", "Weights", "Data", "Machine"],
    "minimize": ["What to do", "When to stop", "Evaluations"],
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    monkeypatch.setenv("TERMINAL_WIDTH", "200")


def option_line(text: str, flag: str) -> str:
    (line,) = [x for x in text.splitlines() if f" {flag} " in x and " --" in x[:40]]
    return line


def test_main_help_names_every_command(cli):
    for arguments in ([], ["--help"]):
        result = cli(*arguments)
        assert (result.code, result.err) == (0, "")
        for command in COMMANDS:
            assert any(
                line.strip("│ ").startswith(f"{command} ") for line in result.out.splitlines()
            )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, cli):
    result = cli(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Usage: zoopt-nas {command}" in result.out
    places = [result.out.index(f"─ {panel} ─") for panel in PANELS.get(command, [])]
    assert places == sorted(places)


def test_help_of_search_shows_the_defaults_of_its_config(cli):
    text = cli("search", "--help").out
    for flag, default in {
        "--space": "s3",
        "--dataset": "digits",
        "--algo": "mgs",
        "--seed": "0",
        "--epochs": "50; digits: 10",
        "--batch-size": "64",
        "--init-channels": "16; digits: 4",
        "--n-cells": "8; digits: 3",
        "--inner-steps": "10; digits: 4",
        "--n-samples": "4",
        "--lr": "0.025",
        "--device": "auto",
        "--threads": "none",
        "--amp": "auto",
        "--compile": "auto",
        "--channels-last": "auto",
        "--data-dir": "data",
        "--n-train": "none",
        "--run-dir": "runs/<date>-<space>-<dataset>-<algo>-seed<k>",
    }.items():
        assert f"default: ({default})" in option_line(text, flag), flag
    # The help says what the library does.
    digits = SearchConfig.for_dataset("digits", "mgs")
    assert (digits.epochs, digits.init_channels, digits.n_cells) == (10, 4, 3)
    assert (digits.inner_steps, digits.solver["n_samples"]) == (4, 4)
    others = SearchConfig.for_dataset("cifar10")
    assert (others.epochs, others.init_channels, others.n_cells) == (50, 16, 8)


def test_help_of_train_shows_the_defaults_of_its_config(cli):
    text = cli("train", "--help").out
    digits, others = TrainConfig.defaults_for("digits"), TrainConfig(dataset="cifar10")
    for flag, name in {
        "--epochs": "epochs",
        "--init-channels": "init_channels",
        "--n-cells": "n_cells",
        "--drop-path": "drop_path",
        "--cutout": "cutout",
    }.items():
        shown = f"default: ({getattr(others, name)}; digits: {digits[name]})"
        assert shown in option_line(text, flag), flag
    assert "default: (from the search, or digits)" in option_line(text, "--dataset")
    for flag in ("--amp", "--compile", "--channels-last"):
        assert "default: (auto)" in option_line(text, flag)


def test_version(cli):
    result = cli("--version")
    assert (result.code, result.out) == (0, f"zoopt-nas {zoopt_nas.__version__}\n")


def test_help_and_list_solvers_import_no_torch():
    code = """
import sys
from zoopt_nas_cli.main import run
helps = [[command, "--help"] for command in ("search", "train", "landscape")]
for arguments in (["--help"], *helps, ["list", "solvers"]):
    assert run(arguments) == 0
loaded = {"torch", "matplotlib", "sklearn", "scipy.optimize", "torchvision"} & set(sys.modules)
sys.exit(f"imported: {loaded}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_command_runs():
    main = "from zoopt_nas_cli.main import main; main()"
    for arguments, code in ((["--version"], 0), (["lst"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", main, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
    assert done.stderr == "error: No such command 'lst'. Did you mean 'list'?\n"


LISTS = {
    "solvers": list(zoopt_nas.SOLVERS),
    "spaces": list(SPACES),
    "operations": list(OPERATIONS),
    "datasets": list(DATASETS),
    "methods": list(METHODS),
    "genotypes": list(GENOTYPES),
}


@pytest.mark.parametrize("what", LISTS)
def test_list(what, cli):
    result = cli("list", what)
    assert (result.code, result.err) == (0, "")
    cells = [line.split("│") for line in result.out.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in cells] == LISTS[what]
    table = json.loads(cli("list", what, "--json").out)
    assert list(table) == LISTS[what]
    assert all(text and "\n" not in text for text in table.values())
    assert [row[2].strip() for row in cells] == list(table.values())


def test_lists_say_what_counts(cli):
    spaces = json.loads(cli("list", "spaces", "--json").out)
    assert spaces["s3"] == "84 alphas over none, skip_connect, sep_conv_3x3"
    datasets = json.loads(cli("list", "datasets", "--json").out)
    assert datasets["svhn"] == "10 classes, images of 32x32x3"
    methods = json.loads(cli("list", "methods", "--json").out)
    assert "Eq. 2" in methods["darts2"]
    assert "gld" in methods["gld"]
    genotypes = json.loads(cli("list", "genotypes", "--json").out)
    assert genotypes["DARTS_V2"] == (
        "5 sep_conv_3x3, 2 skip_connect, 1 dil_conv_3x3; 5 max_pool_3x3, 3 skip_connect"
    )

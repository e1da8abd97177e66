"""The commands of docs/reproduce.md: each is understood, and asks for the size of the paper."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from zoopt_nas_cli.main import run

from zoopt_nas import nas
from zoopt_nas.nas.analyses import convergence, diagnose, sweep
from zoopt_nas.nas.analyses.landscape import compute as landscape_run
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.runs.folder import ARCHITECTURES, METRICS, RunFolder
from zoopt_nas.nas.settings.paper_size import reductions

PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
FULL, SMALL = PAGE.split("\n## At reduced size\n")


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    joined = [block.replace(" && \\\n  ", "\n") for block in blocks]
    lines = [line for block in joined for line in block.splitlines()]
    return [line for line in lines if not line.startswith("SMALL")]


class AskedError(Exception):
    """What a command would have done."""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """``ask(command)``: what the command asks the package for, with every argument of it."""

    def asked(*arguments, **keywords):
        raise AskedError((*arguments, *keywords.values()))

    for module, name in (
        *((nas, "run_search"), (nas, "run_training"), (sweep, "run_sweep")),
        *((landscape_run, "compute_landscape"), (convergence, "run_retrainings")),
        (diagnose, "run_condition_numbers"),
    ):
        monkeypatch.setattr(module, name, asked)
    monkeypatch.chdir(tmp_path)

    def ask(command: str):
        words = shlex.split(command)
        start = next(i for i, word in enumerate(words) if word in ("zoopt-nas", "zoopt_nas_cli"))
        arguments = words[start + 1 :]
        for word in arguments:  # runs that earlier commands leave
            if word.startswith("runs/") and "--run-dir" not in arguments[: arguments.index(word)]:
                pretend_search(Path(word))
        try:
            return run(arguments)
        except AskedError as found:
            return found.args[0]

    return ask


def pretend_search(path: Path, n_epochs: int = 200) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    config = nas.SearchConfig.for_dataset("cifar10", space="darts", epochs=n_epochs)
    folder = RunFolder.create(path, config)
    genotype = GENOTYPES["DARTS_V2"]
    folder.write("genotype.json", genotype.to_json())
    rows = {
        METRICS: {"val_accuracy": 0.5, "n_effective": 2.0, "val_loss": 1.0},
        ARCHITECTURES: {"genotype": genotype.to_dict()},
    }
    for name, row in rows.items():
        lines = (json.dumps({"epoch": epoch, **row}) for epoch in range(n_epochs))
        folder.write(name, "\n".join(lines) + "\n")


def sizes_of(asked) -> list[str]:
    """What is smaller than in the paper, of whatever was asked for."""
    found: list[str] = []
    for part in asked:
        if isinstance(part, nas.SearchConfig | nas.TrainConfig):
            found += reductions(part)
        elif isinstance(part, sweep.Sweep | nas.LandscapeSettings):
            found += part.reductions()
        elif isinstance(part, list):  # a plan of retrainings
            found += [one for retraining in part for one in reductions(retraining.config)]
    return found


@pytest.mark.parametrize("command", [one for one in commands(FULL) if " show " not in one])
def test_a_command_asks_for_the_size_of_the_paper(ask, command):
    asked = ask(command)
    assert not isinstance(asked, int), f"ended with {asked}"
    assert sizes_of(asked) == []


@pytest.mark.parametrize("command", commands(SMALL))
def test_a_small_command_is_understood(ask, command):
    small = dict(re.findall(r'^(SMALL\w*)="(.*)"$', SMALL, re.MULTILINE))
    for name, value in small.items():
        command = re.sub(rf"\${name}\b", value, command)
    asked = ask(command.replace("cifar10.npz", "cifar10"))
    assert asked == 0 or sizes_of(asked) != [] or "--condition-number" in command


def test_what_the_tables_consist_of(ask):
    wanted = {
        "table2": (3 * 4 * 8 * 4, {(20, 36), (20, 16), (8, 16)}),
        "table3": (2 * 11 * 4, {(20, 36)}),
        "table5": (4 * 3, {(20, 36)}),
        "table6": (4 * 3, {(20, 36)}),
        "table7": (3 * 4 * 4 * 4, {(20, 36)}),
        "fig2": (2, None),
        "fig4": (4, None),
    }
    for command in commands(FULL):
        name = command.rpartition("/")[2]
        if " sweep " in command:
            found, _ = ask(command)[:2]
            n_runs, sizes = wanted.pop(name)
            runs = found.runs()
            assert len(runs) == n_runs
            assert (found.train is None) == (sizes is None)
            if sizes is not None:
                configs = [
                    sweep.retraining_of(one.config, GENOTYPES["DARTS_V2"], **found.train)
                    for one in runs
                ]
                assert {(one.n_cells, one.init_channels) for one in configs} == sizes
                assert {one.epochs for one in configs} == {600}
    assert wanted == {}


def test_figure_2_retrains_every_25th_epoch(ask):
    (command,) = [one for one in commands(FULL) if " convergence " in one]
    (plan,) = [part for part in ask(command) if isinstance(part, list)]
    assert [retraining.epoch for retraining in plan] == [25, 50, 75, 100, 125, 150, 175, 200]

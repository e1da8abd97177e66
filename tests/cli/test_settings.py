"""A setting is written once, and every way to give it leads to the same config."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import typer
from typer import rich_utils
from zoopt_nas_cli.options import given, with_settings

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.search import run
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.settings.config import RunConfig, SearchConfig, TrainConfig
from zoopt_nas.nas.settings.setting import BELOW_1, GROUPS, MACHINE, setting, settings_of

DATA_SETS = ("digits", "cifar10", "imagenet", "mine.npz")


@pytest.fixture
def resolved(cli, monkeypatch):
    """``resolved("search", ...)``: the config that a command runs, without running it."""
    found: list[RunConfig] = []

    def stop(config, **arguments):
        found.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_search", stop)
    monkeypatch.setattr(retrain, "run_training", stop)

    def resolve(*arguments: object) -> RunConfig:
        assert cli(*arguments).code == 130
        return found.pop()

    return resolve


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_a_search_is_the_same_by_hand_by_file_and_by_options(dataset, resolved, tmp_path):
    file = tmp_path / "own.toml"
    for algo in METHODS:
        by_hand = SearchConfig(dataset=dataset, algo=algo).to_toml()
        file.write_text(f'dataset = "{dataset}"\nalgo = "{algo}"\n')
        assert resolved("search", "--dataset", dataset, "--algo", algo).to_toml() == by_hand
        assert resolved("search", "--config", file).to_toml() == by_hand
        assert SearchConfig.for_dataset(dataset, algo).to_toml() == by_hand
        assert SearchConfig.from_toml(file.read_text()).to_toml() == by_hand
        assert SearchConfig.from_toml(by_hand).to_toml() == by_hand


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_so_it_is_with_settings_that_others_depend_on(dataset, resolved, tmp_path):
    own = {"epochs": 20, "lr": 5e-4, "space": "darts"}
    options = ("--epochs", 20, "--lr", 5e-4, "--space", "darts", "--solver-option", "n_samples=3")
    file = tmp_path / "own.toml"
    for algo in ("mgs", "rs", "gld"):
        by_hand = SearchConfig(dataset=dataset, algo=algo, solver={"n_samples": 3}, **own)
        assert (by_hand.warmup_epochs, by_hand.lr_min) == (4, 5e-4)
        usual = SearchConfig(algo=algo, space="darts").solver
        assert by_hand.solver == usual | {"n_samples": 3} != {"n_samples": 3}
        assert resolved("search", "--dataset", dataset, "--algo", algo, *options) == by_hand
        file.write_text(
            f'dataset = "{dataset}"\nalgo = "{algo}"\nepochs = 20\nlr = 5e-4\nspace = "darts"\n'
            "[solver]\nn_samples = 3\n"
        )
        assert resolved("search", "--config", file) == by_hand


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_a_retraining_is_the_same_by_hand_by_file_and_by_options(dataset, resolved, tmp_path):
    genotype = str(GENOTYPES["DARTS_V1"])
    by_hand = TrainConfig(dataset=dataset, genotype=genotype)
    assert resolved("train", "DARTS_V1", "--dataset", dataset) == by_hand
    (tmp_path / "own.toml").write_text(f'dataset = "{dataset}"\n')
    assert resolved("train", "DARTS_V1", "--config", tmp_path / "own.toml") == by_hand
    assert TrainConfig.for_dataset(dataset, genotype) == by_hand
    short = TrainConfig(dataset=dataset, genotype=genotype, epochs=11)
    assert short.warmup_epochs == (2 if dataset == "imagenet" else 0)
    assert resolved("train", "DARTS_V1", "--dataset", dataset, "--epochs", 11) == short


@pytest.mark.parametrize("command", ["search", "train"])
def test_help_has_every_setting_with_its_help_and_default(command, cli, monkeypatch):
    # Typer reads TERMINAL_WIDTH only when this module is imported.
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 200)
    cls = {"search": SearchConfig, "train": TrainConfig}[command]
    lines = [line.split() for line in cli(command, "--help").out.splitlines()]
    shown = {words[1]: " ".join(words) for words in lines if words[1:2] and "--" in words[1]}
    for name, known in settings_of(cls).items():
        option = known.option or "--" + name.replace("_", "-")
        assert (option in shown) == known.has_option, name
        if known.has_option:
            assert known.help in shown[option]
            if name not in ("dataset", "solver"):
                assert f"[default: ({cls.shown_default(name)})]" in shown[option]


def test_every_setting_says_what_it_does():
    for cls in (SearchConfig, TrainConfig):
        assert list(settings_of(cls)) == [field.name for field in fields(cls)]
        for name, known in settings_of(cls).items():
            assert known.group in GROUPS
            assert known.help.endswith("."), name
            for choice in known.choices:
                cls(**{name: choice})


@dataclass(frozen=True)
class WithOneMore(SearchConfig):
    """A search with one more setting, which is one field."""

    kind: ClassVar[str] = "search"
    share: float | None = setting(0.25, MACHINE, "A share.", rule=BELOW_1, option="--the-share")
    mode: str = setting("slow", MACHINE, "A mode.", choices=("slow", "fast"))


def test_a_new_setting_is_one_field():
    read: list[dict[str, Any]] = []

    @with_settings(WithOneMore, first=("mode",))
    def command(ctx: typer.Context, own: bool = False) -> None:
        """Do something."""
        read.append({"own": own, **given(ctx, WithOneMore)})

    app = typer.Typer(add_completion=False)
    app.command()(command)
    for arguments in ([], ["--the-share", "0.5", "--mode", "fast", "--own", "--no-download"]):
        app(arguments, standalone_mode=False)
    assert read == [
        {"own": False},
        {"own": True, "share": 0.5, "mode": "fast", "download": False},
    ]
    assert (WithOneMore().share, WithOneMore().mode) == (0.25, "slow")
    config = WithOneMore.from_toml("share = 0.5\nmode = 'fast'")
    assert (config.share, config.mode) == (0.5, "fast")
    assert WithOneMore.from_toml(config.to_toml()) == config
    with pytest.raises(InvalidValueError, match=r"share must lie in \[0, 1\), got 1.0"):
        WithOneMore(share=1)
    with pytest.raises(UnknownNameError, match="unknown mode 'slw'; did you mean 'slow'"):
        WithOneMore(mode="slw")

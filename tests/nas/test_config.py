"""Settings: round trips, rules, defaults."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopt_nas.errors import InvalidValueError, UnknownNameError, ZooptNasError
from zoopt_nas.nas.settings.config import RunConfig, SearchConfig, TrainConfig

# No value is the default of its field.
COMMON: dict[str, Any] = {
    "dataset": "cifar10",
    "seed": 7,
    "data_dir": 'a "b" \\ c\n',
    "download": True,
    "image_size": 28,
    "n_train": 1000,
    "device": "cpu",
    "threads": 3,
    "amp": "bf16",
    "compile": "on",
    "channels_last": "off",
    "cpu_kernels": "off",
    "momentum": 0.5,
    "weight_decay": 1e-5,
    "grad_clip": 2.5,
    "augment": False,
    "cutout": 4,
    "epochs": 31,
    "batch_size": 17,
    "init_channels": 5,
    "n_cells": 6,
    "lr": 0.3,
    "lr_min": 0.01,
    "nesterov": True,
}
SEARCH = COMMON | {
    "space": "s4",
    "partial_channels": 5,
    "algo": "gld",
    "train_portion": 0.25,
    "warmup_epochs": 3,
    "inner": "second",
    "inner_steps": 2,
    "update_period": 7,
    "inner_lr": 0.125,
    "inner_momentum": False,
    "inner_average": 0.75,
    "inner_amp": "bf16",
    "sampled_paths": 2,
    "val_batches": 3,
    "score": "accuracy",
    "noise_aware": True,
    "sigma_schedule": "constant",
    "solver": {"schedule": "adaptive", "max_radius": 3.0, "min_radius": 0.5, "direction": "ball"},
    "candidates_per_batch": 3,
    "candidate_devices": "cuda:0, cuda:1",
    "merge_kernels": False,
    "edge_normalization": True,
    "relaxation": "dirichlet",
    "auxiliary_skip": 0.0,
    "alpha_penalty": 0.75,
    "drop_path": 0.3,
    "skip_dropout": (0.125, 0.25, 0.5),
    "track_eigenvalue": True,
    "eigenvalue_batches": 2,
    "min_return_epoch": 3,
    "alpha_lr": 1e-2,
    "alpha_betas": (0.25, 0.75),
    "alpha_weight_decay": 0.0,
    "table": "a table.csv",
    "start": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "supernet": "runs/a run",
    "paths": "mixed",
    "weights": "shared",
    "surrogate": False,
    "extrapolate": False,
}
ON_PATHS = SEARCH | {
    "surrogate": True,
    "extrapolate": True,
    "paths": "fair",
    "weights": "fresh",
    "inner": "sgd",
    "partial_channels": 1,
    "edge_normalization": False,
    "track_eigenvalue": False,
}
TRAIN = COMMON | {
    "genotype": "Genotype(normal=[('skip_connect', 0)])",
    "auxiliary": False,
    "auxiliary_weight": 0.1,
    "drop_path": 0.35,
    "label_smoothing": 0.05,
    "schedule": "linear",
    "warmup_epochs": 2,
    "report": "best",
}
WITH_SKIP = SEARCH | {
    "edge_normalization": False,
    "auxiliary_skip": 0.625,
    "merge_kernels": True,
}
CASES = [
    (SearchConfig, SEARCH),
    (SearchConfig, WITH_SKIP),
    (SearchConfig, ON_PATHS),
    (TrainConfig, TRAIN),
]


@pytest.mark.parametrize("cls", [SearchConfig, TrainConfig])
def test_every_field_has_a_case_with_another_value_than_the_default(cls: type[RunConfig]):
    for name, usual in vars(cls(dataset="svhn")).items():
        assert any(fields[name] != usual for kind, fields in CASES if kind is cls), name


@pytest.mark.parametrize(("cls", "fields"), CASES)
def test_toml_round_trip_of_every_field(cls: type[RunConfig], fields: dict[str, Any]):
    assert set(fields) == {spec.name for spec in dataclasses.fields(cls)}
    config = cls(**fields)
    for name, value in fields.items():
        assert getattr(config, name) == value
    again = cls.from_toml(config.to_toml())
    assert again == config
    for name in fields:
        assert type(getattr(again, name)) is type(getattr(config, name)), name
    assert tomllib.loads(config.to_toml())["kind"] == cls.kind


@pytest.mark.parametrize("cls", [SearchConfig, TrainConfig])
def test_none_is_left_out_of_toml(cls: type[RunConfig]):
    assert "n_train" not in tomllib.loads(cls().to_toml())
    assert cls.from_toml(cls().to_toml()) == cls()
    assert cls.from_toml("") == cls()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    lr=st.floats(1e-300, 1e300),
    weight_decay=st.floats(0, 1e300),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20),
)
def test_toml_keeps_every_bit_of_numbers_and_text(lr: float, weight_decay: float, text: str):
    config = SearchConfig(lr=lr, lr_min=0, weight_decay=weight_decay, data_dir=text)
    assert SearchConfig.from_toml(config.to_toml()) == config


def test_read_fields_may_set_a_few_only():
    assert SearchConfig.read_fields("epochs = 3\nalgo = 'rs'") == {"epochs": 3, "algo": "rs"}
    assert SearchConfig.read_fields("kind = 'search'") == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("epoch = 3", UnknownNameError, "unknown search setting 'epoch'; did you mean 'epochs'"),
        ("epochs = ", InvalidValueError, "config is not valid TOML"),
        ("kind = 'train'", InvalidValueError, "config must be of kind search, got train"),
        ("epochs = 'x'", InvalidValueError, "epochs must be of type int, got 'x'"),
    ],
)
def test_bad_toml_is_refused(text: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message) as info:
        SearchConfig.from_toml(text)
    assert "\n" not in str(info.value)


def test_unknown_names_are_refused_everywhere():
    for use in (
        lambda: SearchConfig().replace(n_cell=3),
        lambda: SearchConfig.for_dataset("digits", n_cell=3),
        lambda: TrainConfig.for_dataset("digits", "DARTS_V2", n_cell=3),
    ):
        with pytest.raises(UnknownNameError, match="did you mean 'n_cells'"):
            use()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 3.0),
        ("epochs", True),
        ("epochs", "3"),
        ("epochs", None),
        ("image_size", 2.5),
        ("image_size", False),
        ("download", 1),
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("inner_lr", "x"),
        ("dataset", 3),
        ("solver", []),
        ("alpha_betas", 0.5),
        ("alpha_betas", (0.5,)),
        ("alpha_betas", [0.5, 0.9, 0.99]),
        ("alpha_betas", (0.5, "x")),
        ("alpha_betas", (0.5, True)),
    ],
)
def test_types(field: str, value: Any):
    with pytest.raises(InvalidValueError, match=f"^{field} must be "):
        SearchConfig(**{field: value})


def test_an_integer_is_a_fine_float_and_a_list_a_fine_tuple():
    config = SearchConfig(lr=1, lr_min=0, alpha_betas=[0, 0.5])  # type: ignore[arg-type]
    assert type(config.lr) is float
    assert config.alpha_betas == (0.0, 0.5)
    assert type(config.alpha_betas) is tuple
    assert type(config.alpha_betas[0]) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("epochs", "batch_size", "init_channels", "n_cells")),
        *((name, -1) for name in ("val_batches", "image_size", "n_train", "candidates_per_batch")),
        ("threads", 0),
        *((name, -1) for name in ("seed", "cutout", "warmup_epochs", "inner_steps")),
        *((name, -1e-9) for name in ("weight_decay", "momentum", "alpha_weight_decay")),
        *((name, math.nan) for name in ("weight_decay", "momentum", "alpha_weight_decay")),
        *((name, math.nan) for name in ("lr_min", "grad_clip", "alpha_lr", "inner_lr")),
        *((name, 0.0) for name in ("grad_clip", "alpha_lr", "inner_lr")),
        ("lr_min", -0.001),
        ("lr_min", 0.026),
        *(("train_portion", value) for value in (0.0, 1.0, -0.5, 1.5, math.nan)),
        ("warmup_epochs", 50),
        *(("alpha_betas", value) for value in ((1.0, 0.9), (0.5, -0.1), (0.5, math.nan))),
    ],
)
def test_ranges(field: str, value: Any):
    with pytest.raises(InvalidValueError, match=field) as info:
        SearchConfig(**{field: value})
    assert "\n" not in str(info.value)


def test_lr_must_be_positive():
    for lr in (0.0, math.inf, math.nan):
        with pytest.raises(InvalidValueError, match="lr must be positive and finite"):
            SearchConfig(lr=lr, lr_min=0.0)


def test_a_low_lr_takes_the_default_of_lr_min_down_with_it():
    assert SearchConfig.for_dataset("cifar10", lr=5e-4).lr_min == 5e-4
    assert SearchConfig.for_dataset("cifar10", lr=0.1).lr_min == 0.001
    with pytest.raises(InvalidValueError, match="lr_min must lie in"):
        SearchConfig.for_dataset("cifar10", lr=5e-4, lr_min=0.001)


@pytest.mark.parametrize("field", ["dataset", "algo"])
def test_names_must_be_strings(field: str):
    with pytest.raises(InvalidValueError, match=rf"{field} must be of type str, got \[\]"):
        SearchConfig.for_dataset(**{field: []})


@pytest.mark.parametrize("field", ["drop_path", "label_smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_train_ranges(field: str, value: float):
    with pytest.raises(InvalidValueError, match=rf"{field} must lie in \[0, 1\)"):
        TrainConfig(**{field: value})
    with pytest.raises(InvalidValueError, match="auxiliary_weight must be at least 0"):
        TrainConfig(auxiliary_weight=-0.1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inner", "seconds", "unknown inner 'seconds'; did you mean 'second'"),
        ("sigma_schedule", "cos", "unknown sigma_schedule 'cos'"),
        ("amp", "fp16", "unknown amp 'fp16'; did you mean 'bf16'"),
        ("inner_amp", "auto", "unknown inner_amp 'auto'"),
        ("compile", "yes", "unknown compile 'yes'"),
        ("channels_last", "of", "unknown channels_last 'of'; did you mean 'off'"),
        ("cpu_kernels", "yes", "unknown cpu_kernels 'yes'"),
    ],
)
def test_choices(field: str, value: str, message: str):
    with pytest.raises(UnknownNameError, match=message):
        SearchConfig(**{field: value})


@pytest.mark.parametrize("field", ["amp", "compile", "channels_last"])
def test_choices_of_both_kinds_of_run(field: str):
    for cls in (SearchConfig, TrainConfig):
        assert getattr(cls(), field) == "auto"
        with pytest.raises(UnknownNameError, match=f"unknown {field} 'no'"):
            cls(**{field: "no"})
        with pytest.raises(InvalidValueError, match=f"{field} must be of type str, got True"):
            cls(**{field: True})


def test_configs_are_immutable_and_replace_copies():
    config = SearchConfig(dataset="cifar10")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]
    changed = config.replace(epochs=20)
    assert (config.epochs, changed.epochs) == (50, 20)
    assert changed.replace(epochs=50) == config
    with pytest.raises(ZooptNasError, match="warmup_epochs must be less than epochs"):
        config.replace(epochs=10)


# --- Defaults ------------------------------------------------------------------------------------


def test_search_defaults_are_the_papers():
    config = SearchConfig.for_dataset("cifar10")
    paper = {
        "epochs": 50,
        "batch_size": 64,
        "init_channels": 16,
        "n_cells": 8,
        "lr": 0.025,
        "lr_min": 0.001,
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "grad_clip": 5.0,
        "cutout": 0,
        "train_portion": 0.5,
        "warmup_epochs": 10,
        "inner": "sgd",
        "inner_steps": 10,
        "val_batches": 1,
        "alpha_lr": 3e-4,
        "alpha_betas": (0.5, 0.999),
        "alpha_weight_decay": 1e-3,
    }
    assert {name: getattr(config, name) for name in paper} == paper
    assert config.algo == "mgs"
    assert config.solver["n_samples"] == 4
    assert SearchConfig.for_dataset("imagenet").batch_size == 256


def test_search_on_digits_is_small():
    config = SearchConfig.for_dataset()
    assert config.dataset == "digits"
    for name in ("epochs", "init_channels", "n_cells", "inner_steps"):
        assert getattr(config, name) < getattr(SearchConfig(dataset="cifar10"), name), name
    assert config.warmup_epochs == config.epochs // 5


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (4, 0), (5, 1), (12, 2), (50, 10)])
def test_warm_up_is_a_fifth(epochs: int, warmup: int):
    assert SearchConfig.for_dataset("cifar10", "rs", epochs=epochs).warmup_epochs == warmup


@pytest.mark.parametrize("algo", ["darts1", "darts2"])
def test_gradient_baselines_have_no_warm_up(algo: str):
    config = SearchConfig.for_dataset("cifar10", algo)
    assert config.algo == algo
    assert config.warmup_epochs == 0
    assert config.solver == {}
    assert SearchConfig.for_dataset("cifar10", algo, warmup_epochs=3).warmup_epochs == 3


def test_overrides_win_and_solver_options_merge():
    config = SearchConfig.for_dataset("digits", "rs", epochs=3, solver={"smoothing": 0.5})
    assert config.epochs == 3
    assert config.solver == {"n_samples": 4, "learning_rate": 0.5, "smoothing": 0.5}
    assert SearchConfig.for_dataset("digits", "rs").solver["smoothing"] == 0.1  # not shared


@pytest.mark.parametrize("field", ["epochs", "solver"])
def test_for_dataset_checks_types_first(field: str):
    with pytest.raises(InvalidValueError, match=f"{field} must be of type"):
        SearchConfig.for_dataset("digits", **{field: "x"})


def test_train_defaults():
    paper = {
        "epochs": 600,
        "batch_size": 96,
        "init_channels": 36,
        "n_cells": 20,
        "lr": 0.025,
        "lr_min": 0.0,
        "cutout": 16,
        "auxiliary": True,
        "auxiliary_weight": 0.4,
        "drop_path": 0.2,
        "label_smoothing": 0.0,
        "genotype": "DARTS_V1",
    }
    config = TrainConfig.for_dataset("cifar10", "DARTS_V1")
    assert {name: getattr(config, name) for name in paper} == paper
    imagenet = TrainConfig.for_dataset("imagenet", "DARTS_V2", epochs=3)
    assert (imagenet.epochs, imagenet.n_cells, imagenet.init_channels) == (3, 14, 48)
    assert (imagenet.label_smoothing, imagenet.weight_decay) == (0.1, 3e-5)
    digits = TrainConfig.for_dataset("digits", "DARTS_V2")
    for name in ("epochs", "init_channels", "n_cells", "cutout", "drop_path"):
        assert getattr(digits, name) < getattr(config, name), name

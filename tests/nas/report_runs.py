"""Run folders with given numbers, written without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
MACHINE = {"processor": "Test Chip", "cores": 2, "device": "cpu"}


def write_search(
    path: Path,
    config: SearchConfig,
    *,
    true: tuple[float, float, float] | None = None,
    n_epochs: int | None = None,
    machine: dict[str, Any] | None = MACHINE,
) -> Path:
    """Write a search of 10 s an epoch; ``n_epochs`` leaves it unfinished."""
    folder = RunFolder.create(path, config, machine=machine)
    on_table = config.space == "nasbench201"
    genotype = {"nasbench201": CELL} if on_table else GENOTYPES["DARTS_V2"].to_dict()
    names = ("true_cifar10", "true_cifar100", "true_imagenet16")
    known = {} if true is None else dict(zip(names, true, strict=True))
    for epoch in range(config.epochs if n_epochs is None else n_epochs):
        row = {"epoch": epoch, "train_loss": 1.0, "val_accuracy": 0.5, "skip_connections": 2}
        folder.append("architectures.jsonl", {"epoch": epoch, "genotype": genotype})
        folder.append("metrics.jsonl", {**row, **known, "seconds": 10.0})
    if n_epochs is None:
        folder.write("genotype.json", json.dumps(genotype))
    return path


def write_training(path: Path, config: TrainConfig, accuracy: float) -> Path:
    """Write a finished retraining with 3,300,000 parameters."""
    folder = RunFolder.create(path, config, machine=MACHINE)
    folder.append("metrics.jsonl", {"epoch": 0, "train_loss": 1.0, "seconds": 5.0})
    result = {"test_accuracy": accuracy, "n_parameters": 3_300_000, "n_multiply_adds": 528_000_000}
    folder.write("result.json", json.dumps(result))
    return path


def write_both(
    path: Path, config: SearchConfig, accuracy: float, protocol: str = "rdarts", **train: Any
) -> Path:
    """Write a search with its retraining on the same data."""
    write_search(path, config)
    fields = {"space": config.space, "seed": config.seed, **train}
    genotype = str(GENOTYPES["DARTS_V2"])
    retraining = TrainConfig.for_dataset(config.dataset, genotype, protocol=protocol, **fields)
    write_training(path / "train", retraining, accuracy)
    return path


def searching(algo: str = "mgs", dataset: str = "cifar10", **settings) -> SearchConfig:
    return SearchConfig.for_dataset(dataset, algo, **{"space": "s1", **settings})


def write_three_seeds(folder: Path) -> Path:
    for seed, accuracy in enumerate((0.97, 0.96, 0.974)):
        write_both(folder / str(seed), searching(seed=seed), accuracy)
    return folder

"""What a run keeps of objects that it was given, and what it takes in place of a name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.errors import DataError, InvalidValueError, RunError, UnknownNameError
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.darts_space import cell_edges
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.settings.config import SearchConfig

CELL = (("skip_connect", "sep_conv_3x3"),) * len(cell_edges(1))
SPACE = nas.DartsSpace("mine", normal=CELL, reduce=CELL, n_nodes=1)
CONFIG = SearchConfig.for_dataset("dots", space="mine", device="cpu")


def load_dots(data_dir: Path, split: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(12 if split == "train" else 6) % 2
    return np.arange(len(labels) * 16, dtype=np.uint8).reshape(-1, 4, 4, 1), labels


DOTS = nas.DatasetSpec(
    name="dots",
    n_classes=2,
    in_channels=1,
    image_size=4,
    mean=None,
    std=None,
    augmentation=nas.Augmentation(),
    load=load_dots,
)


def loaded(**changes: object) -> nas.Dataset:
    data = nas.load_dataset(DOTS, data_dir=Path(), device=torch.device("cpu"))
    return dataclasses.replace(data, **changes)


# --- the space -----------------------------------------------------------------------------------


def test_a_run_folder_keeps_a_space_that_has_no_name_here(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG, space=SPACE)
    assert RunFolder.open(folder.path).space() == SPACE
    for text, message in (
        ("{}", "space must be of type DartsSpace or NasBench201Space, got None"),
        ('{"type": "DartsSpace"}', "space must have the fields type, name, normal"),
    ):
        (folder.path / "space.json").write_text(text)
        with pytest.raises(RunError, match=f"space.json: {message}"):
            folder.space()


def test_a_run_folder_without_one_has_the_space_of_its_config(tmp_path):
    assert RunFolder.create(tmp_path / "s2", CONFIG.replace(space="s2")).space() == SPACES["s2"]
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    assert not (folder.path / "space.json").exists()
    with pytest.raises(UnknownNameError, match="unknown space 'mine'"):
        folder.space()


# --- the images ----------------------------------------------------------------------------------


def test_a_spec_is_loaded_as_the_settings_say():
    setup = prepare(CONFIG.replace(n_train=5, image_size=8), ("train", "test"), dataset=DOTS)
    data = setup.dataset
    assert (len(data.train), len(data.test), data.image_size) == (5, 6, 8)
    record = DataRecord.of(data)
    assert record.fingerprints == DataRecord.of(loaded()).fingerprints
    again = prepare(CONFIG.replace(n_train=7), dataset=DOTS, record=record).dataset
    assert (again.mean, len(again.train)) == (data.mean, 7)


def test_images_that_were_loaded_are_used_as_they_are():
    data = loaded()
    assert prepare(CONFIG.replace(n_train=12, image_size=4), dataset=data).dataset == data


def test_images_that_were_made_by_hand_get_the_same_fingerprint():
    by_hand = loaded(fingerprints={})
    setup = prepare(CONFIG, ("train", "test"), dataset=by_hand)
    assert setup.dataset.fingerprints == loaded().fingerprints
    by_hand.train.images[0, 0, 0, 0] += 1
    with pytest.raises(DataError, match="dataset dots: the train images or labels have changed"):
        prepare(CONFIG, dataset=by_hand, record=DataRecord.of(loaded()))


def test_a_retraining_needs_test_images():
    with pytest.raises(InvalidValueError, match="dataset must have test images, got none"):
        prepare(CONFIG, ("train", "test"), dataset=loaded(test=None))


def test_a_run_that_goes_on_asks_for_its_images():
    with pytest.raises(DataError, match=r"dataset dots of the run has no loader here: .*dataset="):
        prepare(CONFIG, record=DataRecord.of(loaded()))
    with pytest.raises(UnknownNameError, match="unknown dataset 'dots'"):
        prepare(CONFIG)

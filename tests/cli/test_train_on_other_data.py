"""``train RUN`` says what it takes from RUN, and on other data takes nothing of the data."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

SIZE = ("--batch-size", 16, "--init-channels", 2, "--n-cells", 1)
SMALL = ("--epochs", 1, "--no-auxiliary", *SIZE)


@pytest.fixture
def searched(cli, npz, tmp_path):
    """A search at another image size than its data have, with settings of its own."""
    run = tmp_path / "run"
    of_data = ("--dataset", npz, "--image-size", 12, "--seed", 5, "--data-dir", tmp_path / "here")
    found = cli("search", "--algo", "random", *of_data, *SIZE, "--device", "cpu", "--run-dir", run)
    assert (found.code, found.err) == (0, "")
    return run


def config_of(run) -> dict:
    return tomllib.loads((run / "config.toml").read_text())


def test_on_the_same_data_everything_is_taken_and_said(cli, npz, searched, tmp_path):
    trained = cli("train", searched, *SMALL, "--run-dir", tmp_path / "train")
    assert (trained.code, trained.err) == (0, "")
    assert trained.out.splitlines()[0] == (
        f"from {searched}: the genotype, dataset {npz}, seed 5, data_dir {tmp_path / 'here'}, "
        "image_size 12, device cpu"
    )
    config = config_of(tmp_path / "train")
    assert (config["image_size"], config["seed"]) == (12, 5)


def test_images_that_have_changed_since_the_search_are_noticed(cli, npz, tmp_path):
    path, run = tmp_path / "mine.npz", tmp_path / "run"
    path.write_bytes(npz.read_bytes())
    how = ("--algo", "random", "--dataset", path, *SIZE, "--device", "cpu", "--run-dir", run)
    assert cli("search", *how).code == 0
    notice = f"the training images or labels have changed since {run}"
    trained = cli("train", run, *SMALL, "--run-dir", tmp_path / "same")
    assert notice not in trained.out
    arrays = dict(np.load(path))
    arrays["y_train"] = arrays["y_train"][::-1]
    np.savez(path, **arrays)
    trained = cli("train", run, *SMALL, "--run-dir", tmp_path / "changed")
    assert (trained.code, trained.err) == (0, "")
    assert trained.out.splitlines()[-2:] == [notice, f"run folder: {tmp_path / 'changed'}"]


def test_on_other_data_their_own_defaults_hold(cli, searched, tmp_path):
    rng = np.random.default_rng(0)
    other = tmp_path / "other.npz"
    images = rng.integers(0, 256, (32, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(32) % 2
    np.savez(other, x_train=images, y_train=labels, x_test=images, y_test=labels)
    trained = cli("train", searched, "--dataset", other, *SMALL, "--run-dir", tmp_path / "train")
    assert (trained.code, trained.err) == (0, "")
    assert trained.out.splitlines()[0] == (
        f"from {searched}: the genotype, device cpu; "
        f"not from it, for {other}: seed 0, images as they are"
    )
    config = config_of(tmp_path / "train")
    assert "image_size" not in config
    assert (config["dataset"], config["seed"], config["data_dir"]) == (str(other), 0, "data")
    assert json.loads((tmp_path / "train" / "data.json").read_text())["image_size"] == 6


def test_a_data_set_in_a_config_file_counts_as_well(cli, searched, tmp_path):
    (tmp_path / "train.toml").write_text('dataset = "digits"\nseed = 3\nn_train = 32\n')
    how = ("--config", tmp_path / "train.toml", *SMALL)
    trained = cli("train", searched, *how, "--run-dir", tmp_path / "train")
    assert trained.out.splitlines()[0] == (
        f"from {searched}: the genotype, device cpu; "
        "not from it, for digits: seed 3, images as they are"
    )
    config = config_of(tmp_path / "train")
    assert (config["dataset"], config["seed"], "image_size" in config) == ("digits", 3, False)


def test_json_is_json_alone(cli, searched, tmp_path):
    trained = cli("train", searched, *SMALL, "--run-dir", tmp_path / "train", "--json")
    assert json.loads(trained.out)["run_dir"] == str(tmp_path / "train")

"""A run that goes on has the settings and the data with which it began, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stopping import StopAt

from zoopt_nas import nas
from zoopt_nas.errors import DataError, RunError, RunInterrupted, ZooptNasError
from zoopt_nas.nas.analyses.diagnose import run_condition_numbers
from zoopt_nas.nas.analyses.landscape.compute import compute_landscape
from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.retraining.retrain import resume_training, run_training
from zoopt_nas.nas.runs.folder import MAY_CHANGE, RunFolder
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.settings.config import SearchConfig

CPU = torch.device("cpu")


def is_refused(go_on: Any, message: str, error: type[ZooptNasError] = RunError) -> None:
    with pytest.raises(error, match=message) as caught:
        go_on()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("space", '"small_s3"', '"small_s4"'),
        ("init_channels", "2", "3"),
        ("train_portion", "0.5", "0.25"),
        ("batch_size", "16", "8"),
        ("seed", "0", "1"),
        ("epochs", "3", "4"),
        ("lr", "0.025", "0.05"),
        ("inner_momentum", "true", "false"),
        ("n_samples", "2", "3"),
    ],
)
def test_a_resume_with_another_setting_names_it_and_both_values(name, old, new, stopped):
    config = stopped / "config.toml"
    text = config.read_text()
    assert f"\n{name} = {old}\n" in text
    config.write_text(text.replace(f"\n{name} = {old}\n", f"\n{name} = {new}\n"))
    if name == "n_samples":
        name, old, new = "solver", r"\{.*'n_samples': 2\}", r"\{.*'n_samples': 3\}"
    old, new = (value.title() if value in ("true", "false") else value for value in (old, new))
    old, new = old.strip('"'), new.strip('"')
    message = rf"does not belong to its config\.toml: {name} must stay {old}, got {new}; set it"
    is_refused(lambda: resume_search(stopped), message)


def test_every_setting_of_a_run_stays_but_those_of_its_execution(stopped):
    """A new setting is refused until someone decides that it may change."""
    state = RunFolder(stopped).load_checkpoint(CPU)
    config = RunFolder(stopped).config(SearchConfig)
    other = {"threads": 1, "image_size": 8, "n_train": 64, "update_period": 5, "inner_lr": 0.1}
    other |= {"paths": "fair", "weights": "fresh", "table": "a.csv", "start": "DARTS_V1"}
    other |= {"relaxation": "sigmoid", "supernet": "runs/a run", "candidate_devices": "cpu"}
    other |= {"skip_dropout": (0.1, 0.2, 0.3)}
    assert set(MAY_CHANGE) == {
        *("device", "threads", "amp", "compile", "channels_last", "cpu_kernels"),
        *("candidates_per_batch", "candidate_devices"),
        *("dataset", "data_dir", "download", "table"),
    }
    for name, value in vars(config).items():
        if name in ("surrogate", "extrapolate"):
            continue  # they need fresh weights: test_cell_search.py
        if isinstance(value, bool):
            changed = not value
        elif isinstance(value, str):
            others = {"auto": "off", "cosine": "constant", "sgd": "first", "loss": "accuracy"}
            changed = others.get(value, "cpu:0")
            changed = "bf16" if name == "inner_amp" else changed
        elif isinstance(value, dict):
            changed = {"n_samples": 7}
        elif isinstance(value, tuple):
            changed = (0.25, 0.5)
        else:
            changed = value / 2 + 1e-4 if isinstance(value, float) else (value or 0) + 1
        changed = other.get(name, changed)
        text = config.replace(**{name: changed}).to_toml()
        RunFolder(stopped).save_checkpoint({**state, "config": text})
        if name in MAY_CHANGE:
            assert RunFolder(stopped).load_checkpoint(CPU) is not None
        else:
            with pytest.raises(RunError, match=f"{name} must stay .* set it back, or start a new"):
                RunFolder(stopped).load_checkpoint(CPU)


def test_a_run_may_go_on_with_other_threads_and_a_data_set_that_was_moved(
    stopped, search_config, tmp_path
):
    config = RunFolder(stopped).config(SearchConfig)
    moved = shutil.copy(config.dataset, tmp_path / "moved.npz")
    changed = config.replace(dataset=str(moved), threads=1, candidates_per_batch=1)
    (stopped / "config.toml").write_text(changed.to_toml())
    result = resume_search(stopped)
    assert len(result.metrics) == 3


@pytest.mark.parametrize("saved", ["kind = 1", "not toml", 3])
def test_a_checkpoint_with_a_damaged_config_is_refused(saved, stopped):
    state = RunFolder(stopped).load_checkpoint(CPU)
    RunFolder(stopped).save_checkpoint({**state, "config": saved})
    is_refused(lambda: resume_search(stopped), "does not belong to its config")


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    rng = np.random.default_rng(5)
    arrays = {
        "x_train": rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8),
        "y_train": np.arange(64) % 3,
        "x_test": rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8),
        "y_test": np.arange(24) % 3,
    }
    np.savez(path, **{**arrays, **changes})
    return path


def changed_npz(path: Path, name: str) -> None:
    """One pixel or one label of a split is another."""
    arrays = dict(np.load(path))
    first = int(arrays[name].flat[0])
    arrays[name].flat[0] = (first + 1) % (3 if name[0] == "y" else 256)
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_a_search_does_not_go_on_with_other_data(name, search_config, tmp_path):
    path, run = write_npz(tmp_path / "mine.npz"), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_search(search_config("gld", dataset=str(path)), run_dir=run, observer=StopAt(3))
    changed_npz(path, name)
    before = {entry.name: entry.read_bytes() for entry in run.iterdir()}
    message = rf"dataset {path}: the train images or labels have changed since the run began"
    settings = LandscapeSettings(step=1.0, inner=("first",), paths=())
    for go_on in (
        lambda: resume_search(run),
        lambda: compute_landscape(run, settings),
        lambda: run_condition_numbers(RunFolder(run), n_directions=1),
    ):
        is_refused(go_on, message, DataError)
    assert before == {entry.name: entry.read_bytes() for entry in run.iterdir()}
    changed_npz(path, "x_test")  # of which a search sees nothing
    write_npz(path, x_test=np.load(path)["x_test"])
    assert len(resume_search(run).metrics) == 3


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_a_retraining_does_not_go_on_with_other_data(name, train_config, tmp_path):
    path, run = write_npz(tmp_path / "mine.npz"), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_training(train_config(dataset=str(path)), run_dir=run, observer=StopAt(6))
    changed_npz(path, name)
    split = name[2:]
    is_refused(
        lambda: resume_training(run), f"the {split} images or labels have changed", DataError
    )


def test_the_statistics_of_a_run_stay(train_config, tmp_path, monkeypatch):
    """Also where the same files are decoded a little differently: on another machine."""
    path, run = write_npz(tmp_path / "mine.npz"), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run_training(train_config(dataset=str(path)), run_dir=run, observer=StopAt(6))
    pixels = np.load(path)["x_train"] / 255
    record = RunFolder(run).data()
    assert record.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert record.std == pytest.approx((pixels.std(),), rel=1e-12)
    seen = []
    transform = nas.Dataset.transform
    monkeypatch.setattr(
        nas.Dataset, "transform", lambda self, **kw: seen.append(self) or transform(self, **kw)
    )
    monkeypatch.setattr(
        "zoopt_nas.nas.data.loading.channel_statistics", lambda images: ((0.9,), (9.0,))
    )
    resume_training(run)
    assert {(dataset.mean, dataset.std) for dataset in seen} == {(record.mean, record.std)}


def test_an_export_has_the_statistics_of_the_run_and_needs_no_data(train_config, tmp_path):
    path, run = write_npz(tmp_path / "mine.npz"), tmp_path / "run"
    run_training(train_config(dataset=str(path), epochs=1), run_dir=run)
    pixels = np.load(path)["x_train"] / 255
    write_npz(path, x_train=np.zeros((64, 8, 8, 1), np.uint8))
    facts = nas.export_network(run, "python").facts
    assert facts.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert facts.std == pytest.approx((pixels.std(),), rel=1e-12)
    path.unlink()
    assert nas.export_network(run, "python").facts == facts


def make_folder(root: Path) -> None:
    rng = np.random.default_rng(6)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.bmp")


def fingerprints(path: Path, **options: Any) -> dict[str, str]:
    return dict(load_dataset(str(path), data_dir=path.parent, device=CPU, **options).fingerprints)


def test_the_fingerprint_of_a_folder_is_of_names_and_bytes(tmp_path):
    root = tmp_path / "pets"
    make_folder(root)
    first = fingerprints(root)
    assert set(first) == {"train", "test"}
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    (moved / "train" / "cat" / "._0.bmp").write_bytes(b"hidden")
    assert fingerprints(moved) == fingerprints(moved, image_size=4, n_train=3) == first
    image = root / "train" / "dog" / "1.bmp"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # of the same size
    image.write_bytes(content)
    assert fingerprints(root)["train"] != first["train"]
    assert fingerprints(root)["test"] == first["test"]
    (moved / "test" / "cat" / "1.bmp").rename(moved / "test" / "cat" / "2.bmp")
    assert fingerprints(moved)["test"] != first["test"]


def test_the_fingerprint_of_an_npz_is_of_its_pixels_and_labels(tmp_path):
    first = fingerprints(write_npz(tmp_path / "mine.npz"))
    arrays = dict(np.load(tmp_path / "mine.npz"))
    again = tmp_path / "again.npz"
    # Another file, with the same images in another form.
    np.savez_compressed(
        again,
        **{**arrays, "x_train": arrays["x_train"].transpose(0, 3, 1, 2) / 255},
        more=np.zeros(3),
    )
    assert fingerprints(again) == fingerprints(again, image_size=16, n_train=9) == first
    for name in arrays:
        write_npz(again)
        changed_npz(again, name)
        split = name[2:]
        now = fingerprints(again)
        assert {key for key in now if now[key] != first[key]} == {split}


def test_records_survive_their_file(npz, tmp_path):
    record = DataRecord.of(load_dataset(str(npz), data_dir=tmp_path, device=CPU))
    assert DataRecord.from_json(record.to_json()) == record
    named = DataRecord(2, 3, 8, (0.1, 1 / 3, 0.3), (1.0, 2.0, 0.1), ("a", "b"), {"train": "x"})
    assert DataRecord.from_json(named.to_json()) == named


@pytest.mark.parametrize(
    "change",
    [
        {"mean": ["a"]},
        {"mean": [float("nan")]},
        {"mean": []},
        {"std": [0.0]},
        {"std": None},
        {"n_classes": 0},
        {"image_size": "8"},
        {"class_names": "ab"},
        {"class_names": [1]},
        {"fingerprints": {"train": 3}},
        {"fingerprints": None},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_one_line(change, stopped):
    path = stopped / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    is_refused(lambda: resume_search(stopped), r"data\.json: not the record of a data set")


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 10**5, "\xff"])
def test_a_record_of_something_else_is_one_line(text, stopped):
    (stopped / "data.json").write_text(text, encoding="latin1")
    is_refused(lambda: resume_search(stopped), r"data\.json")


def test_a_run_without_a_record_is_refused(stopped):
    (stopped / "data.json").unlink()
    is_refused(lambda: resume_search(stopped), r"has no data\.json.*; start a new run")
    is_refused(lambda: nas.export_network(stopped, "python"), r"has no data\.json")

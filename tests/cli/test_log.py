"""``--log tensorboard``."""

from __future__ import annotations

from pathlib import Path

import pytest

# TensorBoard and protobuf import modules that warn of their end.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TINY = ("--n-train", 64, "--epochs", 2, "--init-channels", 2, "--n-cells", 1, "--no-auxiliary")


def epochs_logged(run: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [e.step for e in EventAccumulator(str(run / "tensorboard")).Reload().Scalars(name)]


def test_a_search_and_a_retraining_are_logged_and_go_on_logging(cli, tmp_path):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert cli("search", *TINY[:-1], "--run-dir", run, "--log", "tensorboard").code == 0
    assert epochs_logged(run, "val_loss") == [0, 1]
    train = tmp_path / "train"
    assert cli("train", run, *TINY, "--run-dir", train, "--log", "tensorboard").code == 0
    assert epochs_logged(train, "train_loss") == [0, 1]
    # A run whose last epoch was lost repeats it, and logs it without being asked again.
    metrics = run / "metrics.jsonl"
    for name in ("genotype.json", "checkpoint.pt"):
        (run / name).unlink()
    metrics.write_text("")
    (run / "architectures.jsonl").write_text("")
    assert cli("search", "--resume", run).code == 0
    assert epochs_logged(run, "val_loss") == [0, 1]
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_another_log_is_refused(refused):
    assert "log must be tensorboard, got wandb" in refused("search", *TINY[:-1], "--log", "wandb")

"""A run goes on on another kind of device, whose generators have another kind of state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import StopAt

from zoopt_nas.errors import RunInterrupted
from zoopt_nas.nas.retraining.retrain import resume_training, run_training
from zoopt_nas.nas.runs.folder import METRICS, RunFolder
from zoopt_nas.nas.search.run import resume_search, run_search

CPU = torch.device("cpu")
ON_GPU = torch.arange(16, dtype=torch.uint8)  # a seed and an offset
# Generators that live on the device of the run, by their names in a checkpoint. Those of the
# batches, the paths and the seeds live on the CPU.
ON_DEVICE = {"own": ("noise", "drop_path"), "updater": ("noise", "samples")}
ON_CPU = ("gdas", "rome")  # methods that draw on the CPU
ALGOS = {
    "gld": {},
    "gdas": {},
    "rome": {},
    "drnas": {},
    "snas": {},
    "sdarts_rs": {},
    "p_darts": {"warmup_epochs": 0, "skip_dropout": (0.3, 0.4, 0.7)},
    "adaptive_gld": {"paths": "fair", "weights": "fresh", "surrogate": True},
}


def as_of_a_gpu(state: dict[str, Any], algo: str = "") -> None:
    """Change a checkpoint of a CPU to one that a GPU would have written."""
    own = state["own"]
    for name, part in (("own", own), ("updater", own.get("updater", {}))):
        for key in ON_DEVICE[name]:
            draws_on_cpu = algo in ON_CPU and name == "updater"
            if isinstance(part.get(key), torch.Tensor) and not draws_on_cpu:
                part[key] = ON_GPU
    if "meta" in own.get("updater", {}):
        text = own["updater"]["meta"].replace('"device": "cpu"', '"device": "cuda:0"')
        meta = json.loads(text)
        for generator in meta["generators"]:
            generator["state"] = bytes(ON_GPU.tolist()).hex()
        own["updater"]["meta"] = json.dumps(meta)


def stop(run: Any, config: Any, folder: Path) -> None:
    with pytest.raises(RunInterrupted):
        run(config, run_dir=folder, observer=StopAt(3))


@pytest.mark.parametrize("algo", ALGOS)
def test_a_search_of_a_gpu_goes_on_on_a_cpu(algo, search_config, tmp_path):
    config = search_config(algo, **ALGOS[algo])
    stop(run_search, config, tmp_path / "run")
    state = RunFolder(tmp_path / "run").load_checkpoint(CPU)
    as_of_a_gpu(state, algo)
    RunFolder(tmp_path / "run").save_checkpoint(state)
    result = resume_search(tmp_path / "run")
    assert [row["epoch"] for row in result.metrics] == [0, 1, 2]
    assert result.alpha.device == CPU


def test_a_retraining_of_a_gpu_goes_on_on_a_cpu(train_config, tmp_path):
    stop(run_training, train_config(), tmp_path / "run")
    state = RunFolder(tmp_path / "run").load_checkpoint(CPU)
    as_of_a_gpu(state)
    RunFolder(tmp_path / "run").save_checkpoint(state)
    resume_training(tmp_path / "run")
    rows = RunFolder(tmp_path / "run").rows(METRICS)
    assert [row["epoch"] for row in rows] == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_search_goes_on_on_a_real_device(first, then, algo, search_config, tmp_path):
    config = search_config(algo, device=first, **ALGOS[algo])
    stop(run_search, config, tmp_path / "run")
    (tmp_path / "run/config.toml").write_text(config.replace(device=then).to_toml())
    result = resume_search(tmp_path / "run")
    assert [row["epoch"] for row in result.metrics] == [0, 1, 2]

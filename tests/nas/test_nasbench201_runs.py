"""NAS-Bench-201 from a search to an exported network: runs, resuming, exports, command line."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from stopping import StopAt
from zoopt_nas_cli.main import run as run_command

from zoopt_nas import nas
from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas.exports import formats as export_formats
from zoopt_nas.nas.networks import standalone, standalone_nasbench201

# Every operation, and an edge without one.
CELL = "|avg_pool_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
DIGITS = {"n_train": 128, "epochs": 2, "init_channels": 4, "device": "cpu"}
PIXELS = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(7)) / 255
# Two sums of at most a few thousand float32 terms of size 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


# --- Settings ------------------------------------------------------------------------------------


def test_defaults_of_a_search():
    config = nas.SearchConfig.for_dataset("cifar10", "darts1", space="nasbench201")
    assert (config.n_cells, config.init_channels, config.epochs) == (15, 16, 50)
    assert (config.weight_decay, config.nesterov) == (5e-4, True)
    others = nas.SearchConfig.for_dataset("cifar10", "darts1", space="s3")
    assert (others.n_cells, others.weight_decay, others.nesterov) == (8, 3e-4, False)
    digits = nas.SearchConfig.for_dataset("digits", space="nasbench201")
    assert (digits.n_cells, digits.nesterov) == (3, True)
    asked = nas.SearchConfig.for_dataset(
        "cifar10", space="nasbench201", n_cells=6, nesterov=False, weight_decay=0.0
    )
    assert (asked.n_cells, asked.nesterov, asked.weight_decay) == (6, False, 0.0)


def test_the_retraining_protocol():
    published = {
        **{"epochs": 200, "batch_size": 256, "init_channels": 16, "n_cells": 15, "lr": 0.1},
        **{"lr_min": 0.0, "schedule": "cosine", "weight_decay": 5e-4, "momentum": 0.9},
        **{"nesterov": True, "cutout": 0, "drop_path": 0.0, "auxiliary": False},
    }
    by_name = nas.TrainConfig.for_dataset("cifar10", CELL, protocol="nasbench201")
    for config in (by_name, nas.TrainConfig.for_dataset("cifar10", CELL)):
        assert {name: getattr(config, name) for name in published} == published
    digits = nas.TrainConfig.for_dataset("digits", CELL)
    assert (digits.epochs, digits.n_cells, digits.nesterov) == (20, 3, True)
    assert not nas.TrainConfig.for_dataset("cifar10", "DARTS_V2").nesterov


# --- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished retraining."""
    run = tmp_path_factory.mktemp("nasbench201") / "run"
    nas.run_training(nas.TrainConfig.for_dataset("digits", CELL, **DIGITS), run_dir=run)
    return run


def network_of(run) -> nas.NasBench201Network:
    state = torch.load(run / "weights.pt", weights_only=True)["network"]
    network = nas.NasBench201Network(nas.load_architecture(CELL), 10, 4, 3, in_channels=1)
    network.load_state_dict(state)
    return network.eval()


def test_a_retraining_goes_on_bit_for_bit(trained, tmp_path, without_seconds):
    config = nas.TrainConfig.for_dataset("digits", CELL, **DIGITS)
    with pytest.raises(RunInterrupted):
        nas.run_training(config, run_dir=tmp_path / "cut", observer=StopAt(3))
    resumed = nas.resume_training(tmp_path / "cut")
    whole = json.loads((trained / "result.json").read_text())
    assert (resumed.test_loss, resumed.genotype) == (whole["test_loss"], CELL)
    folders = [nas.RunFolder.open(run) for run in (trained, tmp_path / "cut")]
    rows = [without_seconds(folder.rows("metrics.jsonl")) for folder in folders]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    states = [
        torch.load(run / "weights.pt", weights_only=True)["network"]
        for run in (trained, tmp_path / "cut")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert folders[0].genotype() == nas.load_architecture(CELL)
    assert whole["n_parameters"] == nas.count_parameters(network_of(trained))


def test_a_retraining_learns(trained):
    first, last = nas.RunFolder.open(trained).rows("metrics.jsonl")
    assert last["train_loss"] < first["train_loss"]


def test_a_search_goes_on_bit_for_bit(search_config, tmp_path, without_seconds):
    config = search_config("gld", space="nasbench201", n_cells=3)
    whole = nas.run_search(config, run_dir=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        nas.run_search(config, run_dir=tmp_path / "cut", observer=StopAt(3))
    resumed = nas.resume_search(tmp_path / "cut")
    assert torch.equal(resumed.alpha, whole.alpha)
    assert resumed.genotype == whole.genotype
    assert without_seconds(resumed.metrics) == without_seconds(whole.metrics)
    folder = nas.RunFolder.open(tmp_path / "cut")
    assert (folder.genotype(), folder.space()) == (whole.genotype, nas.SPACES["nasbench201"])
    stored = folder.rows("architectures.jsonl")[-1]["genotype"]
    assert stored == {"nasbench201": str(whole.genotype)}


def test_a_search_in_a_space_of_ones_own_goes_on_in_it(search_config, tmp_path):
    space = nas.NasBench201Space("own", ("skip_connect", "max_pool_3x3", "nor_conv_1x1"))
    config = search_config("darts1", space="own", n_cells=3, epochs=2)
    with pytest.raises(RunInterrupted):
        nas.run_search(config, run_dir=tmp_path / "run", observer=StopAt(1), space=space)
    resumed = nas.resume_search(tmp_path / "run")
    assert resumed.alpha.shape == (18,)
    assert set(resumed.genotype.operations) <= set(space.operations)
    assert nas.RunFolder.open(tmp_path / "run").space() == space


def test_sizes_that_do_not_suit_are_refused_before_the_run(search_config, tmp_path):
    with pytest.raises(InvalidValueError, match="n_cells must be a multiple of 3"):
        nas.run_search(
            search_config("darts1", space="nasbench201", n_cells=4), run_dir=tmp_path / "search"
        )
    config = nas.TrainConfig.for_dataset("digits", CELL, **{**DIGITS, "n_cells": 4})
    with pytest.raises(InvalidValueError, match="n_cells must be a multiple of 3"):
        nas.run_training(config, run_dir=tmp_path / "train")
    with pytest.raises(InvalidValueError, match="auxiliary must be False with a cell"):
        nas.run_training(config.replace(n_cells=3, auxiliary=True), run_dir=tmp_path / "train")
    assert not list(tmp_path.iterdir())


# --- Exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", standalone.OPERATIONS)
@pytest.mark.parametrize("size", [9, 8])
def test_the_standalone_network_is_the_network(operation: str, size: int):
    cell = nas.NasBench201Genotype((operation, "skip_connect", *(operation,) * 4))
    torch.manual_seed(0)
    network = nas.NasBench201Network(cell, 5, 4, 6, in_channels=2).double()
    images = torch.randn(32, 2, size, size, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # so that one batch gives the statistics
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.5)
    network(images)
    network.eval()
    alone = standalone_nasbench201.Network(cell.operations, 2, 5, 4, 6, (2, 4)).double().eval()
    alone.load_state_dict(network.state_dict())
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(alone(images), expected, rtol=1e-9, atol=1e-11)
    assert (float(expected.std(dim=0).max()) > 1e-3) == (operation != "none")


@pytest.mark.parametrize("format", ["python", "torchscript", "onnx"])
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated")
def test_an_export_computes_what_was_trained(format: str, trained, tmp_path):
    if format == "onnx":
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)
    result = nas.export_network(trained, format, out=tmp_path / "out")
    facts = result.facts
    assert (facts.genotype, facts.reductions) == (nas.load_architecture(CELL), (1, 2))
    images = (PIXELS - facts.mean[0]) / facts.std[0]
    path = result.files[-1]
    if format == "python":
        network = export_formats._imported(path)
        assert "|".join(network.OPERATIONS_OF_EDGES) == (
            "avg_pool_3x3|nor_conv_3x3|none|skip_connect|nor_conv_1x1|nor_conv_3x3"
        )
        assert max(map(len, path.read_text().splitlines())) <= 100
        run = network.load(result.files[0])
    elif format == "torchscript":
        run = torch.jit.load(str(path))
    else:
        session = sys.modules["onnxruntime"].InferenceSession(path)

        def run(images):
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    with torch.no_grad():
        expected = network_of(trained)(images)
        for n in (1, 5):
            torch.testing.assert_close(run(images[:n]), expected[:n], **CLOSE)


# --- The command line ----------------------------------------------------------------------------


def test_from_a_search_on_digits_to_an_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: object) -> str:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    tiny = ("--epochs", 1, "--init-channels", 2, "--batch-size", 16, "--device", "cpu")
    found = cli(
        *("search", "--space", "nasbench201", "--dataset", "digits", "--algo", "darts1", *tiny),
        *("--n-train", 64, "--run-dir", "run"),
    )
    genotype = nas.RunFolder.open("run").genotype()
    assert str(genotype) in found.splitlines()
    assert f"{genotype.count('skip_connect')} of 6 cell edges are skip connections" in found
    assert "reduced size: dataset digits, n_train 64, epochs 1 of 50, n_cells 3 of 15," in found

    shown = json.loads(cli("show", "run", "--json"))
    assert shown["genotype"] == {"nasbench201": str(genotype)}
    names = ["cell", "curves", "alpha"]
    assert shown["pictures"] == [
        f"run/pictures/{name}.{form}" for name in names for form in ("svg", "png")
    ]
    table = cli("show", CELL, "--out", "pictures")
    rows = [
        tuple(part.strip() for part in line.split("│")[1:-1])
        for line in table.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        *(("1", "0", "avg_pool_3x3"), ("2", "0", "nor_conv_3x3"), ("2", "1", "none")),
        *(("3", "0", "skip_connect"), ("3", "1", "nor_conv_1x1"), ("3", "2", "nor_conv_3x3")),
    ]
    assert "CIFAR-10, 15 cells, 16 channels, 32x32: 0.59 M parameters" in table

    result = json.loads(cli("train", "run", *tiny, "--run-dir", "trained", "--json"))
    assert (result["genotype"], 0 <= result["test_accuracy"] <= 1) == (str(genotype), True)
    config = nas.RunFolder.open("trained").config(nas.TrainConfig)
    assert (config.n_cells, config.auxiliary, config.nesterov) == (3, False, True)
    cli("export", "trained", "--format", "torchscript")
    assert (tmp_path / "trained" / "export" / "network.torchscript").is_file()

"""Export: what is written computes what was trained, needs no package, and is whole or absent."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.errors import (
    ExportError,
    InvalidValueError,
    MissingDependencyError,
    RunError,
    RunInterrupted,
    UnknownNameError,
)
from zoopt_nas.nas.exports import formats as export_formats
from zoopt_nas.nas.exports import run as export_run
from zoopt_nas.nas.exports.source import NetworkFacts, source_of
from zoopt_nas.nas.networks import standalone, standalone_darts
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.genotype import GENOTYPES, Genotype
from zoopt_nas.nas.networks.operations import OPERATIONS
from zoopt_nas.nas.retraining import retrain
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.settings.config import TrainConfig

PIXELS = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(7)) / 255
# Two sums of at most a few thousand float32 terms of size 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def trained(train_config, tmp_path):
    """The folder of a finished retraining: two cells, the second a reduction."""
    nas.run_training(train_config(epochs=2, auxiliary=True), run_dir=tmp_path / "run")
    return tmp_path / "run"


def network_of(run) -> DartsNetwork:
    """The trained network, from what the retraining itself says are its weights."""
    state = torch.load(run / "weights.pt", weights_only=True)["network"]
    network = DartsNetwork(GENOTYPES["DARTS_V2"], 3, 2, 2, in_channels=1, auxiliary=True)
    network.load_state_dict(state)
    return network.eval()


def logits_of(run, facts: NetworkFacts) -> torch.Tensor:
    """What an export of a run must give for PIXELS."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (facts.mean, facts.std))
    with torch.no_grad():
        return network_of(run)((PIXELS - mean) / std)


def spread(network: torch.nn.Module) -> None:
    """Gives BatchNorm statistics and factors as if of a training, so that none can be left out."""
    random = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.data.uniform_(0.5, 2, generator=random)
            module.bias.data.normal_(0, 0.5, generator=random)


def test_every_operation_but_noise_can_be_exported_as_python():
    assert set(standalone.OPERATIONS) == set(OPERATIONS) - {"noise"}


@pytest.mark.parametrize("operation", standalone.OPERATIONS)
@pytest.mark.parametrize(("size", "stem"), [(9, "cifar"), (8, "cifar"), (35, "imagenet")])
def test_the_standalone_network_is_the_network(operation, size, stem):
    edges = tuple((operation, source) for source in (0, 1, 0, 2))
    genotype = Genotype(edges, edges, normal_concat=(3, 2), reduce_concat=(3,))
    network = DartsNetwork(genotype, 5, 4, 4, in_channels=2, stem=stem).eval()
    spread(network)
    built = {"cifar": standalone_darts.CifarStem, "imagenet": standalone_darts.ImageNetStem}[stem](
        2, 4
    )
    alone = standalone_darts.Network(
        genotype.to_dict(), built, 5, 4, n_cells=4, reductions=(1, 2)
    ).eval()
    assert alone.state_dict().keys() == network.state_dict().keys()
    alone.load_state_dict(network.state_dict())
    images = torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(alone(images), expected, **CLOSE)
    assert expected.std() > 1e-3  # it depends on the images


class Doubled(torch.nn.Module):
    """An operation that is not in ``standalone``."""

    def __init__(self, channels: int, stride: int, search: bool) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x[:, :, :: self.stride, :: self.stride]


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated")
def test_an_operation_of_someone_else_can_be_exported_as_a_graph(
    train_config, tmp_path, third_party
):
    third_party("zoopt_nas.operations", doubled=f"{__name__}:Doubled")
    text = str(GENOTYPES["DARTS_V2"]).replace("skip_connect", "doubled")
    run = tmp_path / "run"
    nas.run_training(train_config(genotype=text, epochs=1), run_dir=run)
    result = nas.export_network(run, "torchscript", include_normalization=True)
    (path,), facts = result.files, result.facts
    network = DartsNetwork(Genotype.from_string(text), 3, 2, 2, in_channels=1).eval()
    network.load_state_dict(torch.load(run / "weights.pt", weights_only=True)["network"])
    with torch.no_grad():
        expected = network((PIXELS - facts.mean[0]) / facts.std[0])
    torch.testing.assert_close(torch.jit.load(str(path))(PIXELS), expected, **CLOSE)
    with pytest.raises(InvalidValueError, match=r"as python must be one of none, .*, got doubled"):
        nas.export_network(run, "python")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


_RUN_ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("zoopt_nas", "zoopt_nas_cli"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import network, numpy, torch
model = network.load("network.pt")
images = torch.from_numpy(numpy.load("images.npy"))
with torch.no_grad():
    numpy.save("logits.npy", model(images).numpy())
assert not any(name.startswith("zoopt") for name in sys.modules)
"""


def run_alone(folder, images: torch.Tensor) -> torch.Tensor:
    """The logits of an exported ``network.py`` in a process that cannot import this package."""
    np.save(folder / "images.npy", images.numpy())
    subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN_ALONE],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=True,
    )
    return torch.from_numpy(np.load(folder / "logits.npy"))


@pytest.mark.parametrize("normalization", [False, True])
def test_the_python_file_needs_torch_only(normalization, trained):
    result = nas.export_network(trained, "python", include_normalization=normalization)
    folder = trained / "export"
    assert result.files == (folder / "network.pt", folder / "network.py")
    assert sorted(path.name for path in folder.iterdir()) == ["network.pt", "network.py"]
    facts = result.facts
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (facts.mean, facts.std))
    logits = run_alone(folder, PIXELS if normalization else (PIXELS - mean) / std)
    torch.testing.assert_close(logits, logits_of(trained, facts), rtol=0, atol=1e-6)
    assert 0 <= result.largest_difference <= 1e-6
    # The weights are tensors under the network's names, and not those of the auxiliary head.
    weights = torch.load(folder / "network.pt", weights_only=True)
    own = network_of(trained).state_dict()
    assert list(weights) == [name for name in own if not name.startswith("auxiliary.")]
    assert all(torch.equal(weights[name], own[name]) for name in weights)


def test_onnx_with_any_batch_size_and_its_metadata(trained):
    result = nas.export_network(trained, "onnx", include_normalization=True)
    (path,) = result.files
    assert path == trained / "export" / "network.onnx"
    assert [entry.name for entry in path.parent.iterdir()] == ["network.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (source,), (target,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim] == [
        *("batch", 1, 8, 8)
    ]
    assert (source.name, target.name) == ("pixels", "logits")
    assert str(os.getcwd()).encode() not in path.read_bytes()  # no stack traces of this machine
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = logits_of(trained, result.facts)
    for n in (1, 2, 5):
        (logits,) = session.run(["logits"], {"pixels": PIXELS[:n].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[:n], **CLOSE)
    texts = session.get_modelmeta().custom_metadata_map
    assert Genotype.from_string(texts["genotype"]) == GENOTYPES["DARTS_V2"]
    assert json.loads(texts["mean"]) == pytest.approx(result.facts.mean)
    assert json.loads(texts["std"]) == pytest.approx(result.facts.std)
    assert (texts["n_classes"], texts["image_size"], texts["epochs_trained"]) == ("3", "8", "2")
    assert texts["includes_normalization"] == "true"


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated")
def test_torchscript_with_any_batch_size_and_its_metadata(trained):
    result = nas.export_network(trained, "torchscript", include_normalization=True)
    (path,) = result.files
    assert path == trained / "export" / "network.torchscript"
    extra = {"metadata.json": ""}
    loaded = torch.jit.load(str(path), _extra_files=extra)
    assert not loaded.training
    expected = logits_of(trained, result.facts)
    for n in (1, 2, 5):
        torch.testing.assert_close(loaded(PIXELS[:n]), expected[:n], **CLOSE)
    assert json.loads(extra["metadata.json"]) == result.facts.to_dict()


def test_facts_are_those_of_the_training_data(trained, npz):
    facts = nas.export_network(trained, "python").facts
    pixels = np.load(npz)["x_train"] / 255
    assert facts.mean == pytest.approx((pixels.mean(),), rel=1e-9)
    assert facts.std == pytest.approx((pixels.std(),), rel=1e-9)
    assert (facts.n_classes, facts.in_channels, facts.image_size) == (3, 1, 8)
    assert (facts.init_channels, facts.n_cells, facts.reductions) == (2, 2, (1,))
    assert (facts.stem, facts.epochs_trained, facts.dataset) == ("CifarStem", 2, str(npz))
    assert facts.class_names is None  # the file has numbers only


def test_of_a_run_that_reports_its_best_epoch_that_one_is_exported(
    train_config, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    # Which epoch of a real run is the best depends on how the processor rounds. The last two are
    # the last epoch: it is tested once more when the run ends.
    measured = iter([retrain.Tested(1.0, accuracy) for accuracy in (0.25, 0.75, 0.5, 0.5)])
    monkeypatch.setattr(retrain.Training, "test", lambda training: next(measured))
    reported = nas.run_training(train_config(report="best", epochs=3), run_dir=run)
    assert (reported.epoch, reported.test_accuracy) == (1, 0.75)
    facts = nas.export_network(run, "python").facts
    assert facts.epochs_trained == 2
    weights = torch.load(run / "export" / "network.pt", weights_only=True)
    own = torch.load(run / "weights.pt", weights_only=True)["network"]
    last = torch.load(run / "checkpoint.pt", weights_only=True)["own"]["network"]
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert not all(torch.equal(weights[name], last[name]) for name in weights)


def test_a_retraining_that_was_stopped_gives_its_last_checkpoint(train_config, tmp_path):
    class Stop(Observer):
        def should_stop(self):
            return (tmp_path / "run" / "checkpoint.pt").is_file()

    with pytest.raises(RunInterrupted):
        nas.run_training(train_config(), run_dir=tmp_path / "run", observer=Stop())
    assert nas.export_network(tmp_path / "run", "python").facts.epochs_trained == 1
    assert "EPOCHS_TRAINED = 1\n" in (tmp_path / "run" / "export" / "network.py").read_text()


def test_a_search_gives_the_untrained_network_as_python_only(search_config, npz, tmp_path):
    nas.run_search(search_config("darts1"), run_dir=tmp_path / "run")
    for format in ("onnx", "torchscript"):
        with pytest.raises(RunError, match="is a search, which leaves no trained network: train"):
            nas.export_network(tmp_path / "run", format)
    assert not (tmp_path / "run" / "export").exists()
    result = nas.export_network(tmp_path / "run", "python", out=tmp_path / "out")
    assert result.files == (tmp_path / "out" / "network.py",)
    genotype = RunFolder.open(tmp_path / "run").genotype()
    config = TrainConfig.for_dataset(str(npz), str(genotype))
    assert (result.facts.genotype, result.facts.epochs_trained) == (genotype, 0)
    network = export_formats._imported(tmp_path / "out" / "network.py")
    assert not hasattr(network, "load")
    own = DartsNetwork(genotype, 3, config.init_channels, config.n_cells, in_channels=1)
    assert {k: v.shape for k, v in network.build().state_dict().items()} == {
        k: v.shape for k, v in own.state_dict().items()
    }


def test_the_python_file_has_its_data_and_their_text_cannot_break_out():
    genotype = Genotype((("avg_pool_3x3", 0), ("none", 1)), (("skip_connect", 1),) * 2, (2,), (2,))
    dataset = '"""\nimport os\n\\" # é.npz'
    facts = NetworkFacts(
        *(
            dataset,
            genotype,
            4,
            ("a", '"', "\\", "d\n"),
            3,
            32,
            (0.5, 0.4, 0.3),
            (0.2, 0.2, 0.1),
            8,
            5,
            (1, 3),
        ),
        *("CifarStem", 0, False),
    )
    text = source_of(facts, "network")
    names: dict[str, object] = {}
    exec(compile(text, "network.py", "exec"), names)  # noqa: S102 - it is what is tested
    assert names["DATASET"] == dataset
    assert names["CLASS_NAMES"] == ["a", '"', "\\", "d\n"]
    assert Genotype.from_dict(json.loads(json.dumps(names["GENOTYPE"]))) == genotype
    network = names["build"]()
    assert type(network.stem).__name__ == "CifarStem"
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert "load" not in names
    assert max(map(len, text.splitlines())) <= 100
    larger = source_of(
        replace(facts, stem="ImageNetStem", epochs_trained=3, includes_normalization=True), "a"
    )
    assert 'model = a.load("a.pt")' in larger
    assert "nn.Sequential(Normalize(MEAN, STD), network)" in larger
    assert "stem = ImageNetStem(" in larger


@pytest.mark.parametrize("wrong", [1e-3, math.nan])
def test_what_does_not_agree_is_not_written(wrong, trained, monkeypatch):
    before = nas.export_network(trained, "python").files
    kept = [path.read_bytes() for path in before]
    write = export_formats.write_python

    def off(network, facts, folder):
        with torch.no_grad():
            network.head.classifier.bias += wrong
        return write(network, facts, folder)

    monkeypatch.setattr(export_run, "FORMATS", {"python": off})
    with pytest.raises(ExportError, match=r"up to 0\.0001, got a difference of (0\.00\d+|nan);"):
        nas.export_network(trained, "python")
    assert [path.read_bytes() for path in before] == kept
    assert sorted(path.name for path in (trained / "export").iterdir()) == [
        *("network.pt", "network.py")
    ]
    with pytest.raises(ExportError):
        nas.export_network(trained, "python", out=trained / "a" / "b")
    assert not (trained / "a" / "b").exists()


def test_other_logits_are_not_written_either(trained, monkeypatch):
    def one_class_less(network, facts, folder):
        written = export_formats.write_python(network, facts, folder)
        return written._replace(run=lambda images: written.run(images)[:, 1:])

    monkeypatch.setattr(export_run, "FORMATS", {"python": one_class_less})
    with pytest.raises(ExportError, match=r"must give logits \(1, 3\), got \(1, 2\)"):
        nas.export_network(trained, "python")
    assert not (trained / "export").exists()


def test_what_cannot_be_exported(trained, train_config, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown export format 'onx'; did you mean 'onnx'"):
        nas.export_network(trained, "onx")
    with pytest.raises(RunError, match="is not a run folder"):
        nas.export_network(tmp_path, "onnx")
    data = RunFolder(trained).data()
    folder = RunFolder.create(tmp_path / "new", train_config(), data)
    with pytest.raises(RunError, match="has no weights yet: no epoch has ended"):
        nas.export_network(folder.path, "python")
    noisy = str(GENOTYPES["DARTS_V2"]).replace("sep_conv_3x3", "noise")
    folder = RunFolder.create(tmp_path / "noisy", train_config(genotype=noisy), data)
    with pytest.raises(InvalidValueError, match=r"must give the same output .*, got Noise"):
        nas.export_network(folder.path, "python")
    wider = RunFolder.create(tmp_path / "wider", train_config(epochs=2, init_channels=3), data)
    (wider.path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    with pytest.raises(RunError, match=r"init_channels must stay 2, got 3"):
        nas.export_network(wider.path, "python")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write into the folder"):
        nas.export_network(trained, "python", out=tmp_path / "file")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # importing it fails
    with pytest.raises(MissingDependencyError, match=r"needs onnxscript: pip install .*\[export\]"):
        nas.export_network(trained, "onnx")
    assert not (trained / "export").exists()

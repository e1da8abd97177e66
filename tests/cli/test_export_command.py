"""``zoopt-nas export``: what it prints, and what it refuses in one line."""

from __future__ import annotations

import json
import re

import pytest

from zoopt_nas import nas
from zoopt_nas.nas.networks.genotype import GENOTYPES


@pytest.fixture
def trained(train_config, tmp_path):
    nas.run_training(train_config(epochs=1), run_dir=tmp_path / "run")
    return tmp_path / "run"


def test_export_prints_what_it_wrote_and_how_well_it_agrees(cli, trained, tmp_path):
    done = cli("export", trained, "--format", "python", "--include-normalization")
    assert (done.code, done.err) == (0, "")
    what, difference, *files = done.out.splitlines()
    assert what == "network for pixels in 0..1 (n, 1, 8, 8), 3 classes, after 1 epoch"
    assert re.fullmatch(
        r"logits differ by at most \d\.\de[+-]\d\d of the largest one \(allowed: 1e-04\)",
        difference,
    )
    assert files == [str(trained / "export" / name) for name in ("network.pt", "network.py")]

    done = cli("export", trained, "--format", "torchscript", "--out", tmp_path / "out", "--json")
    assert (done.code, done.err) == (0, "")
    output = json.loads(done.out)
    assert output["format"] == "torchscript"
    assert output["files"] == [str(tmp_path / "out" / "network.torchscript")]
    assert (tmp_path / "out" / "network.torchscript").is_file()
    assert 0 <= output["largest_difference"] <= 1e-6
    assert output["tolerance"] == 1e-4
    network = output["network"]
    assert network["genotype"] == str(GENOTYPES["DARTS_V2"])
    assert (network["n_classes"], network["image_size"], len(network["mean"])) == (3, 8, 1)
    assert network["includes_normalization"] is False


def test_an_untrained_network_is_said_to_be_so(cli, search_config, tmp_path):
    nas.run_search(search_config("darts1", epochs=2), run_dir=tmp_path / "run")
    done = cli("export", tmp_path / "run", "--format", "python")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == (
        "network for normalised images (n, 1, 8, 8), 3 classes, untrained"
    )


def test_what_export_refuses(refused, trained, search_config, tmp_path):
    assert "unknown export format 'onxx'; did you mean 'onnx'?" in refused(
        "export", trained, "--format", "onxx"
    )
    assert "--format" in refused("export", trained)
    assert "is not a run folder" in refused("export", tmp_path, "--format", "onnx")
    nas.run_search(search_config("darts1", epochs=2), run_dir=tmp_path / "search")
    line = refused("export", tmp_path / "search", "--format", "onnx")
    assert line == (
        f"{tmp_path / 'search'} is a search, which leaves no trained network: "
        "train it first, or export it untrained as python"
    )

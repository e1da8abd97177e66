"""Without the packages of the extra, one line says how to get them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Runs the command in a process in which some packages cannot be found.
_WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from zoopt_nas_cli.main import run
sys.exit(run(sys.argv[2:]))
"""
TINY = ["--n-train", "64", "--epochs", "1", "--init-channels", "2", "--n-cells", "1"]


def run_without(packages: str, *arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, packages, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("packages", "arguments", "named"),
    [
        ("torch,torchvision", ["search"], "torch"),
        ("torch,torchvision", ["show", "DARTS_V2"], "torch"),
        ("torch,torchvision", ["list", "spaces"], "torch"),
        ("torch,torchvision", ["export", "run", "--format", "onnx"], "torch"),
        ("matplotlib", ["show", "DARTS_V2"], "matplotlib"),
        ("jinja2", ["report", "."], "jinja2"),
    ],
)
def test_a_missing_package_is_one_line(packages, arguments, named, tmp_path):
    done = run_without(packages, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert "pip install" in done.stderr
    assert "zoopt-nas[nas]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_engine_ray_names_its_extra(tmp_path):
    done = run_without("ray", "sweep", "--vary", "n_samples=2", "--engine", "ray", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the engine ray needs ray: pip install 'zoopt-nas[ray]'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("modules", "named"),
    [(("sklearn", "sklearn.datasets"), "scikit-learn"), (("tomli_w",), "tomli-w")],
)
def test_a_small_missing_package_is_one_line_too(modules, named, refused, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    line = refused("search", *TINY)
    assert named in line
    assert "pip install" in line


def test_the_base_install_has_help_and_solvers(tmp_path):
    extra = "torch,torchvision,matplotlib,sklearn,tomli_w,PIL"
    for arguments in (["--help"], ["search", "--help"], ["list", "solvers", "--json"]):
        done = run_without(extra, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"rs": ')


_WAIT_POLICY = """
import os, sys

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.stdout.write(os.environ.get("OMP_WAIT_POLICY", "unset"))
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Watcher())
from zoopt_nas_cli.main import run
run(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "own", "expected"),
    [
        (["search"], None, "passive"),
        (["train", "DARTS_V2"], None, "passive"),
        (["search"], "active", "active"),
        (["list", "spaces"], None, "unset"),  # which starts no threads
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(arguments, own, expected, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", _WAIT_POLICY, *arguments],
        cwd=tmp_path,
        env=environment | ({"OMP_WAIT_POLICY": own} if own else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == expected  # when torch was about to be imported

"""Kernels that are compiled when they are first needed, and what happens where they cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.kernels import library as own
from zoopt_nas.nas.networks.build import build_supernet
from zoopt_nas.nas.networks.operations import Separable
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.run import run_search
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.steps.execution import Execution

CPU = torch.device("cpu")


@pytest.fixture
def afresh():
    """Asks for a compiler again, and forgets the answer afterwards."""
    own._compiled.cache_clear()
    yield
    own._compiled.cache_clear()


def compiler(tmp_path, monkeypatch, script: str) -> None:
    """Makes a shell script the only compiler."""
    path = tmp_path / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(own, "COMPILERS", (str(path),))


def test_the_kernels_compile_here():
    """With the compiler that the tests' machine has; only without one are other tests skipped."""
    if not any(map(shutil.which, own.COMPILERS)):
        pytest.skip("no C compiler")
    assert own.compiled(torch.float32) is own.compiled(torch.float32)
    assert own.compiled(torch.float64) is not own.compiled(torch.float32)


@pytest.mark.usefixtures("afresh")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(own, "COMPILERS", ("no-such-compiler",))
    assert own.library(torch.float32) is None
    with pytest.raises(own.KernelError, match="need a C compiler, found none of no-such-compiler"):
        own.compiled(torch.float32)
    assert not own.can_run(torch.zeros(2, 2))


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(("script", "message"), [
    ("echo 'kernel.c: In function f:' >&2; echo 'kernel.c:1: error: no vectors here' >&2; exit 1",
     r"do not compile with .*cc: kernel.c:1: error: no vectors here$"),
    ("exit 1", "do not compile with .*cc: no message$"),
    ("exit 0", "cannot be compiled and loaded"),  # and has made nothing
    ("for last; do :; done; while [ \"$1\" != -o ]; do shift; done; echo text > \"$2\"",
     "cannot be compiled and loaded"),
    ("sleep 30", "cannot be compiled and loaded: .*timed out"),
])  # fmt: skip
def test_a_compiler_that_fails(tmp_path, monkeypatch, script, message):
    compiler(tmp_path, monkeypatch, script)
    monkeypatch.setattr(own, "TIMEOUT", 0.5)
    with pytest.raises(own.KernelError, match=message) as caught:
        own.compiled(torch.float32)
    assert "\n" not in str(caught.value)
    assert own.library(torch.float32) is None


@pytest.mark.usefixtures("afresh")
def test_a_failure_is_asked_for_once(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, f"echo asked >> {tmp_path}/log; exit 1")
    for _ in range(3):
        assert own.library(torch.float32) is None
    assert (tmp_path / "log").read_text() == "asked\n"


def test_a_kernel_without_memory():
    own.call(lambda *arguments: 0, 1, 2)
    with pytest.raises(MemoryError, match="not enough memory for its buffers"):
        own.call(lambda *arguments: 1, 1, 2)


def test_other_types_have_none():
    assert own.library(torch.bfloat16) is None
    with pytest.raises(own.KernelError, match=r"float32 and float64, not torch\.bfloat16"):
        own.compiled(torch.bfloat16)


def test_the_setting():
    off = Execution.from_config(SearchConfig(cpu_kernels="off"), CPU)
    assert not off.cpu_kernels
    with pytest.raises(InvalidValueError, match="cpu_kernels must be auto or off on mps, got on"):
        Execution.from_config(SearchConfig(cpu_kernels="on"), torch.device("mps"))
    assert not Execution.from_config(SearchConfig(), torch.device("mps")).cpu_kernels
    if own.library(torch.float32) is not None:
        for setting in ("auto", "on"):
            assert Execution.from_config(SearchConfig(cpu_kernels=setting), CPU).cpu_kernels


@pytest.mark.usefixtures("afresh")
def test_the_setting_without_a_compiler(monkeypatch):
    monkeypatch.setattr(own, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(own.KernelError, match="need a C compiler"):
        Execution.from_config(SearchConfig(cpu_kernels="on"), CPU)
    with pytest.warns(UserWarning, match="found none of no-such-compiler; using PyTorch's"):
        found = Execution.from_config(SearchConfig(), CPU)
    assert not found.cpu_kernels
    off = SearchConfig(cpu_kernels="off")
    assert not Execution.from_config(off, CPU).cpu_kernels  # without a warning


def test_a_run_with_and_without_them(search_config):
    """The same up to rounding, from the first step to the last."""
    if own.library(torch.float32) is None:
        pytest.skip("no C compiler")
    losses = [
        [row["train_loss"] for row in run_search(search_config(cpu_kernels=cpu_kernels)).metrics]
        for cpu_kernels in ("on", "off")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]


def test_the_setting_reaches_the_operations(search_config):
    for setting in ("auto", "off"):
        config = search_config(cpu_kernels=setting)
        setup = prepare(config)
        supernet = build_supernet(config, setup.dataset, seed=0, execution=setup.execution)
        found = {op.cpu_kernels for op in supernet.modules() if isinstance(op, Separable)}
        expected = setting != "off" and own.library(torch.float32) is not None
        assert found == {expected}


def test_kernels_and_pytorch_share_their_threads():
    """A second OpenMP in the process would spin against the first."""
    if own.library(torch.float32) is None:
        pytest.skip("no C compiler")
    script = (
        "import torch; from zoopt_nas.nas.kernels.library import compiled; "
        "compiled(torch.float32); compiled(torch.float64); "
        "lines = open('/proc/self/maps').read().splitlines(); "
        "print(len({line.split()[-1] for line in lines if 'libgomp' in line}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "1"

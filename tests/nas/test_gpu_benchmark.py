"""The table of benchmarks/gpu.py, which is made for a GPU, on a CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

COLUMNS = [
    *("space", "amp", "form", "step (ms)", "ratio of steps", "launches", "ratio of launches"),
    *("memory (GB)", "ratio of memory", "busy"),
]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu")


def test_a_row_holds_quotients_to_the_plain_row(gpu):
    plain = gpu.Row("s3", "off", "plain", 80.0, 1600, 2.0, 20.0)
    ours = gpu.Row("s3", "off", "ours", 20.0, 800, 1.2, 15.0)
    assert list(gpu.COLUMNS) == COLUMNS
    assert [cell(ours, plain) for cell in gpu.COLUMNS.values()] == [
        *("s3", "off", "ours", "20.00", "0.250", "800", "0.500", "1.20", "0.600", "0.75")
    ]
    assert [cell(plain, plain) for cell in gpu.COLUMNS.values()] == [
        *("s3", "off", "plain", "80.00", "1.000", "1600", "1.000", "2.00", "1.000", "0.25")
    ]
    too_large = gpu.Row("s3", "off", "plain")  # the plain form found no memory
    assert [cell(ours, too_large) for cell in gpu.COLUMNS.values()][3:] == [
        *("20.00", "n/a", "800", "n/a", "1.20", "n/a", "0.75")
    ]


def test_kernels_are_told_from_other_events(gpu):
    kinds = torch.autograd.DeviceType

    def event(name: str, device: object, start: int, end: int, **more: object):
        interval = torch.autograd.profiler_util.Interval(start, end)
        return SimpleNamespace(name=name, device_type=device, time_range=interval, **more)

    events = [
        event("aten::conv2d", kinds.CPU, 0, 100),
        event("cudnn::conv", kinds.CUDA, 10, 30),
        event("Memcpy HtoD (Pinned -> Device)", kinds.CUDA, 30, 35),
        event("Memset (Device)", kinds.CUDA, 35, 36),
        event("Optimizer.step#SGD.step", kinds.CUDA, 0, 90, is_user_annotation=True),
        event("elementwise", kinds.CUDA, 40, 45, is_user_annotation=False),
    ]
    assert gpu.kernel_times(events) == [20, 5]


@pytest.mark.slow
def test_the_table_at_a_tiny_size_on_a_cpu(gpu, capsys):
    gpu.main(["--device", "cpu", "--spaces", "s1", "--repeats", "2"])
    title, size, *table = capsys.readouterr().out.splitlines()
    assert title == f"CPU, PyTorch {torch.__version__}, 2 repeats, seed 0"
    assert size.endswith(": (4, 3, 8, 8, 3)")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert header == COLUMNS
    assert [row[:3] for row in rows] == [
        *(["s1", "off", "plain"], ["s1", "off", "ours"]),
        *(["s1", "bf16", "plain"], ["s1", "bf16", "ours"]),
    ]
    for plain, ours in (rows[:2], rows[2:]):
        assert plain[4] == plain[6] == "1.000"
        assert float(ours[4]) == pytest.approx(float(ours[3]) / float(plain[3]), abs=2e-3)
        assert float(ours[6]) == pytest.approx(int(ours[5]) / int(plain[5]), abs=1e-3)
        assert int(ours[5]) < int(plain[5])
        assert plain[7:] == ours[7:] == ["n/a"] * 3
    assert int(rows[2][5]) > int(rows[0][5])  # autocast converts


def test_without_a_gpu_it_says_so_in_one_line(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        gpu.main([])
    # Python prints the text to stderr and exits with status 1.
    assert caught.value.code == (
        "no CUDA device here; --device cpu runs the same code at a tiny size"
    )
    assert capsys.readouterr().out == ""

"""A CUDA device that is simulated, for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_device import Device, simulated_device

from zoopt_nas.nas import data


@pytest.fixture
def device(monkeypatch) -> Iterator[Device]:
    monkeypatch.setattr(data, "free_memory", lambda device: None)  # only a driver knows
    with simulated_device() as device:
        yield device

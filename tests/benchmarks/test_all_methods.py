"""The sweeps of ``make all-methods`` fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoopt_nas.nas.analyses.paper_tables import read_sweep

FILES = Path(__file__).parents[2] / "benchmarks" / "all_methods"


@pytest.mark.parametrize("space", ["nasbench201", "s3"])
def test_darts_pt_continues_searches_of_the_sweep(space):
    first, then, robust = (
        read_sweep(str(FILES / f"{space}{part}.toml")) for part in ("", "_darts_pt", "_robust")
    )
    folders = {f"runs/all-methods/{space}/{run.name}": run.config for run in first.runs()}
    for run in then.runs():
        before = folders[run.config.supernet]
        for name in ("n_train", "image_size", "init_channels", "n_cells", "batch_size"):
            assert getattr(run.config, name) == getattr(before, name)
    # What one sweep refuses runs in the other: no method is in both.
    assert not set(robust.vary["algo"]) & set(first.vary["algo"])
    assert first.train == then.train == robust.train

"""Searches with merged kernels resume bit for bit, and go on from a finished supernet."""

from __future__ import annotations

import pytest
from stopping import StopAt

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas import SearchConfig, resume_search, run_search

SIZES = {"init_channels": 2, "n_cells": 3, "n_train": 64, "batch_size": 16, "threads": 1}


@pytest.mark.parametrize(
    ("algo", "space", "more"),
    [
        ("merge_nas", "s1", {}),
        ("merge_nas", "darts", {}),
        ("merge_nas", "nasbench201", {}),
        ("gdas", "darts", {"merge_kernels": True}),
        ("mgs", "darts", {"merge_kernels": True, "warmup_epochs": 0, "inner_steps": 2}),
        ("gld", "s1", {"merge_kernels": True, "paths": "fair", "warmup_epochs": 0}),
    ],
)
def test_a_search_resumes_bit_for_bit(algo, space, more, tmp_path, without_seconds):
    config = SearchConfig(dataset="digits", space=space, algo=algo, epochs=2, **SIZES, **more)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(3))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)
    assert rest.genotype == whole.genotype


def test_a_finished_supernet_must_have_the_same_kernels(tmp_path):
    config = SearchConfig(dataset="digits", space="s1", algo="merge_nas", epochs=1, **SIZES)
    run_search(config, run_dir=tmp_path / "run")
    fields = {"algo": "darts_pt", "supernet": str(tmp_path / "run")}
    with pytest.raises(InvalidValueError, match=r"merge_kernels must be True as in .*, got False"):
        run_search(config.replace(**fields, merge_kernels=False))
    found = run_search(config.replace(**fields))
    assert len(found.genotype.edges("normal")) == 8

"""Searches over discrete cells: the vertices that solvers see, and the model of the cells."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stopping import StopAt

from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted
from zoopt_nas.nas import SearchConfig, resume_search, run_search
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.cell_model import ERRORS
from zoopt_nas.nas.search.vertices import path_options, random_vertices, vertex
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater

NAMES = ["nasbench201", "s1", "s2", "s3", "s4", "darts", "darts_none"]


@given(seed=st.integers(0, 2**32), name=st.sampled_from(NAMES))
def test_a_vertex_has_the_path_of_its_alpha(seed, name):
    space = SPACES[name]
    alpha = torch.randn(space.dim, generator=torch.Generator().manual_seed(seed)).double()
    at = vertex(space, alpha)
    path = space.path(space.discretize(alpha))
    assert space.path(space.discretize(at)) == path
    assert at.unique().tolist() == [0.0, 1.0]
    assert int(at.sum()) == sum(choice != UNUSED for choice in path)
    assert vertex(space, at).equal(at)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_from_a_vertex_changes_about_one_operation(name):
    space = SPACES[name]
    config = SearchConfig(space=name, algo="mgs", paths="fair", epochs=10)
    sigma = path_options(config, space)["sigma"]
    generator = torch.Generator().manual_seed(0)
    changes = []
    for seed in range(100):
        at = random_vertices(space, 1, torch.zeros((), dtype=torch.float64), seed)[0]
        path = space.path(space.discretize(at))
        step = sigma * torch.randn(space.dim, generator=generator, dtype=torch.float64)
        moved = space.path(space.discretize(at + step))
        changes.append(sum(q not in (UNUSED, p) for p, q in zip(path, moved, strict=True)))
    # Between 0.35 and 0.85 on average; a standard error of 100 counts with deviation 0.8 is 0.08.
    assert 0.35 - 0.25 < sum(changes) / 100 < 0.85 + 0.25


def test_steps_on_paths_by_space_and_kind_of_weights():
    def options(algo, space, weights):
        config = SearchConfig(space=space, algo=algo, paths="fair", weights=weights)
        return path_options(config, SPACES[space])

    radius = 0.4 * math.sqrt(30)
    gld = {"max_radius": radius, "min_radius": radius, "direction": "gaussian"}
    assert options("gld", "nasbench201", "fresh") == {**gld, "deterministic": True}
    assert options("gld", "nasbench201", "shared") == {**gld, "deterministic": False}
    assert options("rs", "s3", "shared")["smoothing"] == pytest.approx(0.25 * math.sqrt(84))
    mixed = SearchConfig(space="s3", algo="gld")
    assert path_options(mixed, SPACES["s3"]) == {}


def objective_of(space, value):
    """An objective over paths without a network, of which every path is known after one call."""

    class Objective:
        supernet = type("Net", (), {"space": space})
        single_path, n_evaluations = True, 0

        def __init__(self):
            self.known = {}

        def draw(self, n=None):
            return None

        def __call__(self, alphas, draw):
            paths = [space.path(space.discretize(alpha)) for alpha in alphas]
            for path in paths:
                if path not in self.known:
                    self.known[path] = value(path)
                    self.n_evaluations += 1
            return torch.tensor([self.known[path] for path in paths], dtype=torch.float64)

    return Objective()


@pytest.mark.parametrize("algo", ["gld", "mgs", "adaptive_gld", "adaptive_mgs", "cma"])
def test_a_separable_value_over_cells_is_nearly_minimized(algo):
    """The number of edges without the best operation, of 15,625 cells, with 120 queries."""
    space = SPACES["nasbench201"]
    config = SearchConfig(
        space="nasbench201", algo=algo, paths="fair", weights="fresh", epochs=10, solver={}
    )
    ends = []
    for seed in range(5):
        objective = objective_of(space, lambda path: sum(c != k % 5 for k, c in enumerate(path)))
        alpha = space.init_alpha(rng=seed).double()
        updater = ZeroOrderUpdater.build(config, alpha, seed, space)
        for _ in range(120):
            if objective.n_evaluations < 120:
                updater.step(objective, 0.0)
        ends.append(min(objective.known.values()))
    # The best of 120 random cells misses 2.4 edges on average.
    assert sum(ends) / 5 <= 1.0


def test_every_update_with_known_values_evaluates_a_new_cell():
    space = SPACES["nasbench201"]
    config = SearchConfig(space="nasbench201", algo="gld", paths="fair", weights="fresh")
    objective = objective_of(space, lambda path: sum(path))
    updater = ZeroOrderUpdater.build(config, torch.zeros(30), 0, space)
    counts = []
    for _ in range(20):
        updater.step(objective, 0.0)
        counts.append(objective.n_evaluations)
    assert counts[0] <= 11  # ten starts and a candidate
    assert all(later == earlier + 1 for earlier, later in pairwise(counts))


def config(**settings) -> SearchConfig:
    fields = {"dataset": "digits", "space": "nasbench201", "epochs": 2, "warmup_epochs": 0}
    sizes = {"init_channels": 2, "n_train": 64, "batch_size": 16, "n_cells": 3, "threads": 1}
    kind = {"paths": "fair", "weights": "fresh", "algo": "gld", "inner_steps": 2}
    return SearchConfig(**{**fields, **sizes, **kind, **settings})


@pytest.mark.parametrize("algo", ["gld", "mgs", "adaptive_gld"])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_a_search_on_a_model_resumes_bit_for_bit(algo, n_steps, tmp_path, without_seconds):
    settings = config(algo=algo, surrogate=True, epochs=3, update_period=1)
    whole = run_search(settings)
    evaluations = [row["evaluations"] for row in whole.metrics]
    assert evaluations == [12, 14, 16]  # ten random cells, then one for each of two updates
    assert all(ERRORS[0] <= row["model_error"] <= ERRORS[-1] for row in whole.metrics)
    with pytest.raises(RunInterrupted):
        run_search(settings, run_dir=tmp_path / "run", observer=StopAt(n_steps))
    rest = resume_search(tmp_path / "run")
    assert rest.alpha.equal(whole.alpha)
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)


@pytest.mark.parametrize("name", ["surrogate", "extrapolate"])
def test_some_settings_need_cells_with_fresh_weights(name):
    message = f"{name} must be False without fresh weights on paths, got True"
    with pytest.raises(InvalidValueError, match=message):
        config(weights="shared", **{name: True})
    with pytest.raises(InvalidValueError, match=message):
        config(paths="mixed", **{name: True})


def test_a_path_needs_an_architecture_of_its_space():
    cell = SPACES["nasbench201"].discretize(torch.zeros(30))
    darts = SPACES["s3"].discretize(torch.zeros(SPACES["s3"].dim))
    with pytest.raises(InvalidValueError, match="is not an architecture of space s3"):
        SPACES["s3"].path(cell)
    with pytest.raises(InvalidValueError, match="is not an architecture of space nasbench201"):
        SPACES["nasbench201"].path(darts)
    edges = (("skip_connect", 0), ("sep_conv_3x3", 0)) * 4
    with pytest.raises(InvalidValueError, match="edge 0 must have one operation"):
        SPACES["s2"].path(Genotype(edges, edges))


def test_nesterov_needs_momentum():
    with pytest.raises(InvalidValueError, match="momentum must be positive with nesterov, got 0"):
        SearchConfig(space="nasbench201", momentum=0.0)


def test_auto_needs_shared_weights():
    with pytest.raises(InvalidValueError, match="weights must be shared with auto"):
        run_search(config(algo="auto"))


@pytest.mark.parametrize("name", ["surrogate", "extrapolate"])
def test_a_run_keeps_its_rules_for_cells(name, tmp_path):
    settings = config()
    with pytest.raises(RunInterrupted):
        run_search(settings, run_dir=tmp_path / "run", observer=StopAt(1))
    changed = settings.replace(**{name: True})
    (tmp_path / "run" / "config.toml").write_text(changed.to_toml())
    with pytest.raises(RunError, match=f"{name} must stay False, got True"):
        resume_search(tmp_path / "run")


START = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"


def test_a_search_begins_at_a_given_cell():
    """With fresh weights it is the first cell to be evaluated, instead of ten random ones."""
    row = run_search(config(start=START, epochs=1, update_period=10)).metrics[0]
    assert row["evaluations"] == 2  # the start and a new cell


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("space", ["nasbench201", "s3"])
@pytest.mark.parametrize("kind", [{}, {"paths": "mixed", "weights": "shared"}])
def test_alpha_begins_at_the_vertex_of_a_given_cell(space, as_file, kind, tmp_path):
    found = SPACES[space].discretize(torch.arange(float(SPACES[space].dim)).sin())
    start = str(found)
    if as_file:
        start = str(tmp_path / "genotype.json")
        (tmp_path / "genotype.json").write_text(found.to_json())
    settings = config(space=space, start=start, **kind)
    search = Search(settings, prepare(settings))
    assert search.alpha.equal(SPACES[space].one_hot(SPACES[space].path(found), search.alpha))
    assert SPACES[space].path(search.genotype) == SPACES[space].path(found)


def test_a_start_must_be_an_architecture_of_the_space():
    with pytest.raises(InvalidValueError, match="is not an architecture of space nasbench201"):
        run_search(config(start="DARTS_V2"))

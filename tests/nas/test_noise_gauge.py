"""Widths that follow the noise, on objectives whose floor and steps are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from stopping import StopAt
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, RunInterrupted
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.search.noise import MAX_FACTOR, MAX_VAL_BATCHES, NoiseGauge, _almost_at
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.solvers import GLD, MGS, RS

WIDTH = 0.5
X = torch.zeros(4, dtype=torch.float64)
PLUS_MINUS = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
STD = math.sqrt(4 / 3)  # the standard deviation of PLUS_MINUS


def candidates(factor: float) -> Tensor:
    """Four candidates at a distance of ``WIDTH * factor``."""
    return X + WIDTH * factor * torch.eye(4, dtype=torch.float64)


class Known:
    """Values ± ``floor`` next to x, and ± ``spread(factor)`` at the widths of a factor.

    ``batches`` (4, n_batches) is added: deviations of the candidates on each batch.
    """

    def __init__(
        self, floor: float, spread: Callable[[float], float], batches: Tensor | None = None
    ) -> None:
        self.floor, self.spread = floor, spread
        self.batches = torch.zeros(4, 4, dtype=torch.float64) if batches is None else batches
        self.factors: list[float] = []

    def __call__(self, alphas: Tensor) -> Tensor:
        factor = float((alphas - X).abs().max()) / WIDTH
        size = self.floor if factor < 1e-3 else self.spread(round(factor))
        if factor > 1e-3:
            self.factors.append(round(factor))
        return 2.0 + size * PLUS_MINUS[:, None] + self.batches


def measured(objective: Known, gauge: NoiseGauge | None = None, **options: bool) -> NoiseGauge:
    gauge = gauge or NoiseGauge(1)
    gauge.measure(X, candidates, objective, **options)
    return gauge


@pytest.mark.parametrize(
    ("slope", "factor", "looked_at"),
    [
        (4.0, 1, [1]),
        (2.0, 2, [1, 2]),
        (0.4, 8, [1, 2, 4, 8]),
        (0.1, 32, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_smallest_factor_at_which_the_spread_is_three_floors(slope, factor, looked_at):
    objective = Known(1.0, lambda k: slope * k)
    gauge = measured(objective)
    assert gauge.factor == factor
    assert objective.factors == looked_at
    assert gauge.floor == pytest.approx(STD, rel=1e-12)
    assert gauge.spread == pytest.approx(slope * factor * STD, rel=1e-12)
    assert not gauge.is_due


def test_widths_go_back_but_never_below_the_configured_ones():
    gauge = measured(Known(1.0, lambda k: 0.4 * k))
    for slope, factor in ((2.0, 2), (0.8, 4), (40.0, 1), (40.0, 1)):
        objective = Known(1.0, lambda k, slope=slope: slope * k)
        assert measured(objective, gauge).factor == factor
        assert len(set(objective.factors)) == len(objective.factors)  # no width is measured twice


def test_where_nothing_can_be_told_apart_the_widths_stay():
    gauge = measured(Known(1.0, lambda k: 2.0))
    assert (gauge.factor, gauge.spread) == (1, pytest.approx(2 * STD))
    gauge = measured(Known(1.0, lambda k: 0.4 * k))
    assert measured(Known(1.0, lambda k: 2.0), gauge).factor == 1


@pytest.mark.parametrize(("edge", "factor"), [(1, 1), (5, 8), (32, 32)])
def test_an_objective_in_pieces_is_left_at_the_width_where_values_differ(edge, factor):
    gauge = measured(Known(0.0, lambda k: 0.25 if k >= edge else 0.0))
    assert (gauge.floor, gauge.factor) == (0.0, factor)
    assert gauge.spread == pytest.approx(0.25 * STD)


def test_a_flat_objective_gets_the_widest_candidates():
    gauge = measured(Known(0.0, lambda k: 0.0))
    assert (gauge.factor, gauge.spread, gauge.val_batches) == (MAX_FACTOR, 0.0, MAX_VAL_BATCHES)
    assert gauge.fitted(MGS(temperature=0.01)) == MGS(temperature=0.01, sigma=0.025 * MAX_FACTOR)


def test_equal_values_have_no_spread_whatever_rounding_does():
    gauge = NoiseGauge(1, factor=MAX_FACTOR)
    rows = torch.full((7, 5), 0.1, dtype=torch.float64)
    gauge.measure(X[:1], lambda k: torch.full((7, 1), k).double(), lambda alphas: rows)
    assert (gauge.floor, gauge.spread) == (0.0, 0.0)


def test_failed_candidates_do_not_count():
    failing = torch.zeros(4, 4, dtype=torch.float64)
    failing[0, 2] = math.nan
    gauge = measured(Known(1.0, lambda k: 4.0, failing))
    assert gauge.spread == pytest.approx(4 * torch.tensor([-1.0, 1.0, -1.0]).std().item())
    failing[1:3, 0] = math.inf
    before = gauge.state_dict() | {"is_due": False}
    gauge.is_due = True
    assert measured(Known(1.0, lambda k: 4.0, failing), gauge).state_dict() == before


def test_a_solver_that_adapts_its_steps_keeps_its_factor():
    gauge = NoiseGauge(1, factor=4.0)
    objective = Known(1.0, lambda k: 0.1 * k)
    assert measured(objective, gauge, can_widen=False).factor == 4
    assert objective.factors == [4]
    assert gauge.spread == pytest.approx(0.4 * STD)


# Rows and columns have the sum 0: no candidate and no batch is better than another.
PATTERN = torch.tensor(
    [[1.0, -1, 1, -1], [-1, 1, -1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]], dtype=torch.float64
)


@pytest.mark.parametrize(
    ("noise", "least", "expected"),
    [(0.0, 1, 1), (0.4, 1, 1), (1.0, 1, 6), (0.8, 1, 4), (5.0, 1, 8), (0.4, 3, 3), (5.0, 12, 12)],
)
def test_as_many_batches_as_the_differences_of_candidates_need(noise, least, expected):
    """The standard error of a batch is 4/3 noise, and that of the mean half a spread, STD."""
    exact = (4 / 3 * noise / (STD / 2)) ** 2
    assert expected == max(least, min(math.ceil(exact), max(least, MAX_VAL_BATCHES)))
    level = torch.tensor([100.0, -50.0, 7.0, 3.0], dtype=torch.float64)  # common to all candidates
    gauge = NoiseGauge(least)
    measured(Known(0.1, lambda k: 1.0, noise * PATTERN + level), gauge)
    assert gauge.val_batches == expected
    assert gauge.n_drawn == max(4, expected)


def test_the_temperature_is_the_spread_or_three_floors():
    for spread, temperature in ((4.0, 4.0), (2.0, 3.0)):
        gauge = measured(Known(1.0, lambda k, spread=spread: spread))
        solver = gauge.fitted(MGS(sigma=0.2, temperature=0.01))
        assert solver.temperature == pytest.approx(temperature * STD)
        # A difference of one floor changes a weight by at most exp(1/3).
        assert math.exp(gauge.floor / solver.temperature) <= math.exp(1 / 3) * (1 + 1e-12)
    unknown = NoiseGauge(1)
    assert unknown.fitted(MGS()) == MGS()
    assert unknown.metrics() == {"width_factor": 1.0, "val_batches": 1.0}


def test_the_widths_of_the_solvers():
    gauge = NoiseGauge(1, factor=4.0)
    assert gauge.fitted(RS(smoothing=0.1, learning_rate=0.5)) == RS(0.5, 0.4)
    assert gauge.fitted(GLD(max_radius=2.0, min_radius=0.25)) == GLD(8.0, 1.0)
    assert gauge.fitted(GLD()) == GLD(4.0)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_candidates_next_to_x_differ_from_it_by_little(size, dtype):
    x = torch.linspace(-size, size, 84, dtype=dtype)
    steps = torch.randn(4, 84, generator=torch.Generator().manual_seed(0)).to(dtype) / 100
    near = _almost_at(x, x + steps)
    distance = (near - x).abs()
    assert (distance.amax(1) > 0).all()
    assert len(torch.unique(near, dim=0)) == 4
    assert distance.max() <= max(1e-6 * 0.05, 5 * torch.finfo(dtype).eps * size)


def test_the_state_goes_through_a_file(tmp_path):
    gauge = measured(Known(1.0, lambda k: 0.4 * k, PATTERN))
    torch.save(gauge.state_dict(), tmp_path / "gauge.pt")
    other = NoiseGauge(1)
    other.load_state_dict(torch.load(tmp_path / "gauge.pt", weights_only=True))
    assert other == gauge != NoiseGauge(1)


# --- Searches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["mgs", "rs", "cma", "auto"])
def test_a_search_measures_in_every_epoch_and_goes_on_bit_for_bit(
    algo, search_config, tmp_path, monkeypatch, without_seconds
):
    probed: list[int] = []
    plain = BilevelObjective.batch_values

    def batch_values(objective, alphas, draw):
        probed.append(len(alphas))
        assert len(draw.val) >= 4
        return plain(objective, alphas, draw)

    monkeypatch.setattr(BilevelObjective, "batch_values", batch_values)
    config = search_config(algo, noise_aware=True, val_batches=2)
    whole = run_search(config)
    rows = whole.metrics
    columns = {"noise_floor", "spread", "width_factor", "val_batches"}
    assert columns.isdisjoint(rows[0])  # a warm-up
    for row in rows[1:]:
        assert columns <= row.keys()
        assert row["noise_floor"] >= 0
        assert row["spread"] > 0
        assert 1 <= row["width_factor"] <= MAX_FACTOR
        assert 2 <= row["val_batches"] <= MAX_VAL_BATCHES
        if algo == "mgs":
            assert row["temperature"] >= row["spread"] * (1 - 1e-12)
    # Floor and spread in two epochs, and for auto by each of the solvers that had a turn.
    assert len(probed) >= 2 * (2 if algo == "auto" else 1) * 2
    assert all(n >= 4 for n in probed)
    per_update = {"mgs": 2, "rs": 4, "cma": 14}.get(algo)
    if per_update is not None:
        assert rows[-1]["evaluations"] == 4 * per_update + sum(probed)

    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=StopAt(3))
    resumed = resume_search(tmp_path / "run")
    assert torch.equal(resumed.alpha, whole.alpha)
    assert without_seconds(resumed.metrics) == without_seconds(rows)
    if algo != "auto":
        state = RunFolder(tmp_path / "run").load_checkpoint(torch.device("cpu"))
        noise = state["own"]["updater"]["noise"] if "own" in state else state["updater"]["noise"]
        assert noise["spread"] == rows[-1]["spread"]


def test_without_the_setting_nothing_is_measured(search_config, monkeypatch):
    monkeypatch.delattr(BilevelObjective, "batch_values")
    rows = run_search(search_config("mgs", epochs=2)).metrics
    assert not {"noise_floor", "spread", "temperature"} & rows[-1].keys()
    updater = Search(config := search_config("mgs"), prepare(config))._updater
    assert "noise" not in updater.state_dict()


@pytest.mark.parametrize("algo", ["darts1", "random", "random_ws", "es"])
def test_other_methods_refuse_it(algo, search_config):
    with pytest.raises(InvalidValueError, match=r".") as caught:
        run_search(search_config(algo, noise_aware=True))
    assert str(caught.value) == (
        f"noise_aware must be false with {algo}, which does not measure noise, got true"
    )


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_published_searches_do_not_measure(preset):
    config = SearchConfig.for_dataset("cifar10", "mgs", preset=preset)
    assert (config.noise_aware, config.score) == (False, "loss")

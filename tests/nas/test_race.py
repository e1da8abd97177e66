"""``auto`` in a search: solvers that take turns, and those that a search refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError, RunInterrupted, UnknownNameError
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.race import MIN_ROUNDS, RACED, Race, mean_ranks
from zoopt_nas.nas.search.run import resume_search, run_search
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater, config_solver
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.solvers import CMA, GLD, MGS, RS, SOLVERS

CONFIG = SearchConfig.for_dataset(algo="auto", space="s3")
START = torch.full((84,), 0.25, dtype=torch.float64)


class Drifting:
    """|alpha - 1|² plus a level that every draw changes; keeps what it was asked."""

    single_path, known = False, None

    def __init__(self) -> None:
        self.n_draws = 0
        self.calls: list[tuple[int, Tensor, Tensor]] = []  # draw, candidates, values

    def draw(self) -> int:
        self.n_draws += 1
        return self.n_draws

    def alpha_gradient(self, alpha: Tensor, draw: int) -> Tensor:
        return 2 * (alpha - 1)

    def __call__(self, alphas: Tensor, draw: int) -> Tensor:
        values = ((alphas - 1) ** 2).sum(1) + 10 * math.sin(draw)
        self.calls.append((draw, alphas.clone(), values))
        return values


def race(seed: int = 0) -> Race:
    return Race.build(CONFIG, START, seed)


def turns(updater: Race, objective: Drifting, progresses: list[float]) -> list[str]:
    """The solvers that updated alpha."""
    names = []
    for progress in progresses:
        metrics = updater.step(objective, progress)
        shares = {name: metrics[f"share_{name}"] for name in RACED}
        assert sorted(shares.values()) == [0, 0, 1]
        names += [name for name, share in shares.items() if share]
    return names


def test_auto_is_the_race_and_other_solvers_are_run_alone():
    assert METHODS["auto"] is Race
    assert all(METHODS[name] is ZeroOrderUpdater for name in SOLVERS if name != "auto")


def test_the_solvers_take_turns_and_the_first_place_rotates():
    assert turns(race(), Drifting(), [0.0] * 7) == [
        *("rs", "mgs", "gld"),
        *("mgs", "gld", "rs"),
        "gld",
    ]


def test_each_goes_on_from_the_others_alpha():
    updater, objective = race(), Drifting()
    alone = {
        name: ZeroOrderUpdater(
            config_solver(SearchConfig.for_dataset(algo=name)), START, seed=0, schedule="constant"
        )
        for name in RACED
    }
    for name in ("rs", "mgs", "gld"):
        before = updater.alpha
        objective.calls.clear()
        updater.step(objective, 0.0)
        candidates = objective.calls[-1][1]
        middle = {"rs": candidates.mean(0), "gld": candidates[0]}.get(name)
        if middle is not None:
            torch.testing.assert_close(middle, before, rtol=1e-12, atol=1e-12)
        assert len(candidates) == alone[name].n_candidates
    assert updater.n_candidates == 2 + 8 + 4 + 5


def test_the_gain_of_an_update_is_measured_on_the_next_draw_and_for_each_evaluation():
    updater, objective = race(), Drifting()
    alphas = [updater.alpha]
    for _ in range(4):
        updater.step(objective, 0.0)
        alphas.append(updater.alpha)
    # Before every update but the first, the last move is looked at on the batches of this one.
    assert [(draw, len(rows)) for draw, rows, _ in objective.calls] == [
        *((1, 8), (2, 2), (2, 4), (3, 2), (3, 5), (4, 2), (4, 4))
    ]
    gains = updater.state_dict()["gains"]
    for k, (name, n) in enumerate((("rs", 8), ("mgs", 4), ("gld", 5))):
        pair = torch.stack([alphas[k], alphas[k + 1]])
        assert torch.equal(objective.calls[2 * k + 1][1], pair)
        (gain,) = gains[name]
        before, after = ((pair - 1) ** 2).sum(1).tolist()
        assert gain == pytest.approx((before - after) / n, rel=1e-6)


def test_one_solver_fewer_is_left_in_each_third():
    updater, objective = race(), Drifting()
    names = turns(updater, objective, [0.3] * 12)
    assert updater.state_dict()["left"] == list(RACED)
    gains = updater.state_dict()["gains"]
    seen = {name: gains[name][: min(map(len, gains.values()))] for name in RACED}
    assert min(map(len, seen.values())) >= MIN_ROUNDS
    worst = max(RACED, key=mean_ranks(seen).__getitem__)
    names = turns(updater, objective, [0.5] * 8)
    left = [name for name in RACED if name != worst]
    assert sorted(names) == sorted(left * 4)
    names = turns(updater, objective, [0.9] * 4)
    assert len(set(names)) == 1
    assert updater.state_dict()["left"] == names[:1]
    n_calls = len(objective.calls)
    turns(updater, objective, [0.9] * 3)
    assert len(objective.calls) == n_calls + 3  # a single solver needs no gains


def test_a_short_search_drops_nobody():
    updater, objective = race(), Drifting()
    n = MIN_ROUNDS * len(RACED)
    turns(updater, objective, [0.9] * n)  # the gain of the last update is not known yet
    assert updater.state_dict()["left"] == list(RACED)
    turns(updater, objective, [0.9] * len(RACED))
    assert updater.state_dict()["left"] == list(RACED)
    turns(updater, objective, [0.9])
    assert len(updater.state_dict()["left"]) == 2


def test_ranks():
    nan = math.nan
    gains = {"a": [3.0, -1.0, 0.0, 1.0], "b": [2.0, -2.0, 0.0, nan], "c": [1.0, 0.0, 0.0, nan]}
    assert mean_ranks(gains) == {
        "a": (0 + 1 + 1 + 0) / 4,
        "b": (1 + 2 + 1 + 1.5) / 4,
        "c": (2 + 0 + 1 + 1.5) / 4,
    }
    assert mean_ranks({"a": [1.0]}) == {"a": 0.0}


def test_the_state_goes_on_bit_for_bit(tmp_path):
    progresses = [0.0] * 10 + [0.5] * 3
    updater, objective = race(), Drifting()
    turns(updater, objective, progresses)
    torch.save(updater.state_dict(), tmp_path / "state.pt")
    other, twin = race(seed=1), Drifting()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    twin.n_draws = objective.n_draws
    assert turns(other, twin, [0.5] * 4 + [0.8] * 3) == turns(
        updater, objective, [0.5] * 4 + [0.8] * 3
    )
    assert torch.equal(other.alpha, updater.alpha)
    assert not torch.equal(race(seed=1).alpha, other.alpha)


def test_a_move_from_outside_has_no_gain():
    updater, objective = race(), Drifting()
    updater.step(objective, 0.0)
    updater.move_to(START)
    assert torch.equal(updater.alpha, START)
    updater.step(objective, 0.0)
    assert updater.state_dict()["gains"] == {"rs": [], "mgs": [], "gld": []}


@pytest.mark.parametrize("stop", [3, 5])
def test_a_search_goes_on_bit_for_bit(stop, search_config, tmp_path, without_seconds):
    class Stop(Observer):
        n_left = stop

        def on_step(self, progress):
            self.n_left -= 1

        def should_stop(self):
            return self.n_left <= 0

    config = search_config("auto", epochs=4, solver={"n_samples": 2})
    whole = run_search(config)
    # rs, mgs | gld, mgs | gld, rs: with N = 2 these have 4, 2 and 3 candidates, and gains have 2.
    assert [row["evaluations"] for row in whole.metrics] == [0, 8, 17, 28]
    shares = [[row[f"share_{name}"] for name in RACED] for row in whole.metrics[1:]]
    assert shares == [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "run", observer=Stop())
    resumed = resume_search(tmp_path / "run")
    assert torch.equal(resumed.alpha, whole.alpha)
    assert without_seconds(resumed.metrics) == without_seconds(whole.metrics)
    assert RunFolder.open(tmp_path / "run").config(SearchConfig) == config


def test_auto_has_no_option_but_n(search_config):
    with pytest.raises(UnknownNameError, match=r".") as caught:
        run_search(search_config("auto", solver={"noisy": True}))
    assert str(caught.value) == "unknown option of auto in a search 'noisy'; known: n_samples"
    with pytest.raises(InvalidValueError, match="n_samples must be a positive integer, got 0"):
        run_search(search_config("auto", solver={"n_samples": 0}))


# --- Solvers that a search refuses ---------------------------------------------------------------

REFUSAL = (
    "algo must not compare values of different updates, between which the weights change "
    "(use rs, mgs, gld, lizo, zo_signsgd, zo_adamm, cma or auto), got "
)


@pytest.mark.parametrize(
    ("algo", "options", "got"),
    [
        *((name, {}, name) for name in ("quasi_newton", "trust_region", "nelder_mead")),
        *((name, {}, name) for name in ("adaptive_gld", "adaptive_mgs")),
        ("gld", {"deterministic": True}, "gld with n_samples=2, deterministic=True"),
        ("cma", {"restart": True, "sigma": 0.3}, "cma with restart=True"),
    ],
)
def test_a_solver_that_compares_updates_is_refused(algo, options, got, search_config, tmp_path):
    with pytest.raises(InvalidValueError, match=r".") as caught:
        run_search(search_config(algo, solver=options), run_dir=tmp_path / "run")
    assert str(caught.value) == REFUSAL + got
    assert list(tmp_path.iterdir()) == []


def test_the_others_are_not():
    refused = {"quasi_newton", "trust_region", "nelder_mead", "adaptive_gld", "adaptive_mgs"}
    for name in SOLVERS.keys() - refused:
        METHODS[name].check(SearchConfig.for_dataset(algo=name))


def test_cma_in_a_search_has_a_width_on_the_scale_of_alpha():
    solver = config_solver(SearchConfig.for_dataset(algo="cma"))
    assert solver == CMA(sigma=0.3, restart=False)
    updater = ZeroOrderUpdater(solver, START, seed=0, schedule="cosine")
    assert updater.n_candidates == 17  # 4 + floor(3 ln 84)


def test_a_flat_batch_does_not_make_a_solver_look_farther_away():
    """In `minimize`, cma looks for contrast; here another level of the weights would be one."""
    updater = ZeroOrderUpdater(CMA(sigma=0.3, restart=False), START, seed=0, schedule="constant")
    asked = []

    class Flat(Drifting):
        def __call__(self, alphas: Tensor, draw: int) -> Tensor:
            asked.append(alphas.clone())
            return torch.full((len(alphas),), float(-draw), dtype=torch.float64)

    for _ in range(3):
        updater.step(Flat(), 0.0)
    assert all((rows - updater.alpha).abs().max() < 2.0 for rows in asked)
    assert all(len(rows) == 17 for rows in asked)


def test_what_the_solvers_say_of_themselves():
    assert [kind().compares_batches for kind in (RS, MGS, GLD)] == [False] * 3
    assert GLD(deterministic=True).compares_batches
    assert CMA().compares_batches
    assert not CMA(restart=False).compares_batches

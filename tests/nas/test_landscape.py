"""Landscapes of a tiny search: the plane, the panels, the paths, going on, the figure."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted, UnknownNameError
from zoopt_nas.nas.analyses.landscape import compute as landscape_run
from zoopt_nas.nas.analyses.landscape.compute import compute_landscape, follow
from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings, Plane
from zoopt_nas.nas.analyses.snapshot import Snapshot, mean_loss
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.runs.setup import prepare
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.steps.seeds import seeds_for

SMALL = LandscapeSettings(
    inner=("first", "second", "2"), step=1.0, val_batches=2, paths=(), n_updates=2
)


@pytest.fixture
def run(search_config, tmp_path):
    """The folder of a finished search; candidates one by one, so that losses are exact."""
    path = tmp_path / "run"
    nas.run_search(search_config("gld", candidates_per_batch=1), run_dir=path)
    return path


def with_(settings, **changes):
    return LandscapeSettings(**(vars(settings) | changes))


def test_directions_are_orthonormal_and_of_their_seed():
    plane = Plane.random(np.zeros(84), 5)
    gram = plane.directions @ plane.directions.T
    assert np.abs(gram - np.eye(2)).max() < 1e-12
    assert np.array_equal(plane.directions, Plane.random(np.zeros(84), 5).directions)
    assert not np.allclose(plane.directions, Plane.random(np.zeros(84), 6).directions)


def test_directions_are_uniform():
    # d1 is its Gaussian vector normalised, so its components have mean 0 and variance 1 / dim.
    # 4000 planes of 4 dimensions: the mean of each has standard deviation 0.5 / sqrt(4000) = 0.008.
    found = np.stack([Plane.random(np.zeros(4), seed).directions for seed in range(4000)])
    assert np.abs(found.mean(axis=0)).max() < 5 * 0.008
    # Var of x^2 on the sphere of 4 dimensions is 1/8 - 1/16 = 1/16: 0.25 / sqrt(4000) = 0.004.
    assert np.abs((found**2).mean(axis=0) - 0.25).max() < 5 * 0.004


def test_points_and_projections():
    centre = np.random.default_rng(0).standard_normal(10)
    plane = Plane.random(centre, 1)
    assert np.array_equal(plane.points(np.zeros((1, 2)))[0], centre)
    x, y = plane.points(np.array([[2.0, 0.0], [0.0, 3.0]])) - centre
    assert x == pytest.approx(2 * plane.directions[0], abs=1e-14)
    assert y == pytest.approx(3 * plane.directions[1], abs=1e-14)
    outside = np.linalg.svd(plane.directions)[2][2]  # orthogonal to both
    assert plane.project(0.5 * x + y + 7 * outside) == pytest.approx([1.0, 3.0], abs=1e-12)


@pytest.mark.parametrize(
    ("radius", "step", "n"), [(1.0, 0.02, 101), (1.0, 0.1, 21), (0.3, 0.1, 7), (1.0, 0.3, 7)]
)
def test_the_axis_is_symmetric_with_zero_in_the_middle(radius, step, n):
    axis = LandscapeSettings(radius=radius, step=step).axis
    assert len(axis) == n
    assert axis[n // 2] == 0
    assert np.array_equal(axis, -axis[::-1])
    assert np.diff(axis) == pytest.approx(step)
    assert axis[-1] <= radius + 1e-9


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"inner": ()}, "inner must name each panel once, got none"),
        ({"inner": ("10", "10")}, "inner must name each panel once, got 10, 10"),
        ({"inner": ("0",)}, "positive number of steps, got 0"),
        ({"inner": ("third",)}, "positive number of steps, got third"),
        ({"step": 0.0}, "step must be positive .*, got 0.0 and 1.0"),
        ({"radius": 0.01}, "got 0.02 and 0.01"),
        ({"radius": float("inf")}, "got 0.02 and inf"),
        ({"step": float("nan")}, "got nan and 1.0"),
        ({"val_batches": 0}, "val_batches must be a positive integer, got 0"),
        ({"n_draws": 0}, "n_draws must be a positive integer, got 0"),
        ({"n_updates": 0}, "n_updates must be a positive integer, got 0"),
        ({"path_lr": 0.0}, "path_lr must be positive"),
        ({"seed": -1}, "seed at least 0, got 0.1 and -1"),
        ({"inner": ("first",)}, "paths need a panel of M inner steps .*, got the panels first"),
    ],
)
def test_wrong_settings(changes, text):
    with pytest.raises(InvalidValueError, match=text):
        LandscapeSettings(**changes)


def test_a_wrong_path():
    with pytest.raises(UnknownNameError, match="unknown method of a path 'cma'"):
        LandscapeSettings(paths=("cma",))


def test_the_grid_is_the_papers_but_for_the_digits():
    assert len(LandscapeSettings().axis) == len(LandscapeSettings.for_dataset("svhn").axis) == 101
    assert len(LandscapeSettings.for_dataset("digits").axis) == 9
    assert LandscapeSettings.for_dataset("digits", step=0.5).step == 0.5


def test_the_reference_has_the_most_steps():
    assert LandscapeSettings(inner=("9", "first", "10")).reference == "10"
    assert LandscapeSettings(inner=("first",), paths=()).reference is None


def test_values_are_those_of_the_objective_with_x_along_the_first_index(run):
    found = compute_landscape(run, SMALL)
    assert found.epoch == 3
    assert found.axis.tolist() == [-1.0, 0.0, 1.0]
    search = Snapshot(RunFolder.open(run))
    centre = search.alpha.double().numpy()
    assert np.array_equal(found.plane.centre, centre)
    # Recomputed with the batches that the search would draw next.
    noise_seed = seeds_for(0, landscape_run._SEEDED)["noise"]
    draws = search.draws(1, n_train=2, n_val=2, noise_seed=noise_seed)
    assert list(found.panels) == ["first", "second", "2"]
    for name, grid in found.panels.items():
        objective = search.objective(name, draws)
        assert grid[1, 1] == objective(search.alpha[None]).item()  # the centre is alpha itself
        d1, d2 = found.plane.directions
        for i, j in ((2, 0), (0, 1)):
            alpha = centre + found.axis[i] * d1 + found.axis[j] * d2
            value = objective(torch.from_numpy(alpha).float()[None]).item()
            assert grid[i, j] == pytest.approx(value, abs=1e-6)
        assert len(np.unique(grid)) == 9  # all of them are told apart
    assert not np.allclose(found.panels["first"], found.panels["2"])


def test_the_first_order_panel_is_the_plain_loss_on_the_common_batches(run):
    search = Snapshot(RunFolder.open(run))
    draws = search.draws(1, n_train=1, n_val=2, noise_seed=0)
    value = search.objective("first", draws)(search.alpha[None]).item()
    search.supernet.train()  # BatchNorm on batch statistics
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(search.supernet(images, search.alpha), labels)
            for images, labels in draws[0].val
        ]
    assert value == pytest.approx(float(torch.stack(losses).mean()), abs=1e-6)


def test_panels_share_their_draw(run):
    search = Snapshot(RunFolder.open(run))
    (draw,) = search.draws(1, n_train=3, n_val=None, noise_seed=7)
    assert len(draw.val) == 2  # 32 images score alpha, in batches of 16
    seen = {name: search.objective(name, [draw]).draw() for name in ("first", "second", "2", "3")}
    assert [len(each.train) for each in seen.values()] == [0, 1, 2, 3]
    for each in seen.values():
        assert each.val is draw.val
        assert each.noise_seed == 7
        assert all(mine is common for mine, common in zip(each.train, draw.train, strict=False))


def test_a_loss_is_the_mean_over_the_draws(run):
    settings = with_(SMALL, inner=("first", "1"), n_draws=3)
    found = compute_landscape(run, settings)
    search = Snapshot(RunFolder.open(run))
    noise_seed = seeds_for(0, landscape_run._SEEDED)["noise"]
    draws = search.draws(3, n_train=1, n_val=2, noise_seed=noise_seed)
    assert all(draw.val is draws[0].val for draw in draws)
    assert len({draw.noise_seed + k for draw in draws for k in (0, 1)}) == 6
    trained = [draw.train[0][0] for draw in draws]
    assert not torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[1], trained[2])
    corner = search.alpha.double().numpy() + found.axis[[2, 0]] @ found.plane.directions
    alpha = torch.from_numpy(corner).float()[None]
    alone = [search.objective("1", [draw])(alpha).item() for draw in draws]
    assert len(set(alone)) == 3
    assert found.panels["1"][2, 0] == pytest.approx(np.mean(alone), abs=1e-6)
    # Nothing is drawn where nothing is trained.
    one = compute_landscape(run, with_(settings, inner=("first",), n_draws=1))
    assert np.array_equal(found.panels["first"], one.panels["first"])
    assert found.summary()["settings"]["n_draws"] == 3


def test_updates_see_the_draws_in_turn(run):
    search = Snapshot(RunFolder.open(run))
    draws = search.draws(2, n_train=2, n_val=1, noise_seed=0)
    objective = search.objective("1", draws)
    mean_loss(objective, 2)(search.alpha[None])  # all of them; the next is the first again
    seen = [objective.draw() for _ in range(3)]
    assert [draw.noise_seed for draw in seen] == [0, 2, 0]
    assert all(len(draw.train) == 1 for draw in seen)
    assert seen[1].train[0] is draws[1].train[0]
    assert objective.n_evaluations == 2


def test_the_run_is_only_read(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    compute_landscape(run, with_(SMALL, inner=("1",), paths=("gld",)))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


class Drift(AlphaUpdater):
    """Moves alpha by the same vector in every update; remembers where it was before each."""

    def __init__(self, dim, by):
        self._alpha, self._by, self.seen = torch.zeros(dim, dtype=torch.float64), by, []

    @property
    def alpha(self):
        return self._alpha

    def move_to(self, alpha):
        self._alpha = alpha.clone()

    def step(self, objective, progress):
        self.seen.append(self._alpha.numpy().copy())
        self._alpha = self._alpha + self._by
        return {}

    def state_dict(self):
        return {"alpha": self._alpha.clone()}

    def load_state_dict(self, state):
        self._alpha = state["alpha"]


def test_updates_are_projected_onto_the_plane():
    plane = Plane.random(np.arange(6.0), 3)
    outside = np.linalg.svd(plane.directions)[2][2]
    by = 0.1 * plane.directions[0] - 0.2 * plane.directions[1] + 5 * outside
    updater = Drift(6, torch.from_numpy(by))
    path = follow(updater, None, plane, np.array([0.5, 0.5]), 3)
    expected = np.array([[0.5, 0.5], [0.6, 0.3], [0.7, 0.1], [0.8, -0.1]])
    assert path == pytest.approx(expected, abs=1e-12)
    assert np.stack(updater.seen) == pytest.approx(plane.points(expected[:3]), abs=1e-12)


def test_the_paths_of_all_methods(run):
    settings = with_(
        SMALL, inner=("1",), paths=("darts1", "darts2", "rs", "mgs", "gld"), path_lr=0.05
    )
    found = compute_landscape(run, settings)
    starts = {tuple(track.coordinates[0]) for track in found.tracks.values()}
    assert len(starts) == 1
    assert np.hypot(*starts.pop()) == pytest.approx(np.sqrt(0.5))
    for name, track in found.tracks.items():
        assert track.coordinates.shape == (3, 2), name
        assert not np.array_equal(track.coordinates[0], track.coordinates[-1]), name  # it moves
    # Adam's first step is lr in every component, up to its epsilon and the sign.
    step = found.tracks["darts1"].coordinates[1] - found.tracks["darts1"].coordinates[0]
    assert (np.abs(step) <= 0.05 * np.abs(found.plane.directions).sum(axis=1) + 1e-6).all()
    # The losses beside a path are those of the panel that it is drawn on.
    search = Snapshot(RunFolder.open(run))
    noise_seed = seeds_for(0, landscape_run._SEEDED)["noise"]
    objective = search.objective("1", search.draws(1, n_train=1, n_val=2, noise_seed=noise_seed))
    points = torch.from_numpy(found.plane.points(found.tracks["gld"].coordinates)).float()
    assert found.tracks["gld"].values == pytest.approx(objective(points).numpy(), abs=1e-6)
    again = compute_landscape(run, settings)
    assert np.array_equal(again.tracks["mgs"].coordinates, found.tracks["mgs"].coordinates)


@pytest.mark.parametrize(
    ("algo", "options"), [("beta_darts", {}), ("gdas", {"sampled_paths": 2}), ("rome", {})]
)
def test_paths_of_other_methods_have_their_own_settings(algo, options, search_config, tmp_path):
    """The run has a setting that the methods of the paths refuse, as a penalty on alpha."""
    nas.run_search(search_config(algo, epochs=2, **options), run_dir=tmp_path / "run")
    paths = ("darts1", "gld")
    settings = with_(SMALL, paths=paths)
    assert tuple(compute_landscape(tmp_path / "run", settings).tracks) == paths


def test_a_stopped_landscape_goes_on(run, tmp_path):
    whole = compute_landscape(run, SMALL, out=tmp_path / "whole")
    counts = []

    def stop_after_four():
        return len(counts) == 4

    out = tmp_path / "deep" / "out"
    text = re.escape(
        f"stopped after 4 of 9 rows and paths; the rows are in {out}; run it again to continue"
    )
    with pytest.raises(RunInterrupted, match=text):
        compute_landscape(
            run,
            SMALL,
            out=out,
            on_progress=lambda *count: counts.append(count),
            should_stop=stop_after_four,
        )
    assert counts == [(1, 9), (2, 9), (3, 9), (4, 9)]
    with np.load(out / "landscape.npz") as partial:
        assert np.isnan(partial["values_second"]).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert not (out / "landscape.json").exists()
    asked = []
    again = compute_landscape(run, SMALL, out=out, should_stop=lambda: bool(asked.append(1)))
    assert len(asked) == 5  # the four rows are not computed again
    for name, grid in whole.panels.items():
        assert np.array_equal(again.panels[name], grid), name
    assert json.loads((out / "landscape.json").read_text()) == whole.summary()
    assert sorted(path.name for path in out.iterdir()) == ["landscape.json", "landscape.npz"]


def test_a_stopped_landscape_of_several_draws_goes_on(run, tmp_path):
    settings = with_(SMALL, inner=("1",), n_draws=2)
    whole = compute_landscape(run, settings)
    counts = []
    with pytest.raises(RunInterrupted, match="stopped after 1 of 3 rows"):
        compute_landscape(
            run,
            settings,
            out=tmp_path / "out",
            on_progress=lambda *count: counts.append(count),
            should_stop=lambda: len(counts) == 1,
        )
    again = compute_landscape(run, settings, out=tmp_path / "out")
    assert np.array_equal(again.panels["1"], whole.panels["1"])


def test_more_panels_keep_those_that_are_there(run, tmp_path):
    one = compute_landscape(run, with_(SMALL, inner=("1",)), out=tmp_path / "out")
    compute_landscape(run, with_(SMALL, inner=("2",)), out=tmp_path / "out")
    with np.load(tmp_path / "out" / "landscape.npz") as file:
        assert np.array_equal(file["values_1"], one.panels["1"])
        assert file["values_2"].shape == (3, 3)


def test_another_landscape_is_not_mixed_in(run, tmp_path):
    settings = with_(SMALL, inner=("first",))
    compute_landscape(run, settings, out=tmp_path / "out")
    with pytest.raises(RunError, match=r"got one with seed 0 instead of 1; name another folder"):
        compute_landscape(run, with_(settings, seed=1), out=tmp_path / "out")
    with pytest.raises(RunError, match=r"got one with n_draws 1 instead of 2; name another"):
        compute_landscape(run, with_(settings, n_draws=2), out=tmp_path / "out")
    (tmp_path / "out" / "landscape.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(RunError, match=r"landscape\.npz is damaged, or no landscape"):
        compute_landscape(run, settings, out=tmp_path / "out")


def test_a_run_without_a_checkpoint(search_config, tmp_path):
    config = search_config("gld")
    record = DataRecord.of(prepare(config).dataset)
    RunFolder.create(tmp_path / "new", config, record)
    with pytest.raises(RunError, match="new has no checkpoint yet, so there are no weights"):
        compute_landscape(tmp_path / "new", SMALL)

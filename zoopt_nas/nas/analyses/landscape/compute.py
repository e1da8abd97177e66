"""Computes a loss landscape from the run folder of a search; see ``plane`` for its definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoopt_nas.errors import NotEnoughMemoryError, RunInterrupted
from zoopt_nas.nas.analyses.landscape.grid_file import GridFile
from zoopt_nas.nas.analyses.landscape.plane import Landscape, LandscapeSettings, Plane, Track
from zoopt_nas.nas.analyses.landscape.sharpness import Array
from zoopt_nas.nas.analyses.snapshot import Snapshot, mean_loss
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.evaluation import Draw
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.updater import OWN_SETTINGS, AlphaUpdater
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.defaults import solver_options
from zoopt_nas.nas.settings.paper_size import reductions
from zoopt_nas.nas.steps.execution import cpu_threads
from zoopt_nas.nas.steps.seeds import seeds_for

SUMMARY = "landscape.json"
_SEEDED = ("directions", "start", "noise", "solvers")


def _updater(search: Snapshot, method: str, path_lr: float, seed: int) -> AlphaUpdater:
    """Return a method as in a search, except for the learning rate of DARTS."""
    is_same = method == search.config.algo
    options = search.config.solver if is_same else solver_options(method, search.config.space)
    usual = search.config.defaults_for(search.config.dataset, method, search.config.space)
    config = search.config.replace(
        **{"algo": method, "solver": dict(options), "alpha_lr": path_lr},
        **{"score": "loss", "noise_aware": False},
        **{name: usual[name] for name in (() if is_same else OWN_SETTINGS)},
    )
    return METHODS[method].build(config, search.alpha, seed)


def compute_landscape(
    run_dir: str | Path,
    settings: LandscapeSettings | None = None,
    *,
    out: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Landscape:
    """Return the landscape around the alpha of a search's last checkpoint; the run is only read.

    Args:
        run_dir: the folder of a search, finished or not.
        settings: None for the defaults of the data set.
        out: the folder of ``landscape.json`` and ``landscape.npz``; the latter is written after
            every row of a grid, so that a stopped landscape continues. None writes nothing.
        on_progress: called with the number of steps done and their total; a step is a row of a
            grid, or a path.
        should_stop: called before every step.

    Raises:
        RunError: the run is not usable, or ``out`` holds another landscape or cannot be written.
        RunInterrupted: ``should_stop`` returned True; the rows so far are in ``out``.
        InvalidValueError: no loss of a panel is finite.
        NotEnoughMemoryError: the device has too little memory.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(SearchConfig)
    settings = settings or LandscapeSettings.for_dataset(config.dataset)
    with cpu_threads(config.threads):
        try:
            search = Snapshot(folder)
            n_steps = len(settings.inner) * len(settings.axis) + len(settings.paths)
            ticker = _Ticker(n_steps, on_progress, should_stop, out)
            return _compute(search, settings, None if out is None else Path(out), ticker)
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemoryError(
                "out of memory: val_batches must be lower, or the device have more free"
            ) from error


@dataclass
class _Ticker:
    """Counts rows of grids and paths, and stops the landscape when asked to."""

    n_all: int
    on_progress: Callable[[int, int], None]
    should_stop: Callable[[], bool]
    out: str | Path | None
    n_done: int = 0

    def check(self) -> None:
        """Raise before a step if the landscape has to stop."""
        if self.should_stop():
            where = f"stopped after {self.n_done} of {self.n_all} rows and paths"
            raise RunInterrupted(
                f"{where}; nothing is saved without a folder"
                if self.out is None
                else f"{where}; the rows are in {self.out}; run it again to continue"
            )

    def tick(self) -> None:
        """Count a completed step."""
        self.n_done += 1
        self.on_progress(self.n_done, self.n_all)


def _compute(
    search: Snapshot, settings: LandscapeSettings, out: Path | None, ticker: _Ticker
) -> Landscape:
    seeds = seeds_for(settings.seed, _SEEDED)
    axis, centre = settings.axis, _to_host(search.alpha)
    plane = Plane.random(centre, seeds["directions"])
    draws = search.draws(
        settings.n_draws,
        n_train=int(settings.reference or 1),
        n_val=settings.val_batches,
        noise_seed=seeds["noise"],
    )
    n_val = len(draws[0].val)
    identity = {
        "checkpoint": [search.epoch, search.step],
        "radius": settings.radius,
        "step": settings.step,
        "val_batches": n_val,
        "n_draws": settings.n_draws,
        "seed": settings.seed,
    }
    arrays = {"axis": axis, "centre": centre, "directions": plane.directions}
    grids = GridFile(out, identity, arrays)
    for name in settings.inner:
        objective = search.objective(name, draws)
        for i in range(len(axis)):
            if not grids.has_row(name, i):
                ticker.check()
                row = np.column_stack([np.full(len(axis), axis[i]), axis])
                grids.put_row(name, i, _losses(objective, len(draws), plane.points(row)))
            ticker.tick()
    landscape = Landscape(
        settings=settings,
        epoch=search.epoch,
        val_batches=n_val,
        axis=axis,
        plane=plane,
        panels={name: grids[name] for name in settings.inner},
        tracks=dict(_tracks(search, settings, plane, draws, seeds, ticker)),
        reduced=(*reductions(search.config), *settings.reductions()),
    )
    if out is not None:
        grids.put_tracks(landscape.tracks)
        text = json.dumps(landscape.summary(), indent=2, allow_nan=False)
        RunFolder(out).write(SUMMARY, text + "\n")
    return landscape


def _tracks(
    search: Snapshot,
    settings: LandscapeSettings,
    plane: Plane,
    draws: Sequence[Draw],
    seeds: dict[str, int],
    ticker: _Ticker,
) -> Iterator[tuple[str, Track]]:
    """Yield the paths, all from one random start, with the losses of the reference panel."""
    reference = settings.reference
    if not settings.paths or reference is None:
        return
    angle = np.random.default_rng(seeds["start"]).uniform(0, 2 * math.pi)
    # The distance of the released script's start, (-0.5, 0.5) in a square of radius 1.
    start = math.sqrt(0.5) * settings.radius * np.array([math.cos(angle), math.sin(angle)])
    scored = search.objective(reference, draws)
    for name in settings.paths:
        ticker.check()
        objective = search.objective(METHODS[name].inner or reference, draws)
        updater = _updater(search, name, settings.path_lr, seeds["solvers"])
        coordinates = follow(updater, objective, plane, start, settings.n_updates)
        yield name, Track(coordinates, _losses(scored, len(draws), plane.points(coordinates)))
        ticker.tick()


def follow(
    updater: AlphaUpdater, objective: BilevelObjective, plane: Plane, start: Array, n_updates: int
) -> Array:
    """Return the path ``(n_updates + 1, 2)`` of a method in a plane, from ``start`` ``(2,)`` on.

    Every update starts at the current point of the plane, is made in the whole space, and is
    projected onto the plane. The method's other state, such as Adam's moments, is not projected.
    The alpha of ``updater`` is overwritten.
    """
    coordinates = np.tile(start, (n_updates + 1, 1))
    for i in range(n_updates):
        alpha = plane.points(coordinates[i])
        updater.move_to(torch.from_numpy(alpha))
        before = _to_host(updater.alpha)  # rounded to the precision of the weights
        updater.step(objective, progress=0.0)
        coordinates[i + 1] = coordinates[i] + plane.project(_to_host(updater.alpha) - before)
    return coordinates


def _losses(objective: BilevelObjective, n_draws: int, alphas: Array) -> Array:
    """Return the losses ``(n,)`` of alphas ``(n, dim)``, averaged over draws."""
    like = next(objective.supernet.parameters())
    return _to_host(mean_loss(objective, n_draws)(torch.from_numpy(alphas).to(like)))


def _to_host(vector: Tensor) -> Array:
    array: Array = vector.detach().to("cpu", torch.float64).numpy()
    return array

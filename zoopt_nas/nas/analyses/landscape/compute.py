"""Computes a loss landscape from the run folder of a search; ``landscape`` says what it is.

The grids are written after every row, so that a landscape that was stopped goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoopt_nas.errors import NotEnoughMemoryError, RunInterrupted
from zoopt_nas.nas.analyses.landscape.grid_file import GridFile
from zoopt_nas.nas.analyses.landscape.plane import (
    Landscape,
    LandscapeSettings,
    Plane,
    Track,
)
from zoopt_nas.nas.analyses.landscape.sharpness import Array
from zoopt_nas.nas.analyses.snapshot import Snapshot
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.objective import BilevelObjective, Draw
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.defaults import solver_options
from zoopt_nas.nas.settings.paper_size import reductions
from zoopt_nas.nas.steps.execution import cpu_threads
from zoopt_nas.nas.steps.seeds import seeds_for

SUMMARY = "landscape.json"
_SEEDED = ("directions", "start", "noise", "solvers")


def _updater(search: Snapshot, method: str, path_lr: float, seed: int) -> AlphaUpdater:
    """A method as a search of its own would have it, but for the learning rate of DARTS."""
    own = solver_options(method, search.config.space)
    if method == search.config.algo:
        own = dict(search.config.solver)
    config = search.config.replace(algo=method, solver=own, alpha_lr=path_lr)
    return METHODS[method].build(config, search.alpha, seed)


def compute_landscape(
    run_dir: str | Path,
    settings: LandscapeSettings | None = None,
    *,
    out: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Landscape:
    """The landscape around the alpha of a search's last checkpoint; the run is only read.

    Args:
        run_dir: the folder of a search, finished or not.
        settings: None = the defaults for the data set.
        out: a folder for ``landscape.npz``, which is written after every row of the grid and from
            which a stopped landscape goes on, and ``landscape.json``. None writes nothing.
        on_progress: called with the steps done and their number: rows of grids, and paths.
        should_stop: asked between two steps.

    Raises:
        RunError: no usable run, or ``out`` holds another landscape or cannot be written.
        RunInterrupted: ``should_stop`` said so; the rows so far are in ``out``.
        InvalidValueError: no loss of a panel is finite.
        NotEnoughMemoryError: the device has too little memory.
    """
    folder = RunFolder.open(run_dir)
    config = folder.config(SearchConfig)
    settings = settings or LandscapeSettings.for_dataset(config.dataset)
    with cpu_threads(config.threads):
        try:
            search = Snapshot(folder)
            ticker = _Ticker(settings, on_progress, should_stop, out)
            return _compute(search, settings, None if out is None else Path(out), ticker)
        except torch.OutOfMemoryError as error:
            raise NotEnoughMemoryError(
                "out of memory: val_batches must be lower, or the device have more free"
            ) from error


class _Ticker:
    """Counts the steps of a landscape, rows of grids and paths, and stops it when asked to."""

    def __init__(
        self,
        settings: LandscapeSettings,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        out: str | Path | None,
    ) -> None:
        self._n_done = 0
        self._n_all = len(settings.inner) * len(settings.axis) + len(settings.paths)
        self._on_progress, self._should_stop, self._out = on_progress, should_stop, out

    def check(self) -> None:
        """Called before the work of a step."""
        if self._should_stop():
            where = f"stopped after {self._n_done} of {self._n_all} rows and paths"
            raise RunInterrupted(
                f"{where}; nothing is saved without a folder"
                if self._out is None
                else f"{where}; the rows are in {self._out}, and the same command goes on"
            )

    def tick(self) -> None:
        """Called after a step."""
        self._n_done += 1
        self._on_progress(self._n_done, self._n_all)


def _compute(
    search: Snapshot,
    settings: LandscapeSettings,
    out: Path | None,
    ticker: _Ticker,
) -> Landscape:
    seeds = seeds_for(settings.seed, _SEEDED)
    axis, centre = settings.axis, _to_host(search.alpha)
    plane = Plane.random(centre, seeds["directions"])
    draw = search.draw_once(int(settings.reference or 1), settings.val_batches, seeds["noise"])
    identity = {
        "checkpoint": [search.epoch, search.step],
        "radius": settings.radius,
        "step": settings.step,
        "val_batches": len(draw.val),
        "seed": settings.seed,
    }
    grids = GridFile(
        out, identity, {"axis": axis, "centre": centre, "directions": plane.directions}
    )
    for name in settings.inner:
        objective = search.objective(name, draw)
        for i in range(len(axis)):
            if not grids.has_row(name, i):
                ticker.check()
                row = np.column_stack([np.full(len(axis), axis[i]), axis])
                grids.put_row(name, i, _losses(objective, plane.points(row)))
            ticker.tick()
    landscape = Landscape(
        settings=settings,
        epoch=search.epoch,
        val_batches=len(draw.val),
        axis=axis,
        plane=plane,
        panels={name: grids[name] for name in settings.inner},
        tracks=dict(_tracks(search, settings, plane, draw, seeds, ticker)),
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
    draw: Draw,
    seeds: dict[str, int],
    ticker: _Ticker,
) -> Iterator[tuple[str, Track]]:
    """The paths, all from one random start, and the losses of the reference panel along them."""
    reference = settings.reference
    if not settings.paths or reference is None:
        return
    angle = np.random.default_rng(seeds["start"]).uniform(0, 2 * math.pi)
    # As far from alpha as the start of the released script, (-0.5, 0.5) in a square of radius 1.
    start = math.sqrt(0.5) * settings.radius * np.array([math.cos(angle), math.sin(angle)])
    scored = search.objective(reference, draw)
    for name in settings.paths:
        ticker.check()
        objective = search.objective(METHODS[name].inner or reference, draw)
        updater = _updater(search, name, settings.path_lr, seeds["solvers"])
        coordinates = follow(updater, objective, plane, start, settings.n_updates)
        yield name, Track(coordinates, _losses(scored, plane.points(coordinates)))
        ticker.tick()


def follow(
    updater: AlphaUpdater,
    objective: BilevelObjective,
    plane: Plane,
    start: Array,
    n_updates: int,
) -> Array:
    """The path of a method that is held in a plane, ``(n_updates + 1, 2)``, the start first.

    Every update is made in the whole space, from the present point of the plane, and projected.
    What the method remembers of earlier updates, such as Adam's moments, is not projected.

    Args:
        updater: of a method in ``PATH_METHODS``; its alpha is overwritten.
        objective: what it goes down on.
        plane: where it is held.
        start: ``(2,)``.
        n_updates: how many.
    """
    coordinates = np.tile(start, (n_updates + 1, 1))
    for i in range(n_updates):
        alpha = plane.points(coordinates[i])
        updater.move_to(torch.from_numpy(alpha))
        before = _to_host(updater.alpha)  # alpha, rounded to the precision of the weights
        updater.step(objective, progress=0.0)
        coordinates[i + 1] = coordinates[i] + plane.project(_to_host(updater.alpha) - before)
    return coordinates


def _losses(objective: BilevelObjective, alphas: Array) -> Array:
    """The losses ``(n,)`` of alphas ``(n, dim)``."""
    like = next(objective.supernet.parameters())
    return _to_host(objective(torch.from_numpy(alphas).to(like)))


def _to_host(vector: Tensor) -> Array:
    array: Array = vector.detach().to("cpu", torch.float64).numpy()
    return array

"""Loss landscapes over alpha (paper, Fig. 1, Fig. 3, A.2): the losses of a plane through alpha.

Two orthonormal random directions span the plane. Every panel is ``BilevelObjective`` with another
approximation of omega*. All points of all panels use the same batches, noise and initial weights,
and BatchNorm on batch statistics, so two panels differ only by the approximation. With several
draws of the training batches, the loss of a point is its mean over them.

The paths of search methods are drawn on top: each update is made in the whole space of alpha and
then projected onto the plane. The weights of the checkpoint stay fixed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from zoopt_nas._files import as_json
from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.analyses.landscape.sharpness import Array, Sharpness, measure_sharpness
from zoopt_nas.nas.analyses.snapshot import GRADIENT_INNER

PAPER_STEP, _DIGITS_STEP = 0.02, 0.25
PATH_METHODS = ("darts1", "darts2", "rs", "mgs", "gld")


@dataclass(frozen=True)
class LandscapeSettings:
    """Settings of a landscape.

    Attributes:
        inner: the panels, each an approximation of omega*: ``first`` (Eq. 3), ``second`` (Eq. 2),
            or M, a number of inner steps. The default is Fig. 3.
        radius: half of the square's side, in units of alpha: 1 (paper).
        step: spacing of the grid: 0.02, 10201 points (paper).
        val_batches: number of batches of L_val; None is one pass over the validation part, at most
            16 batches (the released script takes all).
        paths: methods of ``PATH_METHODS`` whose paths are drawn; they need a panel of M steps.
        n_updates: updates of each path: 10 (paper).
        path_lr: Adam's learning rate in the paths of DARTS. The 3e-4 of a search would move alpha
            by an invisible 0.003 in 10 updates.
        seed: of the directions, the start of the paths, and the draws of the solvers.

    Raises:
        InvalidValueError: a value breaks its rule.
        UnknownNameError: a path is of no such method.
    """

    inner: tuple[str, ...] = ("first", "second", "10")
    radius: float = 1.0
    step: float = PAPER_STEP
    val_batches: int | None = None
    n_draws: int = 1
    paths: tuple[str, ...] = ("darts1", "rs", "mgs", "gld")
    n_updates: int = 10
    path_lr: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.inner or len(set(self.inner)) < len(self.inner):
            raise InvalidValueError(
                f"inner must name each panel once, got {', '.join(self.inner) or 'none'}"
            )
        for name in self.inner:
            is_number = name.isascii() and name.isdigit() and not name.startswith("0")
            if name not in GRADIENT_INNER and not is_number:
                raise InvalidValueError(
                    f"inner must be first, second or a positive number of steps, got {name}"
                )
        if not 0 < self.step <= self.radius < math.inf:
            raise InvalidValueError(
                "step must be positive and at most radius, which must be finite, "
                f"got {self.step} and {self.radius}"
            )
        for field in ("val_batches", "n_draws", "n_updates"):
            if (count := getattr(self, field)) is not None and count < 1:
                raise InvalidValueError(f"{field} must be a positive integer, got {count}")
        if not 0 < self.path_lr < math.inf or self.seed < 0:
            raise InvalidValueError(
                "path_lr must be positive and finite, and seed at least 0, "
                f"got {self.path_lr} and {self.seed}"
            )
        for name in self.paths:
            if name not in PATH_METHODS:
                raise UnknownNameError("method of a path", name, PATH_METHODS)
        if self.paths and self.reference is None:
            raise InvalidValueError(
                "paths need a panel of M inner steps to be drawn on, "
                f"got the panels {', '.join(self.inner)}"
            )

    @property
    def reference(self) -> str | None:
        """The panel with the most inner steps, closest to omega*; None if there is none."""
        return max(
            (name for name in self.inner if name not in GRADIENT_INNER), key=int, default=None
        )

    @classmethod
    def for_dataset(cls, dataset: str, **overrides: Any) -> Self:
        """Return the defaults for a data set, with ``overrides``.

        The bundled digits get a grid of 81 points, which takes minutes on two CPU cores.
        """
        return cls(**{"step": _DIGITS_STEP if dataset == "digits" else PAPER_STEP, **overrides})

    def reductions(self) -> list[str]:
        """Return how the grid is coarser than the paper's, as ``paper_size.reductions``."""
        return [f"step {self.step:g}, not {PAPER_STEP:g}"] if self.step > PAPER_STEP else []

    @property
    def axis(self) -> Array:
        """The coordinates of the grid, ``(n,)``: multiples of ``step``, 0 in the middle."""
        n = math.floor(self.radius / self.step * (1 + 1e-12))  # 0.3 / 0.1 is below 3
        axis: Array = self.step * np.arange(-n, n + 1, dtype=np.float64)
        return axis


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through an alpha: the point (x, y) is ``centre + x d1 + y d2``."""

    centre: Array  # (dim,), float64
    directions: Array  # (2, dim): d1 and d2, orthonormal

    @classmethod
    def random(cls, centre: Array, seed: int) -> Plane:
        """Return a plane with uniform directions: Gaussian vectors, orthonormalized by QR."""
        gaussian = np.random.default_rng(seed).standard_normal((len(centre), 2))
        basis, upper = np.linalg.qr(gaussian)
        return cls(centre, (basis * np.sign(np.diag(upper))).T)

    def points(self, coordinates: Array) -> Array:
        """Return the alphas ``(n, dim)`` at ``coordinates`` ``(n, 2)``."""
        points: Array = self.centre + coordinates @ self.directions
        return points

    def project(self, displacement: Array) -> Array:
        """Return the coordinates ``(2,)`` of the orthogonal projection of ``displacement``."""
        coordinates: Array = self.directions @ displacement
        return coordinates


@dataclass(frozen=True, eq=False)
class Track:
    """The path of a method in the plane."""

    coordinates: Array  # (n_updates + 1, 2), the start first
    values: Array  # (n_updates + 1,): the losses there, in the reference panel


@dataclass(frozen=True, eq=False)
class Landscape:
    """The losses of a plane under several approximations of omega*.

    Attributes:
        settings: the settings.
        epoch: number of epochs that the weights were trained.
        val_batches: number of batches of L_val.
        axis: ``(n,)``, of both directions.
        plane: the plane.
        panels: losses ``(n, n)`` by name of ``settings.inner``: ``values[i, j]`` is the loss at
            x = axis[i] along d1 and y = axis[j] along d2 (``indexing="ij"``).
        tracks: the paths by method.
        reduced: what is smaller than in the paper.
    """

    settings: LandscapeSettings
    epoch: int
    val_batches: int
    axis: Array
    plane: Plane
    panels: dict[str, Array]
    tracks: dict[str, Track]
    reduced: tuple[str, ...] = ()

    def sharpness(self) -> dict[str, Sharpness]:
        """Return the measures of every panel."""
        return {name: measure_sharpness(self.axis, grid) for name, grid in self.panels.items()}

    def summary(self) -> dict[str, Any]:
        """Return the contents of ``landscape.json``; non-finite numbers become None."""
        measures = self.sharpness()
        reference = self.settings.reference or self.settings.inner[-1]
        summary = {
            "settings": dataclasses.asdict(self.settings) | {"val_batches": self.val_batches},
            "reduced": list(self.reduced),
            "epoch": self.epoch,
            "batch_norm": "batch statistics",
            "reference": reference,
            "panels": {
                name: {
                    **dataclasses.asdict(measure),
                    "distance_to_reference": measure.distance_to(measures[reference]),
                }
                for name, measure in measures.items()
            },
            "paths": {
                name: {
                    "start": track.coordinates[0].tolist(),
                    "end": track.coordinates[-1].tolist(),
                    "start_value": float(track.values[0]),
                    "end_value": float(track.values[-1]),
                    "distance_to_minimum": math.dist(
                        track.coordinates[-1], measures[reference].minimum
                    ),
                }
                for name, track in self.tracks.items()
            },
        }
        return {key: as_json(value) for key, value in summary.items()}

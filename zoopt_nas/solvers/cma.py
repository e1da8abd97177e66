"""CMA-ES: evolution with an adapted covariance matrix, by the package ``cmaes``.

Source: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; Ros and Hansen, "A
Simple Modification in CMA-ES Achieving Linear Time and Space Complexity", PPSN X, 2008
(sep-CMA-ES); Auger and Hansen, "A Restart CMA Evolution Strategy With Increasing Population Size",
CEC 2005 (IPOP); Nomura and Shibata, "cmaes: A Simple yet Practical Python Library for CMA-ES",
arXiv 2402.01373.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from zoopt_nas import sampling
from zoopt_nas._arrays import Array, Generator, array_namespace, as_like, import_torch, to_numpy
from zoopt_nas._checks import check_bool, check_choice, check_positive, check_positive_int
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers.base import Solver, SolverState

COVARIANCES = ("auto", "full", "diagonal")

# The largest dim with a full matrix for "auto": cmaes multiplies matrices for each candidate.
_LARGEST_FULL_DIM = 200
# With fewer samples, the update of the covariance matrix in cmaes divides by zero.
_LEAST_N_SAMPLES = 4
# cmaes rejects coordinates from 1e32 on.
_LARGEST_COORDINATE = 0.99e32


@dataclass(eq=False)
class CMAState:
    """The state of CMA-ES; ``optimizer`` holds the attributes of the optimizer of cmaes."""

    origin: np.ndarray  # the start, (dim,), around which restarts begin
    optimizer: dict[str, Any] = field(default_factory=dict)
    n_restarts: int = 0  # the number of restarts


@dataclass(frozen=True)
class CMA(Solver):
    """CMA-ES: samples a normal distribution and moves it towards the better half of the samples.

    It only compares values, and computes in float64 on the CPU. The iterate is the mean of the
    distribution, which is never evaluated. When ``should_stop`` of cmaes reports that a run has
    converged or diverged, a new run begins with twice the population (IPOP), at a normal draw
    around the start of standard deviation ``sigma``.

    Attributes:
        sigma: > 0, the first standard deviation, per coordinate, in units of x: about a third of
            the range in which the optimum is expected. None: 1.
        n_samples: the population, >= 4. None: 4 + floor(3 ln dim) (Eq. 48 of the tutorial).
        restart: whether a converged run restarts. If not, it continues to sample; only a run that
            overflowed restarts.
        covariance: ``"full"``, ``"diagonal"`` (sep-CMA-ES, from 2 dimensions) or ``"auto"``: full
            up to 200 dimensions.
    """

    name: ClassVar[str] = "cma"
    adapts_steps: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("sigma",)
    inner_states: ClassVar[tuple[type, ...]] = (CMAState,)

    sigma: float | None = None
    n_samples: int | None = None
    restart: bool = True
    covariance: str = "auto"

    def __post_init__(self) -> None:
        if self.sigma is not None:
            check_positive("sigma", self.sigma)
        if self.n_samples is not None:
            check_positive_int("n_samples", self.n_samples)
            if self.n_samples < _LEAST_N_SAMPLES:
                raise InvalidValueError(
                    f"n_samples must be at least {_LEAST_N_SAMPLES}, got {self.n_samples}"
                )
        check_bool("restart", self.restart)
        check_choice("covariance", self.covariance, COVARIANCES)

    @property
    def compares_batches(self) -> bool:
        """Whether values that stop changing end a run: only the restarts look at several batches.

        Mean, step size and covariance follow from the ranks within each batch.
        """
        return self.restart

    @property
    def _sigma(self) -> float:
        return 1.0 if self.sigma is None else self.sigma

    def _ask(self, state: SolverState, guide: Array | None) -> Array:
        if state.inner is None:  # not in `_init`, because a warm start moves x
            self._start(state)
        optimizer = _loaded(state.inner)
        optimizer._rng = np.random.RandomState(_seed(state.rng))
        drawn = np.array([optimizer.ask() for _ in range(optimizer.population_size)])
        limit = float(array_namespace(state.x).finfo(state.x.dtype).max)
        return as_like(
            "candidates", np.clip(self._sigma * drawn, -limit, limit), state.x, drawn.shape
        )

    def _tell(self, state: SolverState, candidates: Array, values: Array) -> Array:
        host = np.asarray(to_numpy(values), dtype=np.float64)
        if np.all(np.isinf(host)):  # nothing to rank
            return state.x
        optimizer = _loaded(state.inner)
        # The worse half counts as drawn and the better half as evaluated: cmaes scales rows with
        # negative weights to full length, so one that a box has moved next to the mean would make
        # the matrix collapse in its direction.
        rows = np.asarray(to_numpy(candidates), dtype=np.float64) / self._sigma
        drawn = np.asarray(to_numpy(state.pending), dtype=np.float64) / self._sigma
        is_worse = np.argsort(np.argsort(host, kind="stable")) >= len(host) // 2
        rows = np.where(is_worse[:, None], drawn, rows)
        rows = np.clip(rows, -_LARGEST_COORDINATE, _LARGEST_COORDINATE)
        with np.errstate(all="ignore"):
            optimizer.tell(list(zip(rows, host.tolist(), strict=True)))
            x = self._sigma * optimizer.mean
            if _has_ended(optimizer, self.restart):
                self._restart(state, 2 * optimizer.population_size)
            else:
                _save(state.inner, optimizer)
        state.metrics["sigma"] = self._sigma * float(state.inner.optimizer["_sigma"])
        state.metrics["n_restarts"] = state.inner.n_restarts
        return as_like("x", x, state.x, x.shape)

    def _start(self, state: SolverState) -> None:
        origin = np.array(to_numpy(state.x), dtype=np.float64)
        if np.max(np.abs(origin)) / self._sigma >= _LARGEST_COORDINATE:
            raise InvalidValueError(f"x0 must be below 1e32 * sigma for cma, got {origin!r}")
        state.inner = CMAState(origin)
        _save(state.inner, self._optimizer(origin, self.n_samples))

    def _restart(self, state: SolverState, n_samples: int) -> None:
        inner: CMAState = state.inner
        step = np.array(to_numpy(sampling.gaussian(state.rng, 1, state.x)[0]), dtype=np.float64)
        inner.n_restarts += 1
        _save(inner, self._optimizer(inner.origin + self._sigma * step, n_samples))

    def _optimizer(self, mean: np.ndarray, n_samples: int | None) -> Any:
        """Return an optimizer of cmaes in units of sigma, in which its tolerances are."""
        import cmaes  # here, because it loads slowly

        dim = len(mean)
        is_full = self.covariance == "full" or (
            self.covariance == "auto" and dim <= _LARGEST_FULL_DIM
        )
        kind = cmaes.CMA if is_full or dim == 1 else cmaes.SepCMA
        mean = np.clip(mean / self._sigma, -_LARGEST_COORDINATE, _LARGEST_COORDINATE)
        optimizer = kind(mean=mean, sigma=1.0, population_size=n_samples)
        optimizer.should_stop()  # decomposes the matrix, as after every `tell`
        return optimizer


def _save(inner: CMAState, optimizer: Any) -> None:
    """Move the attributes of the optimizer into the state.

    Rounding makes the triangles of a full matrix differ. As in a pickle of cmaes, the upper one
    replaces the lower one.
    """
    parts = {name: v for name, v in vars(optimizer).items() if name not in ("_rng", "_bounds")}
    if "_B" in parts:  # the matrix is full
        C = parts["_C"]
        parts["_C"] = np.where(np.tri(len(C), dtype=bool), C.T, C)
    inner.optimizer = parts


def _loaded(inner: CMAState) -> Any:
    """Return an optimizer with the attributes in the state, which it writes into.

    It has no generator: creating one takes as long as drawing twenty candidates.
    """
    import cmaes

    kind = cmaes.CMA if "_B" in inner.optimizer else cmaes.SepCMA
    optimizer: Any = object.__new__(kind)
    vars(optimizer).update(inner.optimizer)
    optimizer.set_bounds(None)
    return optimizer


def _has_ended(optimizer: Any, restart: bool) -> bool:
    """Return whether the optimizer cannot go on or, with ``restart``, has converged."""
    if not (np.all(np.isfinite(optimizer.mean)) and np.max(np.abs(optimizer.mean)) < 1e32):
        return True
    try:
        should_stop = bool(optimizer.should_stop())
    except np.linalg.LinAlgError:  # the covariance matrix has overflowed
        return True
    return should_stop and restart


def _seed(rng: Generator) -> int:
    """Draw the seed of one generation."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**32))
    return int(import_torch().randint(2**32, (1,), generator=rng, device=rng.device)[0])

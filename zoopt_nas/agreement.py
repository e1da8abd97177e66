"""How far the steps of RS, MGS and GLD agree with the gradient (ZARTS, section 4.4, Eq. 13-19).

Measured with the solvers themselves, on a bilevel problem whose fitted weights, gradient and
smoothed gradient have closed forms; beside each measurement stands what theory says of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import integrate, special

from zoopt_nas import sampling
from zoopt_nas._arrays import as_generator
from zoopt_nas._checks import check_choice, check_positive, check_positive_int
from zoopt_nas.diagnostics import estimator_error
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.solvers import GLD, MGS, RS
from zoopt_nas.solvers.base import Solver

# Of GLD: each is half of the last, and further ones change nothing.
_MAX_RADII = 16

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class BilevelToy:
    """L(α) = L_val(ω*(α)): L_train = ||ω - A α||² / 2 and L_val = ||ω - b||² / 2 + exp(c·ω).

    ω*(α) is A α, or where M steps of gradient descent from 0 arrive, (1 - (1 - η)^M) A α; with
    M = 1 the gradient of L is that of second-order DARTS (Eq. 2).

    Attributes:
        A: (n_weights, dim).
        b, c: (n_weights,).
        inner_steps: M; None = until ω* is reached.
        inner_lr: η in (0, 1].
    """

    A: Array
    b: Array
    c: Array
    inner_steps: int | None = None
    inner_lr: float = 0.1

    @classmethod
    def random(cls, dim: int, rng: Any = 0, **more: Any) -> BilevelToy:
        """One with ``dim`` weights and alphas, whose gradient at 0 is about 1 long.

        Raises:
            InvalidValueError: ``dim`` is not a positive integer.
        """
        check_positive_int("dim", dim)
        generator = np.random.default_rng(rng)
        A = generator.standard_normal((dim, dim)) / math.sqrt(dim)
        b, c = generator.standard_normal((2, dim)) / math.sqrt(dim)
        return cls(A, b, c, **more)

    @property
    def _fitted(self) -> Array:
        """The matrix of α to ω*(α)."""
        left = 0.0 if self.inner_steps is None else (1 - self.inner_lr) ** self.inner_steps
        fitted: Array = (1 - left) * self.A
        return fitted

    def __call__(self, alphas: Array) -> Array:
        """(n, dim) to (n,)."""
        weights = alphas @ self._fitted.T
        values: Array = ((weights - self.b) ** 2).sum(-1) / 2 + np.exp(weights @ self.c)
        return values

    def gradient(self, alpha: Array) -> Array:
        """∇L at ``alpha`` (dim,)."""
        return self._gradient(alpha, 1.0)

    def smoothed_gradient(self, alpha: Array, smoothing: float, direction: str) -> Array:
        """∇L_μ at ``alpha`` (dim,): of L averaged over α + μ u, u ~ q' (Eq. 13).

        Args:
            alpha: (dim,).
            smoothing: μ > 0.
            direction: ``"gaussian"``, for which q' = N(0, I), or ``"sphere"``, for which q' is
                uniform in the unit ball.

        Raises:
            UnknownNameError, InvalidValueError: an argument is none of these.
        """
        check_choice("direction", direction, ("sphere", "gaussian"))
        slope = self._fitted.T @ self.c
        k = check_positive("smoothing", smoothing) * float(np.linalg.norm(slope))
        if direction == "gaussian":
            return self._gradient(alpha, math.exp(k * k / 2))
        half = alpha.shape[0] / 2
        mean = math.gamma(half + 1) * special.iv(half, k) / (k / 2) ** half
        return self._gradient(alpha, float(mean))

    def _gradient(self, alpha: Array, factor: float) -> Array:
        """The gradient with its exponential part, the only one that smoothing changes, scaled."""
        fitted = self._fitted
        weights = fitted @ alpha
        slopes: Array = fitted.T @ (weights - self.b + factor * np.exp(weights @ self.c) * self.c)
        return slopes


def solver_steps(
    solver: Solver,
    problem: BilevelToy,
    alpha: Array,
    *,
    n_repeats: int,
    rng: Any = 0,
    ball: float | None = None,
) -> Array:
    """The first steps (n_repeats, dim) that a solver takes from ``alpha``.

    Args:
        solver: starts anew for each step.
        problem: is evaluated at its candidates.
        alpha: (dim,).
        n_repeats: how many steps.
        rng: as in ``minimize``.
        ball: replaces the candidates by as many that are uniform in a ball of this radius, the
            domain of Eq. 16.
    """
    generator = as_generator(rng, alpha)
    steps = np.empty((check_positive_int("n_repeats", n_repeats), alpha.shape[0]))
    for row in steps:
        state = solver.init(alpha, rng=generator)
        candidates = solver.ask(state)
        if ball is not None:
            candidates = alpha + ball * sampling.ball(state.rng, len(candidates), state.x)
        solver.tell(state, candidates, problem(candidates), repaired=True)
        row[:] = state.x - alpha
    return steps


class Agreement(NamedTuple):
    """How steps agree with a gradient g; a step that is 0 has cosine 0.

    Attributes:
        cosine: mean cosine of the angle between step and -g.
        cosine_error: its standard error.
        relative_error: sqrt(E ||step + g||²) / ||g|| (Eq. 15): of steps that are estimates.
        deviation: of the mean step from -g, in standard errors, root mean square over coordinates.
            About 1 if the steps are an unbiased estimate of -g (Eq. 14).
    """

    cosine: float
    cosine_error: float
    relative_error: float
    deviation: float


def agreement(steps: Array, gradient: Array) -> Agreement:
    """Compares steps (n, dim) with a gradient (dim,).

    Raises:
        InvalidValueError: there are fewer than two steps, or the gradient is 0.
    """
    if steps.shape[0] < 2:
        raise InvalidValueError(f"steps must be two or more, got {steps.shape[0]}")
    cosines, errors = np.array([estimator_error(-step, gradient) for step in steps])[:, ::-1].T
    root = math.sqrt(len(steps))
    spread = steps.std(axis=0, ddof=1) / root
    z = (steps.mean(axis=0) + gradient) / np.where(spread > 0, spread, np.inf)
    return Agreement(
        cosine=float(cosines.mean()),
        cosine_error=float(cosines.std(ddof=1)) / root,
        relative_error=math.sqrt(float((errors**2).mean())),
        deviation=math.sqrt(float((z * z).mean())),
    )


def rs_relative_error(dim: int, n_samples: int, direction: str) -> float:
    """The relative error of Eq. 6 on a linear function: sqrt((dim ± 1) / N), the O(d) of Eq. 15."""
    check_choice("direction", direction, ("sphere", "gaussian"))
    return math.sqrt((dim + (1 if direction == "gaussian" else -1)) / n_samples)


def mgs_step_length(dim: int, slope: float) -> float:
    """||u*|| / ε on a linear function, for u in a ball of radius ε (Eq. 18).

    Z(g) ∝ κ^(-dim/2) I_{dim/2}(κ), so that ||u*|| / ε = I_{dim/2 + 1}(κ) / I_{dim/2}(κ).

    Args:
        dim: of alpha.
        slope: κ = ε ||g|| / τ.
    """
    return float(special.ive(dim / 2 + 1, slope) / special.ive(dim / 2, slope))


def gld_cosine(radii: Sequence[float], dim: int, n_points: int = 1001) -> float:
    """The mean cosine between GLD's step and -g on a linear function, by quadrature.

    The step is the candidate with the greatest r_k t_k > 0, where t_k is the cosine of a uniform
    direction, (1 + t_k) / 2 ~ Beta((dim - 1) / 2, (dim - 1) / 2).
    """
    half = (dim - 1) / 2
    t = np.linspace(0.0, 1.0, n_points)
    density = (1 - t * t) ** (half - 1) / (2 ** (2 * half - 1) * special.beta(half, half))
    total = np.zeros(n_points)
    for k, radius in enumerate(radii):
        others = [other for j, other in enumerate(radii) if j != k]
        all_less = np.ones(n_points)
        for other in others:
            all_less *= special.betainc(half, half, (1 + np.minimum(t * radius / other, 1)) / 2)
        total += t * density * all_less
    return float(integrate.trapezoid(total, t))


class Row(NamedTuple):
    """One line of ``agreement_table``.

    Attributes:
        method: ``rs (sphere)``, ``rs (gaussian)``, ``mgs``, ``gld``.
        width: μ of RS, ε of MGS's ball, the greatest radius R of GLD.
        n_samples: N: pairs, samples, radii.
        measured: against ∇L.
        smoothed_deviation: RS: ``Agreement.deviation`` from ∇L_μ.
        theory: on a linear function, which every smooth one is in the limit of a small width:
            the relative error of RS; the length along -g of MGS's mean step over ε; GLD's cosine.
        measured_theory: the measured number that ``theory`` is about.
    """

    method: str
    width: float
    n_samples: int
    measured: Agreement
    smoothed_deviation: float | None
    theory: float
    measured_theory: float


def agreement_table(
    *,
    dim: int = 20,
    widths: Sequence[float] = (1.0, 0.1, 0.01),
    n_samples: Sequence[int] = (4, 16, 64),
    n_repeats: int = 200,
    slope: float = 4.0,
    seed: int = 0,
) -> Iterator[Row]:
    """Measures the three methods on ``BilevelToy.random(dim)``, at 0.

    Args:
        dim: of alpha, at least 4.
        widths: see ``Row``.
        n_samples: each N; there is no row of GLD above 16 radii.
        n_repeats: steps that a number is the mean of.
        slope: κ = ε ||g|| / τ of MGS, which keeps its weights alike at every width.
        seed: of the problem and the steps.
    """
    problem, alpha = BilevelToy.random(dim, seed), np.zeros(dim)
    gradient = problem.gradient(alpha)
    norm = float(np.linalg.norm(gradient))
    for width in widths:
        for n in n_samples:
            kind: dict[str, Any] = {"n_repeats": n_repeats, "rng": seed}
            for direction in ("sphere", "gaussian"):
                rs = RS(learning_rate=1.0, smoothing=width, n_samples=n, direction=direction)
                steps = solver_steps(rs, problem, alpha, **kind)
                found = agreement(steps, gradient)
                smoothed = problem.smoothed_gradient(alpha, width, direction)
                yield Row(
                    *(f"rs ({direction})", width, n, found, agreement(steps, smoothed).deviation),
                    *(rs_relative_error(dim, n, direction), found.relative_error),
                )
            mgs = MGS(temperature=width * norm / slope, sigma=width, n_samples=n)
            steps = solver_steps(mgs, problem, alpha, ball=width, **kind)
            length = float(-steps.mean(axis=0) @ gradient) / (norm * width)
            found = agreement(steps, gradient)
            yield Row("mgs", width, n, found, None, mgs_step_length(dim, slope), length)
            if n > _MAX_RADII:
                continue
            gld = GLD(max_radius=width).with_n_samples(n)
            found = agreement(solver_steps(gld, problem, alpha, **kind), gradient)
            theory = gld_cosine(gld.radii(dim), dim)
            yield Row("gld", width, n, found, None, theory, found.cosine)

"""A quadratic model of few points: interpolation with the least change of the Hessian.

Among all quadratics q that take the values f_i at the m points y_i, the model is the one whose
Hessian differs least from the last one in the Frobenius norm. It is the last model plus a quadratic
c + g·y + Σ λ_i (y_i·y)²/2, where v = (c, g, λ) solves W v = (0, 0, f - q_last(y)) with the matrix

    W = | 0  Pᵀ     |    P has the rows (1, y_i),
        | P  A + μI |    A_ij = (y_i·y_j)²/2.

The inverse of W is kept. A point that is added or replaced changes it by a matrix of rank 1 or 2,
so an update takes O(m²) operations. Column i of the inverse holds the coefficients of the i-th
Lagrange function: 1 at y_i, 0 at the other points.

With noise, μ > 0 is the ratio of the variances of the noise and of the second derivatives, and the
last model counts as 0: then q is a ridge regression, its residuals are μ λ_i, and the number of
points is not limited.

Source: Powell, "Least Frobenius norm updating of quadratic models that satisfy interpolation
conditions", Math. Programming 100, 2004 (W in equation 1.11, its update in equation 2.12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from zoopt_nas.solvers.engines import small_matrices

# The least σ of a point that replaces another, and the least β of one that is added; see `Place`.
# They are 1 if the points are in good position.
LEAST_PIVOT = 1e-10


class Place(NamedTuple):
    """A point y relative to the points of a model.

    Attributes:
        y: (dim,), the point.
        column: the product of the inverse and w(y), the column of W that y would have. It holds
            the values at y of the Lagrange functions, after 1 + dim other numbers.
        beta: β, the squared distance from w(y) to the space of the other columns. With noise, the
            variance of the value at y in units of that of the second derivatives.
    """

    y: np.ndarray
    column: np.ndarray
    beta: float


@dataclass(eq=False)
class Model:
    """A model q(y) of values in the coordinates y of x = base + axes y."""

    base: np.ndarray  # x at y = 0, (dim,)
    axes: np.ndarray  # (dim, dim)
    rows: np.ndarray  # the points x, (m, dim)
    values: np.ndarray  # their values, (m,), finite
    hessian: np.ndarray  # of q, (dim, dim)
    damping: float = 0.0  # μ
    centre: int = 0  # the index of the best point
    points: Any = None  # the points y, (m, dim)
    inverse: Any = None  # of W, (1 + dim + m, 1 + dim + m)
    to_y: Any = None  # the transposed inverse of ``axes``
    longest: float = 0.0  # the largest absolute value in ``axes``
    level: float = 0.0  # q models values minus ``level``
    constant: float = 0.0  # q(0)
    gradient: Any = None  # of q at 0, (dim,)

    def rebuild(self, axes: np.ndarray, hessian: np.ndarray, n_least: int, reach: float) -> None:
        """Compute the model anew around its best point, in other coordinates.

        Args:
            axes: (dim, dim), regular.
            hessian: (dim, dim), the Hessian of the last model in the new coordinates.
            n_least: the least number of points to keep.
            reach: other points farther away than this are dropped.
        """
        self.base, self.axes = self.rows[self.centre].copy(), axes
        self.longest = float(np.abs(axes).max())
        self.to_y = small_matrices.inverse(axes).T
        self.points = (self.rows - self.base) @ self.to_y
        squares = np.add.reduce(self.points * self.points, 1)
        if len(squares) > n_least and float(squares.max()) > reach * reach:
            nearest = np.argsort(squares, kind="stable")
            keep = nearest[: max(n_least, int((squares <= reach * reach).sum()))]
            self.rows, self.points, self.values = (
                part[keep] for part in (self.rows, self.points, self.values)
            )
            self.centre = 0
        y = self.points
        self.level = float(self.values[self.centre])
        m, dim = y.shape
        matrix = np.zeros((1 + dim + m, 1 + dim + m))
        matrix[0, 1 + dim :] = matrix[1 + dim :, 0] = 1
        matrix[1 + dim :, 1 : 1 + dim] = y
        matrix[1 : 1 + dim, 1 + dim :] = y.T
        matrix[1 + dim :, 1 + dim :] = 0.5 * (y @ y.T) ** 2
        matrix[1 + dim :, 1 + dim :].flat[:: m + 1] += self.damping
        try:
            self.inverse = small_matrices.inverse(matrix)
        except np.linalg.LinAlgError:  # two equal points, or all in a plane
            self.inverse = np.linalg.pinv(matrix, rcond=1e-14)
        self.hessian, self.gradient, self.constant = hessian, np.zeros(dim), 0.0
        self._fit(matrix)

    def rescale(self, unit: float) -> None:
        """Make ``unit``, a power of 2, the unit of y; nothing is rounded. Requires μ = 0.

        W becomes D W D with a diagonal D, because P and A have entries of degree 0, 1 and 4 in y.
        """
        dim = len(self.base)
        self.axes, self.to_y = self.axes * unit, self.to_y / unit
        self.longest *= unit
        self.points = self.points / unit
        self.gradient, self.hessian = self.gradient * unit, self.hessian * unit**2
        inverse_d = np.full(len(self.inverse), unit**2)
        inverse_d[0], inverse_d[1 : 1 + dim] = unit**-2, 1 / unit
        self.inverse = self.inverse * inverse_d[:, None] * inverse_d

    def to_points(self, rows: np.ndarray) -> np.ndarray:
        """Return the coordinates y of points x, (..., dim)."""
        points: np.ndarray = (rows - self.base) @ self.to_y
        return points

    @property
    def is_finite(self) -> bool:
        """Whether the coefficients of q are finite."""
        sums = np.add.reduce(self.gradient), np.add.reduce(self.hessian, None)
        return math.isfinite(self.constant + float(sums[0]) + float(sums[1]))

    def correct(self, tolerance: float, n_trials: int) -> bool:
        """Correct the errors by rounding, which the inverse can do even if it is inexact.

        Returns:
            Whether, after at most ``n_trials`` corrections, q misses no value by more than
            ``tolerance`` times the range of all values. True with noise.
        """
        if self.damping > 0:
            return True
        spread = float(np.maximum.reduce(self.values) - np.minimum.reduce(self.values))
        limit = tolerance * (spread or 1.0)
        for trial in range(n_trials + 1):
            residuals = self.values - self.fitted()
            if float(np.maximum.reduce(np.abs(residuals))) <= limit:
                return True
            if trial < n_trials:
                self._add(self.inverse[:, 1 + len(self.base) :] @ residuals)
        return False

    def predict(self, y: np.ndarray) -> float:
        """Return q(y)."""
        return float(self.constant + y @ (self.gradient + 0.5 * (self.hessian @ y)))

    def slope(self, y: np.ndarray) -> np.ndarray:
        """Return the gradient of q at y, (dim,)."""
        slope: np.ndarray = self.gradient + self.hessian @ y
        return slope

    def lagrange(self, t: int) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the constant, gradient at 0 and Hessian of the Lagrange function of point t."""
        dim = len(self.base)
        column = self.inverse[:, 1 + dim + t]
        hessian = (self.points.T * column[1 + dim :]) @ self.points
        return float(column[0]), column[1 : 1 + dim], hessian

    def place(self, y: np.ndarray) -> Place:
        """Return the column of y, and β = |y|⁴/2 + μ - w(y)ᵀ W⁻¹ w(y)."""
        w = np.empty(len(self.inverse))
        w[0], w[1 : 1 + len(y)] = 1.0, y
        w[1 + len(y) :] = 0.5 * (self.points @ y) ** 2
        column = self.inverse @ w
        return Place(y, column, 0.5 * float(y @ y) ** 2 + self.damping - float(w @ column))

    def pivots(self, place: Place) -> np.ndarray:
        """Return σ_t = α_t β + τ_t², (m,): the factor of det W if the place replaces point t."""
        first = 1 + len(self.base)
        alphas = self.inverse.diagonal()[first:]
        sigmas: np.ndarray = alphas * place.beta + place.column[first:] ** 2
        return sigmas

    def append(self, row: np.ndarray, value: float, place: Place) -> bool:
        """Add a point x at a place; return whether it is independent of the others."""
        beta, size = place.beta, len(self.inverse)
        if not beta > LEAST_PIVOT * max(1.0, float(place.y @ place.y) ** 2):
            return False
        border = np.concatenate([place.column, [-1.0]])
        inverse = (border / beta)[:, None] * border
        inverse[:size, :size] += self.inverse
        residual = value - self.level - self.predict(place.y)
        self.inverse = inverse
        self.rows = np.concatenate([self.rows, row[None, :]])
        self.points = np.concatenate([self.points, place.y[None, :]])
        self.values = np.concatenate([self.values, [value]])
        self._adjust(len(self.values) - 1, residual)
        return True

    def replace(self, t: int, row: np.ndarray, value: float, place: Place) -> bool:
        """Replace point t by a point x at a place; return whether that is well determined."""
        index = 1 + len(self.base) + t
        column, beta = place.column, place.beta
        alpha, tau = float(self.inverse[index, index]), float(column[index])
        sigma = alpha * beta + tau * tau
        if not abs(sigma) > LEAST_PIVOT * min(1.0, abs(alpha)):
            return False
        rest = -column
        rest[index] += 1
        # α r rᵀ - β o oᵀ + τ (o rᵀ + r oᵀ) for the row o of t
        both = np.array([rest, self.inverse[index]])
        weights = np.array([[alpha / sigma, tau / sigma], [tau / sigma, -beta / sigma]])
        self.inverse += both.T @ (weights @ both)
        residual = value - self.level - self.predict(place.y)
        self.rows[t], self.values[t], self.points[t] = row, value, place.y
        self._adjust(t, residual)
        return True

    def fitted(self) -> np.ndarray:
        """Return q at the points plus ``level``, (m,)."""
        y = self.points
        slopes = y @ (0.5 * self.hessian) + self.gradient
        fitted: np.ndarray = np.add.reduce(slopes * y, 1) + (self.constant + self.level)
        return fitted

    def _adjust(self, t: int, residual: float) -> None:
        """Move q to the value of point t, which it misses by ``residual``."""
        if self.damping > 0:
            self._fit()
            return
        self._add(residual * self.inverse[:, 1 + len(self.base) + t])

    def _fit(self, matrix: np.ndarray | None = None) -> None:
        """Fit q to all values: from the last model or, with noise, from 0.

        ``matrix`` is W if it is known; then the solution is refined.
        """
        dim = len(self.base)
        if self.damping > 0:
            self.hessian, self.gradient = np.zeros((dim, dim)), np.zeros(dim)
            self.constant = 0.0
        changes = self.values - self.fitted()
        v = self.inverse[:, 1 + dim :] @ changes
        if matrix is not None:
            rest = -(matrix @ v)
            rest[1 + dim :] += changes
            v = v + self.inverse @ rest
        self._add(v)

    def _add(self, v: np.ndarray) -> None:
        """Add the quadratic with the coefficients v = (c, g, λ) to q."""
        y, dim = self.points, len(self.base)
        self.constant += float(v[0])
        self.gradient = self.gradient + v[1 : 1 + dim]
        self.hessian = self.hessian + (y.T * v[1 + dim :]) @ y

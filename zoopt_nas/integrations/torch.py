"""Zero-order stochastic gradient descent as a ``torch.optim.Optimizer``.

Sources: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (MeZO), NeurIPS
2023, arXiv 2305.17333, Definition 1 and Algorithm 1; Dang et al., "FZOO: Fast Zeroth-Order
Optimizer for Fine-Tuning Large Language Models towards Adam-Scale Speed", arXiv 2506.09034.

A random direction is as large as the model and is never stored: its entries are drawn again from
its seed, a few rows of one parameter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np

from zoopt_nas._arrays import as_generator
from zoopt_nas._checks import (
    check_at_least,
    check_bool,
    check_choice,
    check_positive,
    check_positive_int,
)
from zoopt_nas.errors import InvalidValueError, MissingDependencyError

try:
    import torch
    from torch import Tensor
    from torch.optim.optimizer import Optimizer, ParamsT
except ImportError as error:
    raise MissingDependencyError(
        "torch is not installed; install it with: pip install 'zoopt-nas[torch]'"
    ) from error

__all__ = ["DIRECTIONS", "ESTIMATORS", "ZeroOrderSGD"]

DIRECTIONS = ("gaussian", "rademacher")
ESTIMATORS = ("central", "one_sided")

# Entries of a direction drawn at a time (16 MiB of float32). The draws depend on it.
_CHUNK = 2**22
# Options that cannot differ between groups.
_ONCE = ("n_directions", "estimator", "direction", "normalize")
# A bound on the entries of a direction: a normal variable from 64 random bits is at most 8.7.
_LARGEST_ENTRY = 10.0
# An entry of `Optimizer.state` that belongs to no parameter. torch saves, copies and pickles it, in
# contrast to attributes of a subclass.
_SHARED = "zero_order"


class ZeroOrderSGD(Optimizer):
    """SGD along a gradient estimated from losses at randomly perturbed weights.

    With q directions z_k of mean 0 and covariance I, smoothing ε and the loss L, ``step`` takes::

        central:    g = 1/q Σ_k (L(θ + εz_k) - L(θ - εz_k)) / 2ε · z_k    2q losses
        one_sided:  g = 1/q Σ_k (L(θ + εz_k) - L(θ)) / ε · z_k            q + 1 losses

        θ <- (1 - lr · weight_decay) θ - lr · g

    The expectation of g is the gradient of L up to O(ε²). Its variance grows with the number of
    trainable weights over q, so that ``lr`` must be far smaller than for SGD.

    Within a step, the closure must use the same mini-batch for each call. Each call starts from the
    same state of torch's global generators (CPU and CUDA), so that dropout is the same too; after
    the step, they have advanced by one call.

    A step holds one copy of the trainable parameters and a few chunks of 16 MiB (or of one row, if
    a row is larger). The copy restores the weights exactly, even in half precision.

    Only parameters with ``requires_grad`` change. Parameters that share all their memory count as
    one, with the options of the first. There is no momentum.

    Groups may have different ``lr``, ``smoothing`` and ``weight_decay``. torch's learning-rate
    schedulers work, without the cycling of momentum. ``state_dict`` holds all options, the seed and
    the number of steps, so that a resumed run continues bitwise.

    Args:
        params: parameters, named parameters or groups, as for any ``torch.optim.Optimizer``; dense
            and real. float16 and bfloat16 are perturbed and updated in float32, then rounded.
        lr: learning rate, at least 0.
        smoothing: ε > 0, the standard deviation of the perturbation of each weight.
        n_directions: q, the number of directions per step.
        estimator: ``"central"`` or ``"one_sided"`` (about half the losses; the error of each
            estimate is O(ε), although O(ε²) on average).
        direction: ``"gaussian"``, N(0, I), or ``"rademacher"``, entries ±1 (less variance).
        normalize: whether to divide g by the sample standard deviation of the perturbed losses,
            which makes the step invariant to the scale of the loss. FZOO combines it with
            ``one_sided`` and ``rademacher``. The standard deviation is about ε‖∇L‖, so that ``lr``
            is in units of ε times a distance in weight space.
        weight_decay: at least 0; not divided by the standard deviation.
        rng: the seed of all directions: None (fresh entropy), a non-negative int or a
            ``numpy.random.Generator``, from which one number is drawn.

    Raises:
        InvalidValueError: an option is invalid, or a parameter is sparse or complex.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        smoothing: float = 1e-3,
        n_directions: int = 1,
        *,
        estimator: str = "central",
        direction: str = "gaussian",
        normalize: bool = False,
        weight_decay: float = 0.0,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        check_positive_int("n_directions", n_directions)
        check_choice("estimator", estimator, ESTIMATORS)
        check_choice("direction", direction, DIRECTIONS)
        if check_bool("normalize", normalize) and estimator == "one_sided" and n_directions < 2:
            raise InvalidValueError(
                "n_directions must be at least 2 to normalize one-sided losses, got 1"
            )
        super().__init__(params, {"lr": lr, "smoothing": smoothing, "weight_decay": weight_decay})
        self._shared = {
            "n_directions": n_directions,
            "estimator": estimator,
            "direction": direction,
            "normalize": normalize,
            "seed": int(as_generator(rng, np.empty(0)).integers(2**63 - 1)),
            "n_steps": 0,
        }

    @property
    def _shared(self) -> dict[str, Any]:
        return cast("dict[str, Any]", cast("dict[Any, Any]", self.state)[_SHARED])

    @_shared.setter
    def _shared(self, shared: dict[str, Any]) -> None:
        cast("dict[Any, Any]", self.state)[_SHARED] = shared

    def __setstate__(self, state: dict[str, Any]) -> None:
        if _SHARED not in state["state"]:  # called by load_state_dict
            raise InvalidValueError(
                "state_dict must come from a ZeroOrderSGD, got one without its seed"
            )
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: ``{"params": ..., "lr": ..., "smoothing": ..., "weight_decay": ...}``.

        Raises:
            InvalidValueError: an option is invalid or cannot differ between groups, or a parameter
                is sparse or complex.
        """
        options = self.defaults | param_group
        check_at_least("lr", options["lr"], 0)
        check_positive("smoothing", options["smoothing"])
        check_at_least("weight_decay", options["weight_decay"], 0)
        for name in _ONCE:
            if name in param_group:
                raise InvalidValueError(
                    f"{name} must be the same for all groups, got {param_group[name]!r} in one"
                )
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.layout is not torch.strided or parameter.is_complex():
                self.param_groups.pop()
                raise InvalidValueError(
                    f"params must be dense and real, got {parameter.layout}, {parameter.dtype}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> float:  # type: ignore[override]
        """Update the weights by one estimate of the gradient.

        A direction with a non-finite loss is ignored. If none is left (with ``normalize``: fewer
        than two losses), the weights do not change. If the closure raises, the weights do not
        change, and the next step uses the same directions.

        Args:
            closure: returns the loss of the current weights, as a float or a tensor of one element.
                It runs without gradients, and must not call ``backward``.

        Returns:
            The loss before the step: measured (``one_sided``), or estimated by the mean over the
            directions (``central``; nan if all were ignored).

        Raises:
            InvalidValueError: there is no closure, it does not return one real number, or no
                parameter is trainable.
        """
        if closure is None:
            raise InvalidValueError("closure must be a function that returns the loss, got None")
        slots = self._trainable()
        losses = self._measure(closure, slots)
        estimate = _estimate(losses, self._shared["estimator"], self._shared["normalize"])
        self._move(slots, estimate.slopes)
        # A new dict, since the old one may be part of a state_dict.
        self._shared = self._shared | {"n_steps": self._shared["n_steps"] + 1}
        return estimate.loss

    def _trainable(self) -> list[_Slot]:
        slots: dict[Any, _Slot] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.numel() > 0:
                    weights = parameter.detach()
                    memory = (weights.device, weights.data_ptr(), weights.shape, weights.stride())
                    slots.setdefault(memory, _Slot(weights, group))
        if not slots:
            raise InvalidValueError("params must have an entry with requires_grad, got none")
        return list(slots.values())

    def _measure(self, closure: Callable[[], Tensor | float], slots: list[_Slot]) -> list[float]:
        """Return the losses in the order of ``_points``; restore the weights."""
        points = _points(self._shared["estimator"], self._shared["n_directions"])
        devices = {slot.weights.device for slot in slots}
        bases = [slot.weights.clone() for slot in slots]
        losses: list[float] = []
        try:
            for k, sign in points:
                if sign != 0:
                    self._perturb(slots, bases, k, sign)
                is_last = len(losses) == len(points) - 1
                with nullcontext() if is_last else _forked_rng(devices):
                    losses.append(_as_float(closure()))
        finally:
            for slot, base in zip(slots, bases, strict=True):
                slot.weights.copy_(base)
        return losses

    def _perturb(self, slots: list[_Slot], bases: list[Tensor], k: int, sign: int) -> None:
        streams = self._streams(slots, k)
        for slot, base in zip(slots, bases, strict=True):
            radius = sign * slot.group["smoothing"]
            for rows, base_rows in zip(_chunks(slot.weights), _chunks(base), strict=True):
                rows.copy_(self._draw(rows, streams).mul_(radius).add_(base_rows))

    def _move(self, slots: list[_Slot], slopes: dict[int, float]) -> None:
        steps = [slot.group["lr"] / slot.group["smoothing"] for slot in slots]
        total = math.fsum(map(abs, slopes.values()))
        if not slopes or any(map(_may_overflow, slots, (step * total for step in steps))):
            return
        # Directions are summed per chunk, so that a weight in half precision is rounded only once.
        streams = {k: self._streams(slots, k) for k in slopes}
        for slot, step in zip(slots, steps, strict=True):
            keep = 1 - slot.group["lr"] * slot.group["weight_decay"]
            for rows in _chunks(slot.weights):
                change = torch.zeros(rows.shape, dtype=_draw_dtype(rows), device=rows.device)
                for k, slope in slopes.items():
                    change.sub_(self._draw(rows, streams[k]), alpha=step * slope)
                # A step of 0 only advances the streams: 0 * z could turn -0.0 into 0.0.
                if step > 0:
                    rows.copy_(change.add_(rows, alpha=keep))

    def _streams(self, slots: list[_Slot], k: int) -> dict[torch.device, torch.Generator]:
        """Return generators at the start of direction ``k`` of this step, one per device."""
        streams: dict[torch.device, torch.Generator] = {}
        for device in (slot.weights.device for slot in slots):
            if device not in streams:
                key = (self._shared["n_steps"], k, len(streams))
                entropy = np.random.SeedSequence(self._shared["seed"], spawn_key=key)
                streams[device] = torch.Generator(device)
                streams[device].manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        return streams

    def _draw(self, rows: Tensor, streams: dict[torch.device, torch.Generator]) -> Tensor:
        """Draw the next entries of a direction, in the shape of ``rows``."""
        z = torch.empty(rows.shape, dtype=_draw_dtype(rows), device=rows.device)
        stream = streams[rows.device]
        if self._shared["direction"] == "gaussian":
            return z.normal_(generator=stream)
        return z.random_(0, 2, generator=stream).mul_(2).sub_(1)


class _Slot(NamedTuple):
    """A trainable parameter, detached (same memory), and its group."""

    weights: Tensor
    group: dict[str, Any]


def _may_overflow(slot: _Slot, length: float) -> bool:
    """Return whether a step of ``length`` times a direction may overflow the dtype of a weight."""
    if slot.group["lr"] == 0:
        return False
    limit = torch.finfo(slot.weights.dtype).max
    keep = abs(1 - slot.group["lr"] * slot.group["weight_decay"])
    change = _LARGEST_ENTRY * length
    # Realistic weights come near the limit only in float16.
    if change > limit or slot.weights.dtype != torch.float16:
        return bool(change > limit)
    low, high = torch.aminmax(slot.weights)
    largest = max(-float(low), float(high))
    return bool(limit < keep * largest + change < math.inf)


class _Estimate(NamedTuple):
    """``slopes[k] / smoothing`` is the coefficient of direction k in the gradient."""

    slopes: dict[int, float]
    loss: float


def _points(estimator: str, n_directions: int) -> list[tuple[int, int]]:
    """Return (direction, sign) of each loss; sign 0 stands for the unperturbed weights."""
    if estimator == "central":
        return [(k, sign) for k in range(n_directions) for sign in (1, -1)]
    return [(0, 0), *((k, 1) for k in range(n_directions))]


def _estimate(losses: Sequence[float], estimator: str, normalize: bool) -> _Estimate:
    """Estimate the gradient by the losses, in the order of ``_points``."""
    if estimator == "central":
        sides = [losses[k : k + 2] for k in range(0, len(losses), 2)]
        changes = [(plus - minus) / 2 for plus, minus in sides]
    else:
        sides = [[plus] for plus in losses[1:]]
        changes = [plus - losses[0] for plus in losses[1:]]
    survivors = [k for k, change in enumerate(changes) if math.isfinite(change)]
    perturbed = [value for k in survivors for value in sides[k]]
    if estimator == "one_sided":
        loss = losses[0]
    else:
        loss = math.fsum(perturbed) / len(perturbed) if perturbed else math.nan
    divisor = float(len(survivors))
    if normalize:
        if len(perturbed) < 2:
            return _Estimate({}, loss)
        sigma = torch.tensor(perturbed, dtype=torch.float64).std().item()
        # If all perturbed losses are equal, the slopes become 0.
        divisor *= sigma if sigma > 0 else math.inf
    return _Estimate({k: changes[k] / divisor for k in survivors}, loss)


def _as_float(loss: Tensor | float) -> float:
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return float(loss)
    if isinstance(loss, Real):
        return float(loss)
    shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
    raise InvalidValueError(f"closure must return a real number, got {type(loss).__name__}{shape}")


def _draw_dtype(weights: Tensor) -> torch.dtype:
    return torch.float32 if weights.element_size() < 4 else weights.dtype


def _chunks(weights: Tensor) -> Sequence[Tensor]:
    """Return views of consecutive rows, about ``_CHUNK`` entries each."""
    rows = weights.reshape(1) if weights.ndim == 0 else weights
    return torch.split(rows, max(1, _CHUNK * len(rows) // rows.numel()))


def _forked_rng(devices: set[torch.device]) -> AbstractContextManager[None]:
    """Restore the state of torch's global generators on exit."""
    indices = [device.index for device in devices if device.type == "cuda"]
    return torch.random.fork_rng(indices, device_type="cuda")

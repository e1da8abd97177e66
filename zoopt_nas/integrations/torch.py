"""ZeroOrderSGD: stochastic gradient descent that needs the loss of a network, never its gradient.

Source: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (MeZO), NeurIPS 2023,
arXiv 2305.17333, Definition 1 and Algorithm 1; Dang et al., "FZOO: Fast Zeroth-Order Optimizer for
Fine-Tuning Large Language Models towards Adam-Scale Speed", arXiv 2506.09034 (one-sided batches of
Rademacher directions, a step over the standard deviation of the losses).

A random direction has as many entries as the model, so it is never kept: whenever it is needed, its
entries are drawn again from its seed, a few rows of one parameter at a time.
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

# Entries of a direction that exist at the same time: 16 MiB of float32. The draws depend on it.
_CHUNK = 2**22
# Options of the whole model: its loss is measured at one set of points.
_ONCE = ("n_directions", "estimator", "direction", "normalize")
# No entry of a direction is larger: a normal number of 64 bits reaches 8.7.
_LARGEST_ENTRY = 10.0
# The entry of `Optimizer.state` that belongs to no parameter. torch saves, loads, copies and
# pickles such entries, but loses the attributes that a subclass adds.
_SHARED = "zero_order"


class ZeroOrderSGD(Optimizer):
    """SGD along a gradient that is estimated from losses at randomly perturbed weights.

    With q directions z_k of mean 0 and covariance I, smoothing ε and the loss L, ``step`` takes::

        central:    g = 1/q Σ_k (L(θ + εz_k) - L(θ - εz_k)) / 2ε · z_k    2q losses
        one_sided:  g = 1/q Σ_k (L(θ + εz_k) - L(θ)) / ε · z_k            q + 1 losses

        θ <- (1 - lr · weight_decay) θ - lr · g

    The expectation of g is the gradient of L, up to O(ε²). Its variance grows with the number of
    trainable weights over q, so the largest stable ``lr`` is far below that of SGD.

    The closure must measure the same mini-batch each time within a step. Noise drawn from torch's
    global generators (dropout) is the same too: each call starts from the state in which ``step``
    found them (CPU and CUDA), and the last call leaves them advanced, as one call would.

    Beside the model, a step holds one copy of the trainable parameters and a few chunks of 16 MiB
    (or of one row, where rows are longer); between steps nothing is held. The copy makes the
    restore exact: repeated steps leave no drift in half precision, unlike adding ±εz in place.

    Only parameters with ``requires_grad`` move. Parameters that share all their memory count as
    one; the options of the first apply. There is no momentum: it would be another copy.

    A group may have its own ``lr``, ``smoothing`` and ``weight_decay``. Learning-rate schedulers of
    torch work on it, those that cycle momentum with that switched off. ``state_dict`` holds all
    options, the seed and the number of steps, so that a resumed run continues bitwise.

    Args:
        params: parameters, named parameters or groups, as for any ``torch.optim.Optimizer``; dense
            and real. float16 and bfloat16 are perturbed and stepped in float32, then rounded.
        lr: learning rate, at least 0; at 0 the weights do not change by a bit.
        smoothing: ε > 0, the standard deviation of the perturbation of each weight.
        n_directions: q, the number of directions a step.
        estimator: ``"central"`` or ``"one_sided"`` (about half the losses, biased by the curvature:
            its error is O(ε) in each estimate, though O(ε²) on average).
        direction: ``"gaussian"``, N(0, I), or ``"rademacher"``, entries ±1 (less variance).
        normalize: divide g by the standard deviation of the step's perturbed losses (n - 1 in the
            denominator), which makes the step invariant to the scale of the loss. FZOO is this with
            ``one_sided`` and ``rademacher``. The standard deviation is about ε‖∇L‖, so ``lr`` is in
            units of ε times a distance in weight space.
        weight_decay: at least 0; not divided by the standard deviation.
        rng: None (fresh entropy), a non-negative int or a ``numpy.random.Generator`` (one draw from
            it); seeds all directions.

    Raises:
        InvalidValueError: an option is out of its range, or a parameter is sparse or complex.
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
        shared = {
            "n_directions": n_directions,
            "estimator": estimator,
            "direction": direction,
            "normalize": normalize,
            "seed": int(as_generator(rng, np.empty(0)).integers(2**63 - 1)),
            "n_steps": 0,
        }
        super().__init__(params, {"lr": lr, "smoothing": smoothing, "weight_decay": weight_decay})
        self._shared = shared

    @property
    def _shared(self) -> dict[str, Any]:
        return cast("dict[str, Any]", cast("dict[Any, Any]", self.state)[_SHARED])

    @_shared.setter
    def _shared(self, shared: dict[str, Any]) -> None:
        cast("dict[Any, Any]", self.state)[_SHARED] = shared

    def __setstate__(self, state: dict[str, Any]) -> None:
        if _SHARED not in state["state"]:  # torch passes what load_state_dict was given
            raise InvalidValueError(
                "state_dict must come from a ZeroOrderSGD, got one without its seed"
            )
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group: ``{"params": ..., "lr": ..., "smoothing": ..., "weight_decay": ...}``.

        Raises:
            InvalidValueError: an option is out of its range or cannot differ between groups, or a
                parameter is sparse or complex.
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
        """Moves the weights by one estimate of the gradient.

        A loss that is not finite drops its direction from the mean. If no direction is left (or, to
        normalize, fewer than two losses), the weights do not change. If the closure raises, they
        are as before, and the next step uses the same directions.

        Args:
            closure: measures the loss of the weights as they are now: a float or a tensor of one
                element. It runs without gradients, and must not call ``backward``.

        Returns:
            The loss before the step: ``one_sided`` as measured there, ``central`` as the mean over
            the directions that count (nan if there is none).

        Raises:
            InvalidValueError: there is no closure, it returns no scalar, or no parameter is
                trainable.
        """
        if closure is None:
            raise InvalidValueError("closure must be a function that returns the loss, got None")
        slots = self._trainable()
        losses = self._measure(closure, slots)
        estimate = _estimate(losses, self._shared["estimator"], self._shared["normalize"])
        self._move(slots, estimate.slopes)
        # A new dict each time: the old one may be part of somebody's state_dict.
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
        """Returns the losses in the order of ``_points``; the weights end as they were."""
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
            return  # a step that overflows is no step
        # All streams are open at once, so that a weight in half precision is rounded only once.
        streams = {k: self._streams(slots, k) for k in slopes}
        for slot, step in zip(slots, steps, strict=True):
            keep = 1 - slot.group["lr"] * slot.group["weight_decay"]
            for rows in _chunks(slot.weights):
                change = torch.zeros(rows.shape, dtype=_draw_dtype(rows), device=rows.device)
                for k, slope in slopes.items():
                    change.sub_(self._draw(rows, streams[k]), alpha=step * slope)
                # At 0 the draws only advance the streams: 0 * z could turn a -0.0 into 0.0.
                if step > 0:
                    rows.copy_(change.add_(rows, alpha=keep))

    def _streams(self, slots: list[_Slot], k: int) -> dict[torch.device, torch.Generator]:
        """Returns generators at the start of direction ``k`` of this step, one for each device."""
        streams: dict[torch.device, torch.Generator] = {}
        for device in (slot.weights.device for slot in slots):
            if device not in streams:
                key = (self._shared["n_steps"], k, len(streams))
                entropy = np.random.SeedSequence(self._shared["seed"], spawn_key=key)
                streams[device] = torch.Generator(device)
                streams[device].manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        return streams

    def _draw(self, rows: Tensor, streams: dict[torch.device, torch.Generator]) -> Tensor:
        """Returns the next entries of a direction, in the shape of ``rows``."""
        z = torch.empty(rows.shape, dtype=_draw_dtype(rows), device=rows.device)
        stream = streams[rows.device]
        if self._shared["direction"] == "gaussian":
            return z.normal_(generator=stream)
        return z.random_(0, 2, generator=stream).mul_(2).sub_(1)


class _Slot(NamedTuple):
    """A trainable parameter, detached (same memory), and the group whose options it follows."""

    weights: Tensor
    group: dict[str, Any]


def _may_overflow(slot: _Slot, length: float) -> bool:
    """Whether a step of ``length`` times a direction may take a weight out of its own dtype."""
    if slot.group["lr"] == 0:
        return False
    limit = torch.finfo(slot.weights.dtype).max
    keep = abs(1 - slot.group["lr"] * slot.group["weight_decay"])
    change = _LARGEST_ENTRY * length
    # Only float16 ends where weights may be.
    if change > limit or slot.weights.dtype != torch.float16:
        return bool(change > limit)
    low, high = torch.aminmax(slot.weights)
    largest = max(-float(low), float(high))
    return bool(limit < keep * largest + change < math.inf)


class _Estimate(NamedTuple):
    """``slopes[k] / smoothing`` is the share of direction k in the gradient."""

    slopes: dict[int, float]
    loss: float


def _points(estimator: str, n_directions: int) -> list[tuple[int, int]]:
    """Returns (direction, sign) of each loss; sign 0 is the weights themselves."""
    if estimator == "central":
        return [(k, sign) for k in range(n_directions) for sign in (1, -1)]
    return [(0, 0), *((k, 1) for k in range(n_directions))]


def _estimate(losses: Sequence[float], estimator: str, normalize: bool) -> _Estimate:
    """Returns what the losses, in the order of ``_points``, say about the gradient."""
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
        # Equal losses: every change that is not 0 is one-sided and common to all directions.
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
    """Returns views of consecutive rows, about ``_CHUNK`` entries each, whatever the strides."""
    rows = weights.reshape(1) if weights.ndim == 0 else weights
    return torch.split(rows, max(1, _CHUNK * len(rows) // rows.numel()))


def _forked_rng(devices: set[torch.device]) -> AbstractContextManager[None]:
    """Gives torch's global generators back as they were on entry."""
    indices = [device.index for device in devices if device.type == "cuda"]
    return torch.random.fork_rng(indices, device_type="cuda")

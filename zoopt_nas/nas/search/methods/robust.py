"""RobustDARTS (Zela et al., 2020): act when the dominant eigenvalue of the Hessian grows.

The dominant eigenvalue of L_val's Hessian in alpha is measured after every epoch and averaged over
five epochs. If the average has grown by a third within five epochs, alpha is about to enter a sharp
minimum: early stopping returns the alpha from before, adaptive regularization goes back there with
ten times the weight decay (section 4.3 and algorithm 1). The search never returns to an epoch
before ``min_return_epoch``, as in the released code, while the eigenvalue still settles. The
released code looks at every second epoch and compares other windows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.search.methods.darts import SecondOrder
from zoopt_nas.nas.search.updater import EpochEnd, Verdict
from zoopt_nas.nas.settings.config import SearchConfig

WINDOW = 5  # epochs per average, and the distance k of the two averages
LEAST_RATIO = 0.75  # of the earlier average to the later one
DECAY_FACTOR = 10.0
MAX_WEIGHT_DECAY = 0.03
# The later average is centred two epochs ago, and the earlier one k epochs before that.
EPOCHS_BACK = WINDOW // 2 + WINDOW


def has_grown(eigenvalues: list[float]) -> bool:
    """Whether the averaged eigenvalue has grown too fast up to the last epoch."""
    if len(eigenvalues) < 2 * WINDOW:
        return False
    earlier = sum(eigenvalues[-2 * WINDOW : -WINDOW])
    later = sum(eigenvalues[-WINDOW:])
    return later > 0 and earlier < LEAST_RATIO * later


def n_raises(weight_decay: float) -> int:
    """Return how often the weight decay can still be multiplied by ``DECAY_FACTOR``."""
    n = 0
    limit = MAX_WEIGHT_DECAY * (1 + 1e-9)  # allows 3e-4 * 10 * 10 despite rounding
    while weight_decay * DECAY_FACTOR <= limit:
        weight_decay *= DECAY_FACTOR
        n += 1
    return n


class DropPath(SecondOrder):
    """R-DARTS: darts2 with drop path and cutout in search."""


class MoreWeightDecay(SecondOrder):
    """R-DARTS: darts2 with more weight decay."""


class EarlyStopping(SecondOrder):
    """R-DARTS: darts2, stopped where the Hessian's eigenvalue grows.

    It gives the alpha from before.
    """

    wants_eigenvalue = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int = 0) -> None:
        super().__init__(config, alpha, seed)
        self._first = config.min_return_epoch
        self._eigenvalues: list[float] = []
        self._alphas: list[Tensor] = []  # after the last epochs

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Record eigenvalue and alpha; act if the eigenvalue has grown."""
        assert end.eigenvalue is not None
        self._eigenvalues.append(end.eigenvalue)
        self._alphas = [*self._alphas[-EPOCHS_BACK:], self.alpha.clone()]
        epoch = len(self._eigenvalues) - 1
        may_return = epoch - EPOCHS_BACK >= self._first
        return self._judge(end) if may_return and has_grown(self._eigenvalues) else Verdict()

    def _judge(self, end: EpochEnd) -> Verdict:
        with torch.no_grad():
            self._alpha.copy_(self._alphas[0])
        return Verdict(stop=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the gradient method, the eigenvalues and the alphas."""
        more = {"eigenvalues": list(self._eigenvalues), "alphas": list(self._alphas)}
        return super().state_dict() | more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._eigenvalues = list(state["eigenvalues"])
        self._alphas = [alpha.to(self._alpha.device) for alpha in state["alphas"]]


class AdaptiveRegularization(EarlyStopping):
    """R-DARTS: darts2, sent back with more weight decay where the eigenvalue grows.

    The weight decay never exceeds ``MAX_WEIGHT_DECAY``.

    Raises:
        InvalidValueError: the weight decay is 0, which no factor raises.
    """

    goes_back = True

    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int = 0) -> None:
        super().__init__(config, alpha, seed)
        if not config.weight_decay > 0:
            raise InvalidValueError(
                f"weight_decay must be positive with ada, which multiplies it by "
                f"{DECAY_FACTOR:g}, got {config.weight_decay}"
            )

    def oldest_return(self, epoch: int, weight_decay: float) -> int:
        """Return the oldest epoch that all remaining returns can reach."""
        n = n_raises(weight_decay)
        # Two returns are at least one epoch apart.
        reach = n * EPOCHS_BACK - (n - 1) if n else -1
        return max(epoch - reach, self._first)

    def _judge(self, end: EpochEnd) -> Verdict:
        if not n_raises(end.weight_decay):
            return Verdict()
        return Verdict(go_back=EPOCHS_BACK, weight_decay=end.weight_decay * DECAY_FACTOR)

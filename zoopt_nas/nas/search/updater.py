"""The updates of alpha: one protocol for every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.space import Kept, Path, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.search.candidates import Batch
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.stages import SearchStage
from zoopt_nas.nas.settings.config import FRESH, MIXED, RELAXATIONS, SearchConfig
from zoopt_nas.nas.settings.methods import ZERO_ORDER

Metrics = dict[str, Any]
"""Measurements of an update by name: floats or 0-d tensors on any device."""

N_TRIED, N_FAILED = "n_tried", "n_failed"
"""Metrics that are summed over an epoch: candidates or gradients, and the non-finite ones."""


OWN_SETTINGS = (
    "supernet",
    "candidate_devices",
    "alpha_penalty",
    "skip_dropout",
    "sampled_paths",
)
"""Settings that only some methods have."""


class EpochEnd(NamedTuple):
    """What is known at the end of an epoch."""

    objective: BilevelObjective  # at the current weights
    is_last: bool
    weight_decay: float
    eigenvalue: float | None  # the dominant one of L_val's Hessian in alpha, if it was measured
    val_batches: Callable[[], Iterable[Batch]]  # all images that score alpha, not augmented


class Verdict(NamedTuple):
    """How a search continues after an epoch."""

    stop: bool = False
    go_back: int = 0  # number of epochs; 0 continues
    weight_decay: float | None = None  # of the weights from here on; None keeps it
    n_tried: int = 0  # architectures that ``end_epoch`` compared
    n_failed: int = 0  # architectures with a non-finite loss


def mean_metrics(updates: Sequence[Metrics]) -> dict[str, float]:
    """Return the mean of every metric over the updates, without the counts."""
    names = dict.fromkeys(name for update in updates for name in update)
    return {
        name: sum(float(update[name]) for update in updates if name in update)
        / sum(name in update for update in updates)
        for name in names
        if name not in (N_TRIED, N_FAILED)
    }


def count_failures(updates: Sequence[Metrics], verdict: Verdict) -> tuple[int, int]:
    """Return the numbers of candidates or gradients of an epoch: all, and non-finite."""
    n_tried = sum(int(update.get(N_TRIED, 0)) for update in updates)
    n_failed = sum(int(update.get(N_FAILED, 0)) for update in updates)
    return n_tried + verdict.n_tried, n_failed + verdict.n_failed


class AlphaUpdater(ABC):
    """Holds alpha and moves it to lower a bilevel objective.

    Args:
        config: the settings.
        alpha: the starting point ``(dim,)``.
        seed: seeds the random numbers of the method.

    Attributes:
        kind: one of ``KINDS``; gradient methods update alpha at every weight step by default.
        inner: the approximation of omega* that defines the method; None is the config's.
        trains: whether the supernet is trained.
        wants_eigenvalue: whether ``end_epoch`` needs the dominant eigenvalue.
        goes_back: whether a verdict may send the search back to an earlier epoch.
        follows_paths: whether the method works on the paths of the setting ``paths``.
        trains_paths: whether the method trains single paths of its own, by ``training_paths``.
        on_every_edge: whether these have an operation on the edges that a cell drops, too.
        samples_paths: whether the method samples as many of them as ``sampled_paths`` says.
        relaxations: the settings of ``relaxation`` with which the method works.
        is_joint: whether alpha moves on the loss of the weight step: ``step`` follows it, and its
            gradient flows to alpha through ``training_weights``. Such steps are not compiled, since
            no gradient flows through a CUDA graph.
        continues: whether the method continues the supernet of a finished search.
        has_penalty: whether the method has a penalty on alpha.
        has_skip_dropout: whether the method has dropout on skip connections.
        tries: what ``N_TRIED`` counts, for messages.
    """

    kind: ClassVar[str]
    inner: ClassVar[str | None] = None
    trains: ClassVar[bool] = True
    wants_eigenvalue: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    follows_paths: ClassVar[bool] = False
    trains_paths: ClassVar[bool] = False
    on_every_edge: ClassVar[bool] = False
    samples_paths: ClassVar[bool] = False
    relaxations: ClassVar[tuple[str, ...]] = RELAXATIONS
    is_joint: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    has_penalty: ClassVar[bool] = False
    has_skip_dropout: ClassVar[bool] = False
    tries: ClassVar[str] = "candidates"

    @abstractmethod
    def __init__(self, config: SearchConfig, alpha: Tensor, seed: int) -> None: ...

    @classmethod
    def build(
        cls, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None = None
    ) -> Self:
        """Check the settings, and return the updater of a search in ``space``."""
        cls.check(config)
        cls.check_supernet(config)
        if space is not None:
            cls.check_space(config, space)
        return cls.create(config, alpha, seed, space)

    @classmethod
    def create(
        cls, config: SearchConfig, alpha: Tensor, seed: int, space: SearchSpace | None
    ) -> Self:
        """Return the updater for checked settings; a method that needs the space overrides it."""
        return cls(config, alpha, seed)

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Refuse settings that the method cannot use.

        By default these are solver options, ``noise_aware``, a penalty, and, unless the method is
        zero-order, another ``score`` than the loss.

        Raises:
            InvalidValueError: there is one.
        """
        if config.score != "loss" and cls.kind != ZERO_ORDER:
            raise InvalidValueError(
                f"score must be loss with {config.algo}, a {cls.kind} method, got {config.score}"
            )
        if config.noise_aware:
            raise InvalidValueError(
                f"noise_aware must be false with {config.algo}, which does not measure noise, "
                "got true"
            )
        cls.check_own_settings(config)
        if config.solver:
            raise InvalidValueError(
                f"solver must have no options with {config.algo}, which uses none of them, "
                f"got {', '.join(config.solver)}"
            )

    @classmethod
    def check_own_settings(cls, config: SearchConfig) -> None:
        """Refuse settings that only other methods have."""
        if config.supernet is not None and not cls.continues:
            raise InvalidValueError(
                f"supernet must be left out with {config.algo}, which trains its own, "
                f"got {config.supernet}"
            )
        if config.candidate_devices is not None and cls.kind != ZERO_ORDER:
            raise InvalidValueError(
                f"candidate_devices must be left out with {config.algo}, which evaluates no "
                f"candidates, got {config.candidate_devices}"
            )
        if config.alpha_penalty and not cls.has_penalty:
            raise InvalidValueError(
                f"alpha_penalty must be 0 with {config.algo}, which has none, "
                f"got {config.alpha_penalty:g}"
            )
        if any(config.skip_dropout) and not cls.has_skip_dropout:
            raise InvalidValueError(
                f"skip_dropout must be 0, 0, 0 with {config.algo}, which has none, "
                f"got {', '.join(f'{rate:g}' for rate in config.skip_dropout)}"
            )
        if config.sampled_paths != 1 and not cls.samples_paths:
            raise InvalidValueError(
                f"sampled_paths must be 1 with {config.algo}, which samples none, "
                f"got {config.sampled_paths}"
            )

    @classmethod
    def check_supernet(cls, config: SearchConfig) -> None:
        """Refuse a form of the supernet on which the method does not work."""
        if config.weights == FRESH and cls.kind != ZERO_ORDER:
            raise InvalidValueError(
                f"weights must be shared with {config.algo}, which needs a trained supernet, "
                f"got {config.weights}"
            )
        for name, needed in (("partial_channels", 1), ("auxiliary_skip", 0.0)):
            if cls.trains_paths and (value := getattr(config, name)) != needed:
                raise InvalidValueError(
                    f"{name} must be {needed:g} with {config.algo}, which trains single paths, "
                    f"got {value:g}"
                )
        if config.relaxation not in cls.relaxations:
            raise InvalidValueError(
                f"relaxation must be {' or '.join(cls.relaxations)} with {config.algo}, "
                f"got {config.relaxation}"
            )
        if config.paths != MIXED and not cls.follows_paths:
            raise InvalidValueError(
                f"paths must be mixed with {config.algo}, which needs the mixed supernet, "
                f"got {config.paths}"
            )

    @classmethod  # noqa: B027 - most methods are defined in every space
    def check_space(cls, config: SearchConfig, space: SearchSpace) -> None:
        """Refuse a space in which the method is not defined."""

    @classmethod
    def stages(cls, config: SearchConfig, space: SearchSpace) -> tuple[SearchStage, ...]:
        """Return the stages of a search, by default one."""
        return (SearchStage(0, config.epochs, config.n_cells, space.sizes),)

    def begin_stage(self) -> None:  # noqa: B027 - most methods have one stage
        """Prepare the next stage: choose ``kept`` and a new alpha."""

    @property
    def kept(self) -> Kept | None:
        """The candidates of the current supernet; None is all."""
        return None

    @property
    def skip_dropout(self) -> float:
        """The rate of dropout on skip connections in this epoch, where the supernet has it."""
        return 0.0

    @property
    @abstractmethod
    def alpha(self) -> Tensor:
        """The current architecture parameters ``(dim,)``, without a gradient."""

    def architecture(self, space: SearchSpace) -> Architecture:
        """Return the architecture of the current alpha; after the last epoch it is the result."""
        return space.discretize(self.alpha)

    @property
    def n_candidates(self) -> int:
        """Number of candidates that an update evaluates."""
        return 0

    @property
    def is_guided(self) -> bool:
        """Whether candidates are drawn around the gradient of L_val (Eq. 26)."""
        return False

    def training_paths(self, space: SearchSpace, progress: float) -> list[Path]:
        """Return the paths of a weight step, if the method trains paths.

        ``progress`` is the elapsed fraction of the epochs of the stage.
        """
        raise NotImplementedError

    def begin_epoch(self, progress: float) -> None:  # noqa: B027 - few methods have a schedule
        """Set what depends on the elapsed fraction of the epochs of the stage only."""

    @abstractmethod
    def move_to(self, alpha: Tensor) -> None:
        """Set alpha ``(dim,)`` and keep the rest of the state."""

    @abstractmethod
    def step(self, objective: BilevelObjective, progress: float) -> Metrics:
        """Update alpha once; return metrics.

        ``progress`` is the elapsed fraction of the stage's epochs with updates, in [0, 1).
        """

    def training_weights(
        self, supernet: Supernet, images: Tensor, labels: Tensor, progress: float
    ) -> Tensor:
        """Return the architecture weights of a weight step, as ``Supernet.edge_weights`` does.

        ``supernet`` is unchanged on return; ``progress`` is as for ``begin_epoch``.
        """
        return self.weights(supernet, self.alpha)

    def weights(self, supernet: Supernet, alpha: Tensor) -> Tensor:
        """Return the architecture weights at alpha, by default ``Supernet.edge_weights``."""
        return supernet.edge_weights(alpha)

    def end_epoch(self, end: EpochEnd) -> Verdict:
        """Judge an epoch that has ended; may change alpha."""
        return Verdict()

    def oldest_return(self, epoch: int, weight_decay: float) -> int:
        """Return the oldest epoch that the search may still return to, in one or several steps.

        ``epoch`` has just ended; ``weight_decay`` holds from now on. A number above ``epoch`` means
        that the search cannot return any more.
        """
        return epoch + 1

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return tensors and Python values that restore the method bit for bit."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""

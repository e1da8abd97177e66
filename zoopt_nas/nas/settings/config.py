"""Every setting of a search and of a retraining, with its default and where the default comes from.

This and ``defaults``, for what differs by data set and by method, are the one place with defaults:
the command line and the library read them here. A config is a frozen dataclass; ``to_toml`` and
``from_toml`` store it in a run folder and read it back.

Sources: *paper* is ZARTS (Wang et al., 2022); *released* its published scripts; *DARTS* Liu et al.
(2019) with its code; *ours* a choice made here, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_type_hints

from zoopt_nas.errors import InvalidValueError, MissingDependencyError, UnknownNameError
from zoopt_nas.nas.settings.defaults import (
    SEARCH_BY_DATASET,
    preset_fields,
    search_defaults,
    shortened_warmup,
    solver_options,
    train_defaults,
    warmup_epochs,
)
from zoopt_nas.nas.settings.validation import check_shares, known_fields, typed

INNER_MODES = ("first", "second", "sgd")
SIGMA_SCHEDULES = ("cosine", "constant")
LR_SCHEDULES = ("cosine", "linear")
REPORTS = ("last", "best")
PRECISIONS = ("auto", "off", "bf16")
INNER_PRECISIONS = ("off", "bf16")
SWITCH = ("auto", "off", "on")


@functools.cache  # a sweep makes thousands of configs
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@dataclass(frozen=True)
class RunConfig:
    """What a search and a retraining have in common.

    Raises:
        InvalidValueError: a value breaks its field's rule.
    """

    kind: ClassVar[str] = "run"
    _positive: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "init_channels", "n_cells")
    _non_negative: ClassVar[tuple[str, ...]] = ("seed", "cutout", "weight_decay", "momentum")
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "amp": PRECISIONS,
        "compile": SWITCH,
        "channels_last": SWITCH,
        "native": SWITCH,
    }

    dataset: str = "digits"
    seed: int = 0
    data_dir: str = "data"
    download: bool = False
    image_size: int | None = None
    n_train: int | None = None
    device: str = "auto"
    threads: int | None = None
    amp: str = "auto"
    compile: str = "auto"
    channels_last: str = "auto"
    native: str = "auto"
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    cutout: int = 0
    epochs: int = 50
    batch_size: int = 64
    init_channels: int = 16
    n_cells: int = 8
    lr: float = 0.025
    lr_min: float = 0.001

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = _type_hints(cls)
        for spec in dataclasses.fields(self):
            value = typed(spec.name, getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)
        for name in (*self._positive, "image_size", "n_train", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidValueError(f"{name} must be a positive integer, got {value}")
        for name in self._non_negative:
            if not getattr(self, name) >= 0:
                raise InvalidValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not (0 < self.lr < math.inf and self.grad_clip > 0):
            raise InvalidValueError(
                "lr must be positive and finite, and grad_clip positive, "
                f"got {self.lr} and {self.grad_clip}"
            )
        if not 0 <= self.lr_min <= self.lr:
            raise InvalidValueError(f"lr_min must lie in [0, lr], got {self.lr_min}")
        for name, choices in self._choices.items():
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, getattr(self, name), choices)

    @classmethod
    def defaults_for(cls, dataset: str) -> dict[str, Any]:
        """The fields whose default differs for a data set."""
        return {}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **known_fields(type(self), changes))

    def to_toml(self) -> str:
        """The config as TOML; fields that are None are left out."""
        try:
            import tomli_w
        except ImportError as error:
            raise MissingDependencyError(
                "run folders need tomli-w: pip install 'zoopt-nas[nas]'"
            ) from error
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
            if value is not None
        }
        return tomli_w.dumps({"kind": self.kind, **fields})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of ``to_toml``.

        Raises:
            InvalidValueError: not TOML, another kind of config, or a value breaks a rule.
            UnknownNameError: a field does not exist.
        """
        return cls(**cls.read_fields(text))

    @classmethod
    def read_fields(cls, text: str) -> dict[str, Any]:
        """The fields that a TOML text sets, checked by name; a config file may set a few only."""
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidValueError(f"config is not valid TOML: {error}") from error
        kind = fields.pop("kind", cls.kind)
        if kind != cls.kind:
            raise InvalidValueError(f"config must be of kind {cls.kind}, got {kind}")
        return known_fields(cls, fields)


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """Settings of a search. The values here are the papers' size; ``for_dataset`` adapts them.

    Attributes:
        dataset: a name of ``DATASETS``, an ``.npz`` file, or a folder of class folders.
        seed: seeds everything, each stream of random numbers separately.
        data_dir: where the data sets' files are; ``download`` fetches them there.
        image_size: side to which the user's own images are resized; None = as they are.
        n_train: use only so many training images; None = all.
        device: ``auto`` (CUDA, then MPS, then CPU) or a torch device.
        threads: of a CPU, for the thread that the run is in; None = as many as torch takes.
        amp: precision of the weights' own steps. ``bf16`` or ``off``, which is float32; ``auto`` =
            bf16 on a CUDA device that has it (ours: with float32's range it needs no loss scaling).
        compile: ``on`` = weight steps as a CUDA graph, or by ``torch.compile`` on other devices;
            ``auto`` = on CUDA (ours: on a CPU it takes minutes to gain nothing).
        channels_last: memory order of activations; ``auto`` = ``on`` for CPU and CUDA (ours).
        native: the package's own kernels, compiled when a run on a CPU begins; ``auto`` = ``on``
            for a CPU with a C compiler (ours). They need ``channels_last`` and float32.
        momentum, weight_decay, grad_clip, lr, lr_min: SGD of the weights, cosine from lr to lr_min
            over the epochs: 0.9, 3e-4, 5, 0.025, 0.001 (DARTS; paper B.2).
        cutout: side of the square cut out of training images; off in search (DARTS).
        epochs, batch_size, init_channels, n_cells: 50, 64, 16, 8 (DARTS; paper B.2).
        space: a name of ``SPACES``; S3 is one on which DARTS collapses (paper 5.1).
        partial_channels: K: only 1/K of the channels goes through the operations, which is another
            supernet that takes less memory (PC-DARTS has 4); 1 is the full one (paper).
        edge_normalization: alpha also weighs the edges into each node (PC-DARTS; off: DARTS).
        drop_path: probability with which a sample loses an edge in training, at the end; it grows
            linearly from 0 (R-DARTS; off: DARTS).
        algo: ``mgs`` (paper 5: best trade-off), another solver, or a baseline of ``METHODS``.
        train_portion: share of the training images that fits weights, the rest scores alpha
            (DARTS).
        warmup_epochs: epochs in which alpha is frozen: a fifth of all (released: 10 of 50; the
            paper names none); 0 for the gradient baselines (DARTS).
        inner: how omega*(alpha) is approximated: ``sgd`` = M steps (paper 4), ``second`` = Eq. 2,
            ``first`` = Eq. 3. The gradient baselines bring their own.
        inner_steps: M = 10 (paper B.2).
        update_period: weight steps from one update of alpha to the next; None = M for zero-order
            methods (released; the paper does not say), 1 for gradient baselines (DARTS).
        inner_lr: learning rate of the inner steps; None = the current one of the weights (ours:
            the step that the weights would take next; the paper does not say).
        inner_momentum: whether inner steps start from the weights' momentum (ours, same reason).
        inner_amp: precision of the inner steps, by which candidates are compared: ``off``, which is
            float32, or ``bf16`` (ours: the error of bf16 exceeds what tells candidates apart, see
            docs/performance.md).
        val_batches: batches whose mean loss is L_val: 1 (released; the paper does not say).
        sigma_schedule: ``cosine`` decay of the solver's search width over the alpha epochs
            (released scripts) or ``constant`` (released default).
        solver: options of the zero-order solver; see ``zoopt_nas.SOLVERS``.
        candidates_per_batch: how many candidates of an update are evaluated at once; None = as many
            as pay and fit into the memory (ours). A loss depends on it only by rounding.
        alpha_lr, alpha_betas, alpha_weight_decay: Adam of the gradient baselines (DARTS).
        track_eigenvalue: whether to measure the dominant eigenvalue of L_val's Hessian in alpha
            after every epoch; off, since it takes about 20 double backward passes a batch.
        eigenvalue_batches: batches over which it is averaged (ours; R-DARTS: 1, whose noise alone
            can stop ``es``).
        min_return_epoch: the first epoch, from 0, that ``es`` and ``ada`` may return to: 10
            (released R-DARTS; its paper names none).
    """

    kind: ClassVar[str] = "search"
    _positive: ClassVar[tuple[str, ...]] = (
        *RunConfig._positive,
        *("val_batches", "partial_channels", "candidates_per_batch", "update_period"),
        "eigenvalue_batches",
    )
    _non_negative: ClassVar[tuple[str, ...]] = (
        *RunConfig._non_negative,
        *("warmup_epochs", "inner_steps", "alpha_weight_decay", "min_return_epoch"),
    )
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **RunConfig._choices,
        "inner": INNER_MODES,
        "inner_amp": INNER_PRECISIONS,
        "sigma_schedule": SIGMA_SCHEDULES,
    }

    space: str = "s3"
    partial_channels: int = 1
    edge_normalization: bool = False
    drop_path: float = 0.0
    algo: str = "mgs"
    train_portion: float = 0.5
    warmup_epochs: int = 10
    inner: str = "sgd"
    inner_steps: int = 10
    update_period: int | None = None
    inner_lr: float | None = None
    inner_momentum: bool = True
    inner_amp: str = "off"
    val_batches: int = 1
    sigma_schedule: str = "cosine"
    solver: dict[str, Any] = field(default_factory=dict)
    candidates_per_batch: int | None = None
    alpha_lr: float = 3e-4
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    track_eigenvalue: bool = False
    eigenvalue_batches: int = 4
    min_return_epoch: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "drop_path")
        if not 0 < self.train_portion < 1:
            raise InvalidValueError(f"train_portion must lie in (0, 1), got {self.train_portion}")
        if self.warmup_epochs >= self.epochs:
            raise InvalidValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if not self.alpha_lr > 0 or not (self.inner_lr is None or self.inner_lr > 0):
            raise InvalidValueError(
                f"alpha_lr and inner_lr must be positive, got {self.alpha_lr} and {self.inner_lr}"
            )
        if not all(0 <= beta < 1 for beta in self.alpha_betas):
            raise InvalidValueError(f"alpha_betas must lie in [0, 1), got {self.alpha_betas}")

    @classmethod
    def defaults_for(cls, dataset: str) -> dict[str, Any]:
        return dict(SEARCH_BY_DATASET.get(dataset, {}))

    @classmethod
    def for_dataset(
        cls,
        dataset: str = "digits",
        algo: str = "mgs",
        *,
        preset: str | None = None,
        **overrides: Any,
    ) -> Self:
        """The defaults for a data set and a method, with some of them overridden.

        Args:
            dataset: a name or a path.
            algo: the method.
            preset: ``paper`` or ``released``: the search as the one or the other has it, where
                they differ from each other or from the defaults.
            **overrides: fields; they win over all.
        """
        dataset, algo = typed("dataset", dataset, str), typed("algo", algo, str)
        preset = typed("preset", preset, str | None)
        fields = {"algo": algo, **search_defaults(dataset, algo), **preset_fields(preset, algo)}
        fields |= known_fields(cls, overrides)
        lr = typed("lr", fields.get("lr", cls.lr), float)
        fields.setdefault("lr_min", min(cls.lr_min, lr))
        epochs = typed("epochs", fields.get("epochs", cls.epochs), int)
        fields.setdefault("warmup_epochs", warmup_epochs(algo, epochs, dataset, preset))
        own = typed("solver", fields.get("solver", {}), dict)
        space = str(fields.get("space", cls.space))
        fields["solver"] = solver_options(algo, space, preset) | own
        return cls(dataset=dataset, **fields)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Settings of a retraining. The values here are those of DARTS (2019) on CIFAR (paper B.2).

    Fields that ``SearchConfig`` has too mean the same; the others are:

    Attributes:
        genotype: the architecture, in its published string form.
        epochs, batch_size, init_channels, n_cells: 600, 96, 36, 20.
        schedule, lr_min: how the learning rate falls over the epochs, and where to: ``cosine`` to
            0; ``linear`` on ImageNet (SmoothDARTS).
        warmup_epochs: epochs in which the learning rate grows linearly to lr: 0; 5 on ImageNet
            (SmoothDARTS).
        cutout: 16.
        auxiliary, auxiliary_weight: the auxiliary head and the weight of its loss, 0.4.
        drop_path: probability at the end; it grows linearly from 0, to 0.2.
        label_smoothing: 0; 0.1 on ImageNet.
        report: which epoch's test accuracy is the result: ``last`` (R-DARTS), or ``best`` of all
            epochs, which selects on the test set (released).
    """

    kind: ClassVar[str] = "train"
    _non_negative: ClassVar[tuple[str, ...]] = (
        *RunConfig._non_negative,
        "auxiliary_weight",
        "warmup_epochs",
    )
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **RunConfig._choices,
        "schedule": LR_SCHEDULES,
        "report": REPORTS,
    }

    genotype: str = "DARTS_V2"
    epochs: int = 600
    batch_size: int = 96
    init_channels: int = 36
    n_cells: int = 20
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    cutout: int = 16
    auxiliary: bool = True
    auxiliary_weight: float = 0.4
    drop_path: float = 0.2
    label_smoothing: float = 0.0
    report: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "drop_path", "label_smoothing")

    @classmethod
    def defaults_for(cls, dataset: str) -> dict[str, Any]:
        return train_defaults(dataset, None, None)

    @classmethod
    def for_dataset(
        cls,
        dataset: str,
        genotype: str,
        *,
        protocol: str | None = None,
        space: str | None = None,
        **overrides: Any,
    ) -> Self:
        """The defaults for a data set or a published protocol, with some of them overridden.

        Args:
            dataset: a name or a path.
            genotype: the architecture.
            protocol: a key of ``TRAIN_PROTOCOLS``; it replaces the data set's own defaults.
            space: where the genotype was found, for ``rdarts``.
            **overrides: fields; they win over both.
        """
        dataset, protocol = typed("dataset", dataset, str), typed("protocol", protocol, str | None)
        fields = train_defaults(dataset, protocol, typed("space", space, str | None))
        fields |= known_fields(cls, overrides)
        if "warmup_epochs" not in overrides:
            epochs = typed("epochs", fields.get("epochs", cls.epochs), int)
            usual = fields.get("warmup_epochs", cls.warmup_epochs)
            fields["warmup_epochs"] = shortened_warmup(usual, epochs)
        return cls(dataset=dataset, genotype=genotype, **fields)

"""Every setting of a search and of a retraining: its name, type, default, help and rule.

A setting is one field. Its validation, TOML key, command-line option and line in
``docs/settings.md`` follow from the field. ``defaults`` has the defaults that depend on the kind of
run, the data set or the method.

Sources: *paper* is ZARTS (Wang et al., 2022); *released* its published scripts; *DARTS* Liu et al.
(2019) with its code; *zoopt-nas* a choice of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.defaults import (
    preset_fields,
    search_defaults,
    shortened_warmup,
    solver_options,
    train_defaults,
    warmup_epochs,
)
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.settings.setting import (
    ALPHA,
    AT_LEAST_0,
    BELOW_1,
    BETWEEN_0_AND_1,
    DATA,
    DEVICES,
    MACHINE,
    NETWORK,
    POSITIVE,
    POSITIVE_INTEGER,
    UNSET,
    WEIGHTS,
    WHAT,
    setting,
    typed,
)

INNER_MODES = ("first", "second", "sgd")
MIXED, UNIFORM, FAIR = PATHS = ("mixed", "uniform", "fair")
# What single paths need: all channels, no weights of edges and no gradient in alpha.
_OF_PATHS = {
    "partial_channels": 1, "edge_normalization": False, "auxiliary_skip": 0.0,
    "track_eigenvalue": False,
}  # fmt: skip
_OF_FRESH_PATHS = ("surrogate", "extrapolate")
SHARED, FRESH = WEIGHTS_OF = ("shared", "fresh")
SCORES = ("loss", "accuracy")
# How alpha weighs candidates, see ``networks.relaxation``.
RELAXATIONS = SOFTMAX, SIGMOID, DIRICHLET = ("softmax", "sigmoid", "dirichlet")


@dataclass(frozen=True)
class SearchConfig(RunConfig):
    """The settings of a search; defaults depend on the data set and the method.

    ``docs/settings.md`` lists every setting with the source of its default.
    """

    kind: ClassVar[str] = "search"

    # fmt: off
    space: str = setting(
        "s3", WHAT, "Search space.", "DARTS collapses on S3 (paper 5.1).")
    algo: str = setting(
        "mgs", WHAT, "Method: rs, mgs, gld, darts1, darts2, ...",
        "mgs has the best trade-off in the paper (5).")
    paths: str = setting(
        MIXED, NETWORK, "Supernet: mixed; or single paths, drawn uniform or fair.",
        "mixed: DARTS. With paths one operation per edge is trained and scored (paper 6).",
        choices=PATHS)
    partial_channels: int = setting(
        1, NETWORK, "K: operations use 1/K of the channels.",
        "Saves memory with a different supernet; PC-DARTS: 4. 1 is the full one (paper).",
        rule=POSITIVE_INTEGER)
    merge_kernels: bool = setting(
        False, NETWORK, "Whether the convolutions of an edge share one kernel.",
        "A smaller supernet (MergeNAS; released ZARTS code: an option).",
        shown="no; merge_nas: yes")
    edge_normalization: bool = setting(
        False, NETWORK, "Alpha also weighs edges.",
        "The edges into each node (PC-DARTS, ROME; off: DARTS).", shown="no; pc, rome: yes")
    relaxation: str = setting(
        "softmax", NETWORK, "Weights of candidates: softmax, sigmoid or dirichlet of alpha.",
        "softmax: DARTS; sigmoid: FairDARTS; dirichlet: DrNAS, the mean of the distribution.",
        choices=RELAXATIONS, shown="softmax; fair_darts: sigmoid; drnas: dirichlet")
    auxiliary_skip: float = setting(
        0.0, NETWORK, "First weight of an auxiliary skip connection on each edge; 0: none.",
        "It falls linearly to 0 over the epochs (DARTS-: 1). It is not in the result.",
        rule=AT_LEAST_0, shown="0; darts_minus: 1")
    drop_path: float = setting(
        0.0, WEIGHTS, "Probability to lose an edge at the end.",
        "For each sample; it grows linearly from 0 (R-DARTS; off: DARTS).", rule=BELOW_1)
    skip_dropout: tuple[float, float, float] = setting(
        UNSET, WEIGHTS, "p_darts: first dropout rate of skip connections in each stage.",
        "It falls within a stage. P-DARTS: 0, 0.4, 0.7, and on CIFAR-100 0.1, 0.2, 0.3.",
        rule=BELOW_1, shown="p_darts: 0, 0.4, 0.7; others: 0")
    table: str | None = setting(
        None, DATA, "NAS-Bench-201 table, to watch the true accuracy of each epoch's cell.",
        "A CSV file ([form](nasbench201.md#the-table)); the search does not use it.")
    train_portion: float = setting(
        0.5, DATA, "Fraction of the training images for weights; the rest is for alpha.",
        "DARTS.", rule=BETWEEN_0_AND_1, has_option=False)
    warmup_epochs: int = setting(
        UNSET, ALPHA, "Epochs before alpha moves.",
        "Released: 10 of 50; not in the paper. DARTS: 0. P-DARTS: 10 of the 25 of each stage.",
        rule=AT_LEAST_0, shown="zero-order: a fifth of the epochs; pc: 0.3; p_darts: 0.4 of a "
        "stage; others: 0")
    weights: str = setting(
        SHARED, ALPHA, "Where candidates start: shared, trained weights; fresh, initial ones.",
        "shared: paper. With fresh weights nothing but candidates is trained (zoopt-nas).",
        choices=WEIGHTS_OF)
    surrogate: bool = setting(
        False, ALPHA, "Let a model of the measured cells choose the next one.",
        "A Gaussian process, with fresh weights on paths ([surrogate](single-path.md#surrogate); "
        "zoopt-nas).")
    extrapolate: bool = setting(
        False, ALPHA, "Compare cells by their values after 2M steps, extrapolated from M/2 and M.",
        "With fresh weights on paths ([extrapolation](single-path.md#fresh-weights); zoopt-nas).")
    start: str | None = setting(
        None, ALPHA, "Cell at which alpha begins: its published string, or a file with it.",
        "Alpha is 1 for its operations and 0 for all others. None: near 0 (DARTS), and with fresh "
        "weights the best of ten random cells.")
    supernet: str | None = setting(
        None, ALPHA, "Run folder of a finished search whose supernet darts_pt continues.",
        "Weights and alpha are taken from it; data set, space and sizes must agree.")
    inner: str = setting(
        "sgd", ALPHA, "Weights of a candidate: sgd, M steps; second; first, none.",
        "Paper 4, Eq. 2 and Eq. 3. Gradient methods have fixed modes.", choices=INNER_MODES)
    inner_steps: int = setting(
        10, ALPHA, "M: weight steps for each candidate.", "Paper B.2.", rule=AT_LEAST_0)
    inner_lr: float | None = setting(
        None, ALPHA, "Learning rate of inner steps.",
        "zoopt-nas: the same step as the weights; not in the paper.", rule=POSITIVE,
        shown="the current one of the weights")
    inner_momentum: bool = setting(
        True, ALPHA, "Whether inner steps start from the momentum of the weights.",
        "zoopt-nas, for the same reason.", has_option=False)
    inner_average: float = setting(
        0.0, ALPHA, "Decay of the average of a candidate's weights, which is scored; 0: none.",
        "An exponential moving average over its M steps "
        "([fresh weights](single-path.md#fresh-weights)).", rule=BELOW_1)
    inner_amp: str = setting(
        "off", ALPHA, "Precision of inner steps: off, float32; bf16.",
        "zoopt-nas: the error of bf16 exceeds the differences between candidates "
        "([performance](performance.md#precision-threads-compilation)).",
        choices=("off", "bf16"))
    update_period: int | None = setting(
        None, ALPHA, "Weight steps between two updates of alpha.",
        "Released; not in the paper. DARTS: 1.", rule=POSITIVE_INTEGER,
        shown="zero-order: M; gradient methods: 1")
    sampled_paths: int = setting(
        1, ALPHA, "Paths that gdas, rome sample for a weight step, and for an update of alpha.",
        "K: gradients of weights are summed, gradients of alpha averaged (ROME).",
        rule=POSITIVE_INTEGER, shown="1; rome: 7")
    val_batches: int = setting(
        1, ALPHA, "Batches that score a candidate.", "Released; not in the paper.",
        rule=POSITIVE_INTEGER)
    score: str = setting(
        "loss", ALPHA, "Value of a candidate: loss; accuracy, ties broken by the loss.",
        "loss: paper. accuracy (zoopt-nas) is for zero-order methods "
        "([noise](noise.md#score)).", choices=SCORES)
    noise_aware: bool = setting(
        False, ALPHA, "Fit widths and validation batches to the noise.",
        "zoopt-nas, for zero-order methods: widths, the temperature of mgs and val_batches follow "
        "measurements in each epoch ([noise](noise.md)).")
    sigma_schedule: str = setting(
        "cosine", ALPHA, "Search width: cosine or constant.",
        "Over the epochs in which alpha moves. cosine: released scripts; constant: their default.",
        choices=("cosine", "constant"))
    solver: dict[str, Any] = setting(  # noqa: RUF009 - it copies the dictionary
        {}, ALPHA, "NAME=VALUE of the solver, for example sigma=0.2; may be repeated.",
        "Options of the zero-order solver; other options have the default of method and space.",
        option="--solver-option", shown="by method and space")
    alpha_lr: float = setting(
        3e-4, ALPHA, "Adam's learning rate of gradient methods.", "DARTS.", rule=POSITIVE)
    alpha_penalty: float = setting(
        UNSET, ALPHA, "Weight of the method's penalty on alpha.",
        "fair_darts: the zero-one loss. beta_darts: the last weight of the logsumexp, from 0. "
        "drnas: the divergence from the uniform distribution. Others have none.",
        rule=AT_LEAST_0, shown="fair_darts: 10; beta_darts: 50; others: 0")
    alpha_betas: tuple[float, float] = setting(
        (0.5, 0.999), ALPHA, "Adam's betas.", "DARTS.", rule=BELOW_1, has_option=False)
    alpha_weight_decay: float = setting(
        1e-3, ALPHA, "Adam's weight decay.", "DARTS.", rule=AT_LEAST_0, has_option=False)
    track_eigenvalue: bool = setting(
        False, ALPHA, "Measure the Hessian's eigenvalue in each epoch.",
        "The dominant one of L_val in alpha; a batch takes about 20 double backward passes.")
    eigenvalue_batches: int = setting(
        4, ALPHA, "Batches over which it is averaged.",
        "zoopt-nas; R-DARTS has 1, whose noise alone can stop es.", rule=POSITIVE_INTEGER)
    min_return_epoch: int = setting(
        10, ALPHA, "es, ada: first epoch, from 0, to return to.",
        "Released R-DARTS; its paper names none.", rule=AT_LEAST_0)
    candidates_per_batch: int | None = setting(
        None, MACHINE, "Candidates of an update that are evaluated at once.",
        "zoopt-nas. It changes losses only by rounding.", rule=POSITIVE_INTEGER,
        shown="as many as save time and fit into memory")
    candidate_devices: str | None = setting(
        None, MACHINE, "Devices of processes that evaluate candidates, as cuda:0,cuda:1.",
        "One process for each, for zero-order methods "
        "([candidates](parallel.md#candidates-of-a-search)). With the same threads the results are "
        "the same.",
        rule=DEVICES, shown="none: the search evaluates them itself")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise InvalidValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if self.weights == FRESH and (self.inner != "sgd" or self.inner_steps < 1):
            raise InvalidValueError(
                "inner must be sgd with at least 1 inner_steps with fresh weights, "
                f"got {self.inner} with {self.inner_steps}"
            )
        if self.extrapolate and self.inner_steps < 2:
            raise InvalidValueError(
                f"inner_steps must be at least 2 with extrapolate, got {self.inner_steps}"
            )
        for name in _OF_FRESH_PATHS if self.weights != FRESH or self.paths == MIXED else ():
            if value := getattr(self, name):
                message = f"{name} must be {type(value)()} without fresh weights on paths"
                raise InvalidValueError(f"{message}, got {value}")
        if self.edge_normalization:
            self._check_edge_normalization()
        for key, needed in _OF_PATHS.items() if self.paths != MIXED else ():
            if (value := getattr(self, key)) != needed:
                raise InvalidValueError(f"paths must be mixed with {key} {value}, got {self.paths}")

    @property
    def worker_names(self) -> tuple[str, ...]:
        """The devices in ``candidate_devices``; empty for None."""
        names = self.candidate_devices
        return () if names is None else tuple(name.strip() for name in names.split(","))

    def _check_edge_normalization(self) -> None:
        """Refuse what changes the sum of an edge's weights, which is its factor."""
        if self.relaxation == SIGMOID:
            raise InvalidValueError(
                "relaxation must be softmax or dirichlet with edge_normalization, "
                f"got {self.relaxation}"
            )
        if self.auxiliary_skip:
            raise InvalidValueError(
                f"auxiliary_skip must be 0 with edge_normalization, got {self.auxiliary_skip}"
            )
        if self.merge_kernels:  # BatchNorm follows the weights of merged convolutions
            raise InvalidValueError("merge_kernels must be false with edge_normalization, got true")

    @classmethod
    def defaults_for(cls, dataset: str, algo: str = "mgs", space: str = "s3") -> dict[str, Any]:
        """Return the defaults for a data set, method and space."""
        return cls.usual() | search_defaults(dataset, algo, space)

    @classmethod
    def with_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults for the data set, method and space to the given settings."""
        known = cls.usual() | given
        dataset, algo, space = known["dataset"], known["algo"], known["space"]
        values = cls.defaults_for(dataset, algo, space) | given
        if "lr_min" not in given:
            values["lr_min"] = min(values["lr_min"], values["lr"])
        is_fresh, on_paths = values["weights"] == FRESH, values["paths"] != MIXED
        if "warmup_epochs" not in given:
            n_epochs = 0 if is_fresh else values["epochs"]  # fresh weights need no warm-up
            values["warmup_epochs"] = warmup_epochs(algo, n_epochs, dataset)
        options = solver_options(
            algo, space, given=values["solver"], on_paths=on_paths, is_fresh=is_fresh
        )
        return values | {"solver": options}

    @classmethod
    def for_dataset(
        cls,
        dataset: str = "digits",
        algo: str = "mgs",
        *,
        preset: str | None = None,
        **overrides: Any,
    ) -> Self:
        """Return ``SearchConfig(dataset=dataset, algo=algo, ...)``, or a published search.

        Args:
            dataset: A name or a path.
            algo: The method.
            preset: ``paper`` or ``released``, for the search as described or as published, or
                ``robust``, for a search that trains each cell on its own.
            **overrides: Other settings, which take precedence over the preset.
        """
        preset = typed("preset", preset, str | None)
        space = overrides.get("space", cls.usual()["space"])
        fields = preset_fields(preset, algo, space) | cls.known(overrides)
        config = cls(dataset=dataset, algo=algo, **fields)
        if preset is None:
            return config
        is_fresh, on_paths = config.weights == FRESH, config.paths != MIXED
        warmup = 0 if is_fresh else warmup_epochs(algo, config.epochs, dataset, preset)
        given = overrides.get("solver")
        options = solver_options(
            algo, config.space, preset, given, on_paths=on_paths, is_fresh=is_fresh
        )
        return config.replace(warmup_epochs=overrides.get("warmup_epochs", warmup), solver=options)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The settings of a retraining; defaults depend on the data set.

    ``docs/settings.md`` lists every setting with the source of its default.
    """

    kind: ClassVar[str] = "train"

    # fmt: off
    genotype: str = setting(
        "DARTS_V2", WHAT, "The architecture: a name, or its published string.",
        "An argument of the command.", has_option=False)
    report: str = setting(
        "last", WHAT, "Which epoch's test accuracy: last; best, which selects on the test set.",
        "last: R-DARTS; best: released.", choices=("last", "best"))
    auxiliary: bool = setting(UNSET, NETWORK, "Auxiliary head.", "DARTS.")
    auxiliary_weight: float = setting(
        UNSET, NETWORK, "Weight of its loss.", "DARTS.", rule=AT_LEAST_0)
    drop_path: float = setting(
        UNSET, NETWORK, "Drop-path probability at the end.", "It grows linearly from 0 (DARTS).",
        rule=BELOW_1)
    schedule: str = setting(
        UNSET, WEIGHTS, "Decay of the learning rate: cosine, linear.",
        "cosine: DARTS; linear on ImageNet: SmoothDARTS.", choices=("cosine", "linear"))
    warmup_epochs: int = setting(
        UNSET, WEIGHTS, "Epochs of growing learning rate.",
        "5 on ImageNet (SmoothDARTS), at most a fifth of the epochs (zoopt-nas).", rule=AT_LEAST_0)
    label_smoothing: float = setting(
        UNSET, WEIGHTS, "Label smoothing.", "0.1 on ImageNet (DARTS).", rule=BELOW_1)
    # fmt: on

    @classmethod
    def defaults_for(cls, dataset: str, genotype: str = "") -> dict[str, Any]:
        """Return the default of every setting for a data set and an architecture."""
        return cls.usual() | train_defaults(dataset, None, None, genotype)

    @classmethod
    def with_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults for the data set to the given settings."""
        known = cls.usual() | given
        values = cls.defaults_for(known["dataset"], known["genotype"]) | given
        if "warmup_epochs" not in given:
            values["warmup_epochs"] = shortened_warmup(values["warmup_epochs"], values["epochs"])
        return values

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
        """Return ``TrainConfig(dataset=dataset, genotype=genotype, ...)``, or a published protocol.

        Args:
            dataset: A name or a path.
            genotype: The architecture.
            protocol: A key of ``TRAIN_PROTOCOLS``; replaces the defaults of the data set.
            space: The search space of the genotype, for ``rdarts``.
            **overrides: Other settings, which take precedence over the protocol.
        """
        dataset, protocol = typed("dataset", dataset, str), typed("protocol", protocol, str | None)
        genotype = typed("genotype", genotype, str)
        published = train_defaults(dataset, protocol, typed("space", space, str | None), genotype)
        config = cls(dataset=dataset, genotype=genotype, **published | cls.known(overrides))
        if "warmup_epochs" in overrides:
            return config
        return config.replace(warmup_epochs=shortened_warmup(config.warmup_epochs, config.epochs))

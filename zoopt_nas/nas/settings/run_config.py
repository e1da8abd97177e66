"""The settings that a search and a retraining share; see ``config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.setting import (
    AT_LEAST_0,
    DATA,
    MACHINE,
    NETWORK,
    POSITIVE,
    POSITIVE_FINITE,
    POSITIVE_INTEGER,
    UNSET,
    WEIGHTS,
    WHAT,
    Settings,
    setting,
)

_SWITCH = ("auto", "off", "on")


@dataclass(frozen=True)
class RunConfig(Settings):
    """The common settings of a search and a retraining."""

    kind: ClassVar[str] = "run"

    # fmt: off
    dataset: str = setting(
        "digits", WHAT, "Data set: a name, an .npz file or a folder of class folders.")
    seed: int = setting(
        0, WHAT, "Seeds everything.", "Each use of randomness has a separate stream.",
        rule=AT_LEAST_0)
    init_channels: int = setting(
        UNSET, NETWORK, "Width of the first cell.", "DARTS; paper B.2.", rule=POSITIVE_INTEGER)
    n_cells: int = setting(
        UNSET, NETWORK, "Number of cells; a multiple of 3 in nasbench201.",
        "DARTS; paper B.2. NAS-Bench-201: 15.", rule=POSITIVE_INTEGER)
    epochs: int = setting(UNSET, WEIGHTS, "Epochs.", "DARTS; paper B.2.", rule=POSITIVE_INTEGER)
    batch_size: int = setting(
        UNSET, WEIGHTS, "Images in a batch.", "DARTS; paper B.2.", rule=POSITIVE_INTEGER)
    lr: float = setting(
        0.025, WEIGHTS, "Learning rate at the start.",
        "SGD, decayed over the epochs (DARTS; paper B.2).", rule=POSITIVE_FINITE)
    lr_min: float = setting(
        UNSET, WEIGHTS, "Learning rate at the end.", "DARTS; paper B.2. At most lr.",
        has_option=False)
    momentum: float = setting(
        0.9, WEIGHTS, "Momentum of SGD.", "DARTS; paper B.2.", rule=AT_LEAST_0, has_option=False)
    nesterov: bool = setting(
        False, WEIGHTS, "Nesterov's momentum.", "Off: DARTS. On in the space nasbench201.",
        has_option=False, shown="no; nasbench201: yes")
    weight_decay: float = setting(
        3e-4, WEIGHTS, "Weight decay.", "DARTS; paper B.2. NAS-Bench-201: 5e-4.", rule=AT_LEAST_0,
        shown="0.0003; nasbench201: 0.0005")
    grad_clip: float = setting(
        5.0, WEIGHTS, "Largest norm of the gradient.", "DARTS.", rule=POSITIVE, has_option=False)
    augment: bool = setting(
        True, DATA, "Change training images at random.",
        "Crops, mirror images and cutout, by data set (DARTS). Few steps learn more without.")
    cutout: int = setting(
        UNSET, DATA, "Side of the square cut out of images.", "In training images only (DARTS).",
        rule=AT_LEAST_0)
    data_dir: str = setting("data", DATA, "Folder of the data sets' files.")
    download: bool = setting(False, DATA, "Fetch missing files into it.")
    n_train: int | None = setting(
        None, DATA, "Number of training images to use.", "None: all.", rule=POSITIVE_INTEGER)
    image_size: int | None = setting(
        None, DATA, "Resize images to this side.", "None: keep their size.", rule=POSITIVE_INTEGER)
    device: str = setting(
        "auto", MACHINE, "auto, cpu, cuda, mps.",
        "Or another device of torch. auto: CUDA if available, else MPS, else the CPU.")
    threads: int | None = setting(
        None, MACHINE, "CPU threads; none: torch's choice.", "For the thread of the run.",
        rule=POSITIVE_INTEGER)
    amp: str = setting(
        "auto", MACHINE, "Precision of weight steps: bf16, off; auto: bf16 on CUDA.",
        "off is float32. zoopt-nas: bf16 has the range of float32 and needs no loss scaling.",
        choices=("auto", "off", "bf16"))
    compile: str = setting(
        "auto", MACHINE, "Weight steps as CUDA graphs, or compiled: on, off; auto: CUDA.",
        "Other devices use torch.compile. zoopt-nas: on a CPU it takes minutes and gains nothing.",
        choices=_SWITCH)
    channels_last: str = setting(
        "auto", MACHINE, "Memory format: on, off; auto: CPU and CUDA.", "zoopt-nas.",
        choices=_SWITCH)
    cpu_kernels: str = setting(
        "auto", MACHINE, "CPU kernels in C: on, off; auto: with a C compiler.",
        "Compiled when a run begins; they need channels_last and float32 (zoopt-nas).",
        choices=_SWITCH)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lr_min <= self.lr:
            raise InvalidValueError(f"lr_min must lie in [0, lr], got {self.lr_min}")
        if self.nesterov and self.momentum == 0:
            raise InvalidValueError("momentum must be positive with nesterov, got 0")

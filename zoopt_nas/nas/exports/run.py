"""Export the network of a run for use without this package, checked against the trained one."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoopt_nas.errors import ExportError, InvalidValueError, RunError
from zoopt_nas.nas.data.augmentation import Transform
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.exports.formats import FORMATS
from zoopt_nas.nas.exports.source import NetworkFacts
from zoopt_nas.nas.networks.build import build_network, reductions_of
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.operations import Stochastic
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.seeds import generator

# Largest accepted difference of logits, divided by the largest logit or 1. The precision of float32
# is 6e-8; summing in another order, through 20 cells, loses up to three digits.
TOLERANCE = 1e-4
CHECKED_BATCH_SIZES = (1, 3)  # not the size of the example that the converters see
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportResult:
    """The files of an export and its accuracy.

    Attributes:
        format: a name of ``FORMATS``.
        files: the new files.
        largest_difference: of logits from the trained network's, relative to the largest logit, on
            random pixels.
        tolerance: the largest accepted difference.
        facts: what the exported network is, and which images it takes.
    """

    format: str
    files: tuple[Path, ...]
    largest_difference: float
    tolerance: float
    facts: NetworkFacts


def export_network(
    run_dir: str | Path,
    format: str = "onnx",
    *,
    out: str | Path | None = None,
    include_normalization: bool = False,
) -> ExportResult:
    """Write the network of a run in a form that does not need this package.

    The network is in evaluation mode without auxiliary head and drop path, and takes any batch
    size. The export is read back and compared with the trained network before it appears in
    ``out``. It replaces the files of an earlier export.

    Args:
        run_dir: the folder of a retraining, finished or not; or of a search, for which only
            ``"python"`` works: it gives the untrained network that a retraining would train.
        format: ``"onnx"``, ``"torchscript"`` or ``"python"``.
        out: the folder to write to; None is ``export`` in the run folder.
        include_normalization: whether the exported network takes pixels in 0..1 and normalises
            them, instead of normalised images.

    Raises:
        UnknownNameError: no such format.
        RunError: there is no run, or no weights yet, or ``out`` cannot be written.
        InvalidValueError: the genotype has an operation that cannot be exported.
        MissingDependencyError: a package of the extra ``export`` is missing (ONNX only).
        ExportError: the exported network differs from the trained one.
    """
    write = FORMATS[format]
    run = RunFolder.open(run_dir)
    config, is_trained = _training_of(run, format)
    images = run.data()
    headless = config.replace(auxiliary=False)  # only training uses the auxiliary head
    network = build_network(headless, images, seed=config.seed, execution=Execution(_CPU)).eval()
    _check_operations(network)
    epochs = _load_weights(network, run) if is_trained else 0
    facts = _facts(network, config, images, epochs, include_normalization)
    exported = copy.deepcopy(network)
    enable_kernels(exported, False)
    exported.channels_last = False
    out = run.path / "export" if out is None else Path(out)
    with _staging(out) as folder, torch.no_grad():
        written = write(exported, facts, folder)
        differences = [_difference(written.run, network, facts, n) for n in CHECKED_BATCH_SIZES]
        for file in written.files:
            os.replace(file, out / file.name)
    files = tuple(out / file.name for file in written.files)
    return ExportResult(format, files, max(differences), TOLERANCE, facts)


def _training_of(folder: RunFolder, format: str) -> tuple[TrainConfig, bool]:
    """Return the settings of the retraining, and whether the run is one (not a search)."""
    if folder.kind == TrainConfig.kind:
        return folder.config(TrainConfig), True
    if format != "python":
        raise RunError(
            f"{folder.path} is a search, which leaves no trained network: "
            "train it first, or export it untrained as python"
        )
    search = folder.config(SearchConfig)
    fields = {name: getattr(search, name) for name in ("data_dir", "download", "image_size")}
    return TrainConfig.for_dataset(search.dataset, str(folder.genotype()), **fields), False


def _check_operations(network: Network) -> None:
    for module in network.modules():
        if isinstance(module, Stochastic):
            raise InvalidValueError(
                "an operation to export must give the same output for the same input, "
                f"got {type(module).__name__}"
            )


def _load_weights(network: Network, folder: RunFolder) -> int:
    """Load the weights that the run reports on so far; return their number of epochs."""
    state = folder.load_checkpoint(_CPU)
    if state is None or state.get("epoch") == 0:
        raise RunError(f"{folder.path} has no weights yet: no epoch has ended")
    try:
        best = state["own"].get("best")  # set if report = "best"
        weights = best["weights"] if best else state["own"]["network"]
        network.load_state_dict(
            {key: value for key, value in weights.items() if not key.startswith("auxiliary.")}
        )
        return int(best["epoch"]) + 1 if best else int(state["epoch"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            f"the checkpoint in {folder.path} does not belong to its config.toml"
        ) from error


def _facts(
    network: Network,
    config: TrainConfig,
    images: DataRecord,
    epochs: int,
    include_normalization: bool,
) -> NetworkFacts:
    return NetworkFacts(
        dataset=config.dataset,
        genotype=network.genotype,
        n_classes=images.n_classes,
        class_names=images.class_names,
        in_channels=images.in_channels,
        image_size=images.image_size,
        mean=images.mean,
        std=images.std,
        init_channels=config.init_channels,
        n_cells=config.n_cells,
        reductions=reductions_of(config, network.genotype, images.image_size),
        stem=type(network.stem).__name__,
        epochs_trained=epochs,
        includes_normalization=include_normalization,
    )


def _difference(
    run: Callable[[Tensor], Tensor], network: Network, facts: NetworkFacts, batch_size: int
) -> float:
    """Return the largest difference of logits, relative to the largest one, if tolerable."""
    shape = (batch_size, facts.in_channels, facts.image_size, facts.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(batch_size))
    images = Transform(facts.mean, facts.std, image_size=facts.image_size, device=_CPU)(pixels)
    expected = network(images)
    logits = run(pixels / 255 if facts.includes_normalization else images)
    if logits.shape != expected.shape:
        raise ExportError(
            f"the exported network must give logits {tuple(expected.shape)}, "
            f"got {tuple(logits.shape)}; nothing was written"
        )
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= TOLERANCE:  # also if it is NaN
        raise ExportError(
            f"the exported network must give the logits of the trained one up to {TOLERANCE}, "
            f"got a difference of {difference:.2g}; nothing was written"
        )
    return difference


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Give a temporary folder inside ``out``; on exit remove it, and ``out`` if new and empty."""
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    except OSError as error:
        raise RunError(f"cannot write into the folder {out}: {error.strerror}") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if is_new and not any(out.iterdir()):
            out.rmdir()

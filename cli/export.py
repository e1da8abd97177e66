"""``zoopt-nas export``: writes the network of a run for use without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import Json, let_threads_sleep, option

_RUN = "Run folder of a retraining; python: or of a search."


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    format: Annotated[str, option("onnx, torchscript or python.")],
    out: Annotated[Path | None, option("Folder for the files.", shown="RUN/export")] = None,
    include_normalization: Annotated[
        bool, option("Take pixels in 0..1, not normalised images.", flag="--include-normalization")
    ] = False,
    json: Json = False,
) -> None:
    """Export the trained network, checked equal to the one in PyTorch (ONNX, TorchScript, .py)."""
    let_threads_sleep()
    from zoopt_nas import nas

    with console.one_line_warnings():
        result = nas.export_network(
            run, format, out=out, include_normalization=include_normalization
        )
    facts = result.facts
    if json:
        found = vars(result) | {"network": facts.to_dict()}
        del found["facts"]
        console.say_json(found)
        return
    shape = f"(n, {facts.in_channels}, {facts.image_size}, {facts.image_size})"
    what = "pixels in 0..1" if facts.includes_normalization else "normalised images"
    epochs = facts.epochs_trained
    trained = f"after {epochs} epoch{'s' * (epochs > 1)}" if epochs else "untrained"
    console.say(f"network for {what} {shape}, {facts.n_classes} classes, {trained}")
    console.say(
        f"logits differ by at most {result.largest_difference:.1e} of the largest one "
        f"(allowed: {result.tolerance:.0e})"
    )
    console.say(*result.files)

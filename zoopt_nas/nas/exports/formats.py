"""The export formats; each file is read back so that it can be checked."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoopt_nas.errors import InvalidValueError, MissingDependencyError
from zoopt_nas.nas.exports.source import NetworkFacts, source_of
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.standalone import OPERATIONS, Normalize
from zoopt_nas.nas.steps.execution import silenced
from zoopt_nas.registry import Registry

NAME = "network"  # of the files, before their suffix
_EXAMPLE_BATCH = 2  # the converters would treat 1 as a constant


class Written(NamedTuple):
    """An export in its folder."""

    files: list[Path]  # in the order in which they may be moved to their place
    run: Callable[[Tensor], Tensor]  # the network as read from the files


def write_onnx(network: Network, facts: NetworkFacts, folder: Path) -> Written:
    """Write ``network.onnx``, with a free batch size and the facts as its metadata.

    Raises:
        MissingDependencyError: a package of the extra ``export`` is missing.
    """
    onnx, onnxruntime, _ = (_needed(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    program = torch.onnx.export(
        _with_normalization(network, facts),
        (_example(facts),),
        dynamo=True,
        verbose=False,
        external_data=False,  # one file
        input_names=["pixels" if facts.includes_normalization else "images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # guaranteed by dynamo=True
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    onnx.helper.set_model_props(model, _texts(facts))
    path = folder / f"{NAME}.onnx"
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {source.name: images.numpy()})
        return torch.from_numpy(logits)

    return Written([path], run)


def write_torchscript(network: Network, facts: NetworkFacts, folder: Path) -> Written:
    """Write ``network.torchscript``, with the facts in its extra file ``metadata.json``."""
    path = folder / f"{NAME}.torchscript"
    with silenced(r"`torch\.jit\.\w+` is deprecated"):
        # The export is checked like every format, on other batch sizes too.
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            _with_normalization(network, facts), _example(facts), check_trace=False
        )
        metadata = json.dumps(facts.to_dict()).encode()
        traced.save(str(path), _extra_files={"metadata.json": metadata})
        loaded: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return Written([path], loaded)


def write_python(network: Network, facts: NetworkFacts, folder: Path) -> Written:
    """Write ``network.py``, which needs only torch, and ``network.pt`` if the network is trained.

    Raises:
        InvalidValueError: the format does not support an operation.
    """
    for graph in facts.genotype.cells.values():
        for name, _, _ in graph.edges:
            if name not in OPERATIONS:
                raise InvalidValueError(
                    f"an operation to export as python must be one of {', '.join(OPERATIONS)}, "
                    f"got {name}"
                )
    path, weights = folder / f"{NAME}.py", folder / f"{NAME}.pt"
    path.write_text(source_of(facts, NAME), encoding="utf-8")
    module = _imported(path)
    if facts.epochs_trained:
        torch.save(network.state_dict(), weights)
        return Written([weights, path], module.load(weights))
    untrained = module.build().eval()
    untrained.load_state_dict(network.state_dict())  # the same random weights
    return Written([path], _with_normalization(untrained, facts))


Writer = Callable[[Network, NetworkFacts, Path], Written]
"""Maps ``(network, facts, folder)`` to what was written; the network is in evaluation mode."""

FORMATS: Registry[Writer] = Registry(
    "export format",
    {"onnx": write_onnx, "torchscript": write_torchscript, "python": write_python},
)


def _with_normalization(network: nn.Module, facts: NetworkFacts) -> nn.Module:
    if not facts.includes_normalization:
        return network
    return nn.Sequential(Normalize(facts.mean, facts.std), network).eval()


def _example(facts: NetworkFacts) -> Tensor:
    return torch.zeros(_EXAMPLE_BATCH, facts.in_channels, facts.image_size, facts.image_size)


def _texts(facts: NetworkFacts) -> dict[str, str]:
    """Return the facts for ONNX, whose metadata are texts: other values become JSON."""
    fields = facts.to_dict()
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in fields.items()}


def _needed(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"export to onnx needs {error.name}: pip install 'zoopt-nas[export]'"
        ) from error


def _imported(path: Path) -> Any:
    """Import a file that this package has written, without an entry in sys.modules."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

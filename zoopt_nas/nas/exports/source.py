"""A Python file for one network: the parts of ``standalone`` that it uses, with its data.

Nothing is executed here, and the file is not parsed again: its source is that of ``standalone``,
taken apart by definitions.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zoopt_nas.nas.exports import standalone
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, N_INPUTS, Genotype

_OPERATIONS = "OPERATIONS"  # the table; the file gets one with its own operations

_HEADER = '''"""A network found by zoopt-nas, in plain PyTorch: this file needs nothing else.

    import {module}
    model = {module}.{example}
    logits = model({images})  # (n, {in_channels}, {image_size}, {image_size}) to (n, {n_classes})

{description}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
'''

_BUILD = '''
def build() -> nn.Module:
    """The network with random weights."""
    stem = {stem}(IN_CHANNELS, INIT_CHANNELS)
    return Network(GENOTYPE, stem, N_CLASSES, INIT_CHANNELS, N_CELLS, REDUCTIONS)
'''

_LOAD = '''
def load(path: str) -> nn.Module:
    """The network with the weights of a file, in evaluation mode{takes}."""
    network = build()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return {returned}.eval()
'''


@dataclass(frozen=True)
class NetworkFacts:
    """What has to be known of a network to build it and to feed it.

    Attributes:
        dataset: the data set that it was trained on, or that its search ran on.
        class_names: by label; None if there are none.
        mean, std: of each channel, of pixels in 0..1; a training image is (pixels - mean) / std.
        stem: the class in ``standalone``.
        epochs_trained: complete epochs behind the weights; 0 = there are no weights.
        includes_normalization: whether the exported network takes pixels in 0..1, and normalises.
    """

    dataset: str
    genotype: Genotype
    n_classes: int
    class_names: tuple[str, ...] | None
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    init_channels: int
    n_cells: int
    reductions: tuple[int, ...]
    stem: str
    epochs_trained: int
    includes_normalization: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON; the genotype in its published string form."""
        fields = {**vars(self), "genotype": str(self.genotype)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def source_of(facts: NetworkFacts, module: str) -> str:
    """The text of the Python file.

    Args:
        facts: the network.
        module: the name of the file without ``.py``, for the example in its docstring.
    """
    text = inspect.getsource(standalone)
    parts = {
        node.name: (node, str(ast.get_source_segment(text, node)))
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    genotype = facts.genotype
    operations = sorted({name for kind in CELL_KINDS for name, _ in genotype.edges(kind)})
    wanted = ["Network", facts.stem, *operations]
    if facts.includes_normalization:
        wanted.append("Normalize")
    used = _closure(wanted, {name: node for name, (node, _) in parts.items()})
    table = "".join(f'    "{name}": {name},\n' for name in operations)
    blocks: list[str] = []
    for name, (_, source) in parts.items():  # in the order of standalone
        if name == "Preprocess":  # the operations end here, and the cells begin
            blocks.append(f"{_OPERATIONS} = {{\n{table}}}")
        if name in used:
            blocks.append(source)
    blocks.append(_BUILD.format(stem=facts.stem).strip())
    if facts.epochs_trained:
        blocks.append(_load(facts.includes_normalization).strip())
    header = _header(facts, module)
    return f"{header}\n{_constants(facts)}\n\n\n" + "\n\n\n".join(blocks) + "\n"


def _closure(wanted: Iterable[str], nodes: Mapping[str, ast.AST]) -> set[str]:
    """The definitions that ``wanted`` need, themselves among them."""
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name in nodes and name not in found:
            found.add(name)
            todo += [node.id for node in ast.walk(nodes[name]) if isinstance(node, ast.Name)]
    return found


def _header(facts: NetworkFacts, module: str) -> str:
    normalized = facts.includes_normalization
    return _HEADER.format(
        module=module,
        example=f'load("{module}.pt")' if facts.epochs_trained else "build()",
        images="pixels" if normalized else "(pixels - mean) / std",
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        n_classes=facts.n_classes,
        description=(
            "Pixels are in 0..1; the network normalises them by MEAN and STD."
            if normalized
            else "Pixels are in 0..1; mean and std are those of each channel, MEAN and STD."
        ),
    )


def _load(normalized: bool) -> str:
    return _LOAD.format(
        takes="; it takes pixels in 0..1" if normalized else "",
        returned="nn.Sequential(Normalize(MEAN, STD), network)" if normalized else "network",
    )


def _constants(facts: NetworkFacts) -> str:
    lines = [
        f"DATASET = {json.dumps(facts.dataset)}",  # may be any path: JSON escapes quotes
        f"EPOCHS_TRAINED = {facts.epochs_trained}",
        f"N_CLASSES = {facts.n_classes}",
        f"IN_CHANNELS = {facts.in_channels}",
        f"IMAGE_SIZE = {facts.image_size}",
        f"MEAN = {list(facts.mean)!r}",
        f"STD = {list(facts.std)!r}",
        f"INIT_CHANNELS = {facts.init_channels}",
        f"N_CELLS = {facts.n_cells}",
        f"REDUCTIONS = {list(facts.reductions)!r}  # which cells halve the size, double the width",
    ]
    if facts.class_names is not None:
        names = "".join(f"    {json.dumps(name)},\n" for name in facts.class_names)
        lines.append(f"CLASS_NAMES = [\n{names}]")
    lines.append("GENOTYPE = {")
    for kind in CELL_KINDS:
        edges = [f'("{name}", {source}),' for name, source in facts.genotype.edges(kind)]
        lines.append(f'    "{kind}": [')
        for i in range(0, len(edges), EDGES_PER_NODE):
            pair = " ".join(edges[i : i + EDGES_PER_NODE])
            lines.append(f"        {pair}  # into node {N_INPUTS + i // EDGES_PER_NODE}")
        lines += ["    ],", f'    "{kind}_concat": {list(facts.genotype.concat(kind))},']
    return "\n".join([*lines, "}"])

"""Source code of one network: the text of the standalone modules, and its data."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType

from zoopt_nas.nas.networks import standalone, standalone_darts, standalone_nasbench201
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, N_INPUTS, Genotype
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype

_HEADER = '''"""A network found by zoopt-nas, in PyTorch: this file needs nothing else.

    import {module}
    model = {module}.{example}
    logits = model({images})  # (n, {in_channels}, {image_size}, {image_size}) to (n, {n_classes})

{description}
"""
'''

_IMPORTS = """
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
"""

_BUILD = '''
def build() -> nn.Module:
    """The network with random weights."""
    stem = {stem}(IN_CHANNELS, INIT_CHANNELS)
    return Network(GENOTYPE, stem, N_CLASSES, INIT_CHANNELS, N_CELLS, REDUCTIONS)
'''

_BUILD_CELL = '''
def build() -> nn.Module:
    """The network with random weights."""
    return Network(OPERATIONS_OF_EDGES, IN_CHANNELS, N_CLASSES, INIT_CHANNELS, N_CELLS, REDUCTIONS)
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
    """What is needed to build a network and to feed it."""

    dataset: str  # of its training, or of its search
    genotype: Architecture
    n_classes: int
    class_names: tuple[str, ...] | None  # by label, if there are any
    in_channels: int
    image_size: int
    mean: tuple[float, ...]  # by channel, in 0..1; a network takes (pixels - mean) / std
    std: tuple[float, ...]
    init_channels: int
    n_cells: int
    reductions: tuple[int, ...]
    stem: str  # a class in the standalone modules
    epochs_trained: int  # 0 if there are no weights
    includes_normalization: bool  # whether the network takes pixels in 0..1

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON; the genotype in its published string form."""
        fields = {**vars(self), "genotype": str(self.genotype)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def source_of(facts: NetworkFacts, module: str) -> str:
    """Return the text of the Python file, to be imported by the name ``module``."""
    genotype = facts.genotype
    skeleton: ModuleType
    if isinstance(genotype, NasBench201Genotype):
        skeleton, build, cells = standalone_nasbench201, _BUILD_CELL, _operations(genotype)
    else:
        assert isinstance(genotype, Genotype)
        skeleton, build = standalone_darts, _BUILD.format(stem=facts.stem)
        cells = _edges(genotype)
    definitions = [_IMPORTS.strip(), *map(_definitions, (standalone, skeleton))]
    parts = [*definitions, "\n".join([*_constants(facts), *cells]), build.strip()]
    if facts.epochs_trained:
        parts.append(_load(facts.includes_normalization).strip())
    return _header(facts, module) + "\n" + "\n\n\n".join(parts) + "\n"


def _definitions(module: ModuleType) -> str:
    """Return the text of a module after its docstring and imports."""
    text = inspect.getsource(module)
    imports = [
        node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return "\n".join(text.splitlines()[imports[-1].end_lineno :]).strip()


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
            else "Pixels are in 0..1; mean and std are MEAN and STD, by channel."
        ),
    )


def _load(normalized: bool) -> str:
    return _LOAD.format(
        takes="; it takes pixels in 0..1" if normalized else "",
        returned="nn.Sequential(Normalize(MEAN, STD), network)" if normalized else "network",
    )


def _constants(facts: NetworkFacts) -> list[str]:
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
    return lines


def _operations(genotype: NasBench201Genotype) -> list[str]:
    """Return the constant with the operations of a NAS-Bench-201 cell."""
    lines = [f"# {genotype}", "OPERATIONS_OF_EDGES = ["]
    (graph,) = genotype.cells.values()
    for node, edges in groupby(graph.edges, key=lambda edge: edge[2]):
        names = " ".join(f'"{name}",' for name, _, _ in edges)
        lines.append(f"    {names}  # into node {node}")
    return [*lines, "]"]


def _edges(genotype: Genotype) -> list[str]:
    """Return the constant with the edges of the two cells of DARTS."""
    lines = ["GENOTYPE = {"]
    for kind in CELL_KINDS:
        edges = [f'("{name}", {source}),' for name, source in genotype.edges(kind)]
        lines.append(f'    "{kind}": [')
        for i in range(0, len(edges), EDGES_PER_NODE):
            pair = " ".join(edges[i : i + EDGES_PER_NODE])
            lines.append(f"        {pair}  # into node {N_INPUTS + i // EDGES_PER_NODE}")
        lines += ["    ],", f'    "{kind}_concat": {list(genotype.concat(kind))},']
    return [*lines, "}"]

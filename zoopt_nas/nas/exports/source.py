"""Source code of one network: the text of ``networks.standalone``, and its data."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass

from zoopt_nas.nas.networks import standalone
from zoopt_nas.nas.networks.genotype import CELL_KINDS, EDGES_PER_NODE, N_INPUTS, Genotype

_HEADER = '''"""A network found by zoopt-nas, in PyTorch: this file needs nothing else.

    import {module}
    model = {module}.{example}
    logits = model({images})  # (n, {in_channels}, {image_size}, {image_size}) to (n, {n_classes})

{description}
"""
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
    """What is needed to build a network and to feed it."""

    dataset: str  # of its training, or of its search
    genotype: Genotype
    n_classes: int
    class_names: tuple[str, ...] | None  # by label, if there are any
    in_channels: int
    image_size: int
    mean: tuple[float, ...]  # by channel, in 0..1; a network takes (pixels - mean) / std
    std: tuple[float, ...]
    init_channels: int
    n_cells: int
    reductions: tuple[int, ...]
    stem: str  # a class in networks.standalone
    epochs_trained: int  # 0 if there are no weights
    includes_normalization: bool  # whether the network takes pixels in 0..1

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON; the genotype in its published string form."""
        fields = {**vars(self), "genotype": str(self.genotype)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def source_of(facts: NetworkFacts, module: str) -> str:
    """Return the text of the Python file, to be imported by the name ``module``."""
    _, _, definitions = inspect.getsource(standalone).split('"""', 2)
    parts = [_constants(facts), _BUILD.format(stem=facts.stem).strip()]
    if facts.epochs_trained:
        parts.append(_load(facts.includes_normalization).strip())
    return _header(facts, module) + definitions + "\n\n" + "\n\n\n".join(parts) + "\n"


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

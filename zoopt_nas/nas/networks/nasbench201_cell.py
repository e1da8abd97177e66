"""The cells of NAS-Bench-201 (Dong and Yang, ICLR 2020) and their published form. Imports no torch.

Node 0 is the input and node 3 the output. Every node receives an edge from each node before it, and
every edge has one operation, which may be ``none``. There are 5^6 = 15,625 cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

N_NODES = 4
EDGES = tuple((source, node) for node in range(1, N_NODES) for source in range(node))
# The published order, which is that of alpha.
CELL_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_NAME = r"[\w.-]+"
# Cells of other spaces have more nodes, or a prefix.
_PATTERN = re.compile(
    r"(?<!\+)"
    + r"\+".join(
        r"\|" + "".join(rf"({_NAME})~{source}\|" for source in range(node))
        for node in range(1, N_NODES)
    )
    + r"(?!\+)"
)


def format_cell(operations: Sequence[str]) -> str:
    """Return the published string of the operations of the edges, in the order of ``EDGES``."""
    parts: dict[int, str] = {}
    for name, (source, node) in zip(operations, EDGES, strict=True):
        parts[node] = parts.get(node, "|") + f"{name}~{source}|"
    return "+".join(parts.values())


def last_cell(text: str) -> re.Match[str] | None:
    """Return the last published string in a text; its groups are the names of the operations."""
    matches = list(_PATTERN.finditer(text))
    return matches[-1] if matches else None


def whole_cell(text: str) -> tuple[str, ...] | None:
    """Return the names of the operations if the text is a published string and nothing else."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else match.groups()

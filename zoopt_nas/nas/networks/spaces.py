"""The registered search spaces, and their form in files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.networks.darts_space import DartsSpace, cell_edges
from zoopt_nas.nas.networks.nasbench201 import NasBench201Space
from zoopt_nas.nas.networks.space import SearchSpace
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.registry import Registry


def _uniform(name: str, *operations: str) -> DartsSpace:
    """Return a space with the same candidates on every edge of both cells."""
    cell = (operations,) * len(cell_edges())
    return DartsSpace(name, normal=cell, reduce=cell)


# The candidates of each edge of S1: two of the normal cell, two of the reduction cell.
_S1_EDGES = """
    skip_connect dil_conv_3x3  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_5x5  max_pool_3x3 dil_conv_3x3
    skip_connect dil_conv_5x5  max_pool_3x3 avg_pool_3x3
    skip_connect sep_conv_3x3  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    max_pool_3x3 skip_connect  max_pool_3x3 avg_pool_3x3
    skip_connect sep_conv_3x3  max_pool_3x3 sep_conv_3x3
    skip_connect sep_conv_3x3  skip_connect dil_conv_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    skip_connect sep_conv_3x3  max_pool_3x3 avg_pool_3x3
    max_pool_3x3 skip_connect  max_pool_3x3 avg_pool_3x3
    skip_connect dil_conv_3x3  skip_connect dil_conv_5x5
    dil_conv_3x3 dil_conv_5x5  skip_connect dil_conv_5x5
    dil_conv_3x3 dil_conv_5x5  skip_connect dil_conv_5x5
"""


def _s1() -> DartsSpace:
    rows = [line.split() for line in _S1_EDGES.strip().splitlines()]
    normal, reduce = (tuple(tuple(row[i : i + 2]) for row in rows) for i in (0, 2))
    return DartsSpace("s1", normal, reduce)


_DARTS_OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip

SPACES: Registry[SearchSpace] = Registry(
    "space",
    {
        "s1": _s1(),
        "s2": _uniform("s2", "skip_connect", "sep_conv_3x3"),
        "s3": _uniform("s3", "none", "skip_connect", "sep_conv_3x3"),
        "s4": _uniform("s4", "noise", "sep_conv_3x3"),
        "darts": _uniform("darts", *_DARTS_OPERATIONS),
        "darts_none": _uniform("darts_none", "none", *_DARTS_OPERATIONS),
        "nasbench201": NasBench201Space(),
    },
    group="zoopt_nas.spaces",
    check=lambda entry: isinstance(entry, SearchSpace),
)


def space_of(config: SearchConfig, space: SearchSpace | None = None) -> SearchSpace:
    """Return the space that a config names, or ``space``, with the config's meaning of alpha."""
    meaning = {
        "edge_normalization": config.edge_normalization,
        "relaxation": config.relaxation,
    }
    named: Any = space or SPACES[config.space]
    return cast(SearchSpace, dataclasses.replace(named, **meaning))


_TYPES: tuple[type[DartsSpace] | type[NasBench201Space], ...] = (DartsSpace, NasBench201Space)


def space_from_json(text: str) -> SearchSpace:
    """Read the result of ``SearchSpace.to_json``.

    Raises:
        InvalidValueError: The text is not JSON, or not a space.
        UnknownNameError: A candidate is not in ``OPERATIONS``.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"space is not valid JSON: {error}") from error
    known = {cls.__name__: cls for cls in _TYPES}
    kind = found.get("type") if isinstance(found, Mapping) else None
    if not isinstance(kind, str) or kind not in known:
        raise InvalidValueError(f"space must be of type {' or '.join(known)}, got {kind!r}")
    cls = known[kind]
    given: dict[str, Any] = {name: value for name, value in found.items() if name != "type"}
    names = [spec.name for spec in dataclasses.fields(cls)]
    if set(given) != set(names):
        raise InvalidValueError(f"space must have the fields type, {', '.join(names)}")
    return cls.from_fields(given)

"""``zoopt-nas list``: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from zoopt_nas import SOLVERS
from zoopt_nas.errors import UnknownNameError

from . import console
from .options import Json

Rows = dict[str, str]


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _solvers() -> Rows:
    return {name: _first_line(SOLVERS[name]) for name in SOLVERS}


def _spaces() -> Rows:
    from zoopt_nas import nas

    rows = {}
    for name in nas.SPACES:
        space = nas.SPACES[name]
        operations = dict.fromkeys(op for edge in space.normal + space.reduce for op in edge)
        rows[name] = f"{space.dim} alphas over {', '.join(operations)}"
    return rows


def _datasets() -> Rows:
    from zoopt_nas import nas

    rows = {}
    for name in nas.DATASETS:
        spec = nas.DATASETS[name]
        size = f"{spec.image_size}x{spec.image_size}x{spec.in_channels}"
        rows[name] = f"{spec.n_classes} classes, images of {size}"
    return rows


def _methods() -> Rows:
    from zoopt_nas import nas

    return {name: nas.METHODS[name].description for name in nas.METHODS}


_LISTS: dict[str, Callable[[], Rows]] = {
    "solvers": _solvers,
    "spaces": _spaces,
    "datasets": _datasets,
    "methods": _methods,
}


def list_names(
    what: Annotated[str, typer.Argument(help="solvers, spaces, datasets or methods.")],
    json: Json = False,
) -> None:
    """List the solvers, spaces, data sets or search methods that there are."""
    if what not in _LISTS:
        raise UnknownNameError("list", what, _LISTS)
    rows = _LISTS[what]()
    if json:
        console.say_json(rows)
    else:
        console.say_table(what, ["name", "description"], list(rows.items()))

"""``zoopt-nas list``: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from zoopt_nas import SOLVERS
from zoopt_nas.errors import EntryPointError, UnknownNameError

from . import console
from .options import Json

Rows = dict[str, str]


def _rows(names: Iterable[str], describe: Callable[[str], str]) -> Rows:
    """A line for each name; of an entry of another package that cannot be used, why."""
    rows = {}
    for name in names:
        try:
            rows[name] = describe(name)
        except EntryPointError as error:
            rows[name] = str(error)
    return rows


def _solvers() -> Rows:
    return _rows(SOLVERS, lambda name: (SOLVERS[name].__doc__ or name).strip().splitlines()[0])


def _spaces() -> Rows:
    from zoopt_nas import nas

    def describe(name: str) -> str:
        space = nas.SPACES[name]
        operations = dict.fromkeys(op for edge in space.normal + space.reduce for op in edge)
        return f"{space.dim} alphas over {', '.join(operations)}"

    return _rows(nas.SPACES, describe)


def _operations() -> Rows:
    from zoopt_nas import nas

    def describe(name: str) -> str:
        module = nas.OPERATIONS[name](16, 1, False)
        return f"{type(module).__name__}, {nas.count_parameters(module)} weights on 16 channels"

    return _rows(nas.OPERATIONS, describe)


def _datasets() -> Rows:
    from zoopt_nas import nas

    def describe(name: str) -> str:
        spec = nas.DATASETS[name]
        size = f"{spec.image_size}x{spec.image_size}x{spec.in_channels}"
        return f"{spec.n_classes} classes, images of {size}"

    return _rows(nas.DATASETS, describe)


def _methods() -> Rows:
    from zoopt_nas.nas.search.methods import METHODS, describe_method

    return _rows(METHODS, describe_method)


_LISTS: dict[str, Callable[[], Rows]] = {
    "solvers": _solvers,
    "spaces": _spaces,
    "operations": _operations,
    "datasets": _datasets,
    "methods": _methods,
}


def list_names(
    what: Annotated[str, typer.Argument(help="solvers, spaces, operations, datasets or methods.")],
    json: Json = False,
) -> None:
    """List the solvers, spaces, operations, data sets or search methods that there are."""
    if what not in _LISTS:
        raise UnknownNameError("list", what, _LISTS)
    rows = _LISTS[what]()
    if json:
        console.say_json(rows)
    else:
        console.say_table(what, ["name", "description"], list(rows.items()))

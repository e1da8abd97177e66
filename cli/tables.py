"""``zoopt-nas list``: lists the names to choose from."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from zoopt_nas import SOLVERS, nas
from zoopt_nas.errors import EntryPointError, UnknownNameError

from . import console
from .options import Json


def _solver(name: str) -> str:
    return (SOLVERS[name].__doc__ or name).strip().splitlines()[0]


def _space(name: str) -> str:
    space = nas.SPACES[name]
    operations = dict.fromkeys(
        name for kind in space.kinds for names in space.candidates(kind) for name in names
    )
    return f"{space.dim} alphas over {', '.join(operations)}"


def _operation(name: str) -> str:
    module = nas.OPERATIONS[name](16, 1, False)
    return f"{type(module).__name__}, {nas.count_parameters(module)} weights on 16 channels"


def _dataset(name: str) -> str:
    spec = nas.DATASETS[name]
    size = f"{spec.image_size}x{spec.image_size}x{spec.in_channels}"
    return f"{spec.n_classes} classes, images of {size}"


def _method(name: str) -> str:
    from zoopt_nas.nas.search.methods import describe_method

    return describe_method(name)


def _genotype(name: str) -> str:
    cells = []
    for graph in nas.GENOTYPES[name].cells.values():
        counts = Counter(operation for operation, _, _ in graph.edges)
        cells.append(", ".join(f"{n} {operation}" for operation, n in counts.most_common()))
    return "; ".join(cells)


_DESCRIBE = {
    "solvers": _solver,
    "spaces": _space,
    "operations": _operation,
    "datasets": _dataset,
    "methods": _method,
    "genotypes": _genotype,
}


def list_names(
    what: Annotated[
        str,
        typer.Argument(help="solvers, spaces, operations, datasets, methods or genotypes."),
    ],
    json: Json = False,
) -> None:
    """List the solvers, spaces, operations, data sets, methods or published genotypes."""
    if what not in _DESCRIBE:
        raise UnknownNameError("list", what, _DESCRIBE)
    rows = {}
    for name in SOLVERS if what == "solvers" else getattr(nas, what.upper()):
        try:
            rows[name] = _DESCRIBE[what](name)
        except EntryPointError as error:  # an entry of another package that cannot be used
            rows[name] = str(error)
    if json:
        console.say_json(rows)
    else:
        console.say_table(what, ["name", "description"], list(rows.items()))

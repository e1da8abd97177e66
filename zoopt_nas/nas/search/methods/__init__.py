"""The methods that update alpha, by name: solvers, gradient baselines, random baselines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

from zoopt_nas.errors import EntryPointError, UnknownNameError
from zoopt_nas.nas.search.methods.race import Race
from zoopt_nas.nas.search.updater import AlphaUpdater
from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater
from zoopt_nas.nas.settings.methods import BASELINES
from zoopt_nas.solvers import SOLVERS, Auto


class _Methods(Mapping[str, type[AlphaUpdater]]):
    """Every solver, run by ``ZeroOrderUpdater``, and every entry of ``BASELINES``.

    The exception is ``auto``, whose solvers compare values of different updates: it is ``Race``.
    """

    def __contains__(self, name: object) -> bool:
        return name in SOLVERS or name in BASELINES

    def __getitem__(self, name: str) -> type[AlphaUpdater]:
        if name not in self:
            raise UnknownNameError("method", name, self)
        if name in SOLVERS:
            if not BASELINES.is_built_in(name):
                return Race if SOLVERS[name] is Auto else ZeroOrderUpdater
            warnings.warn(
                f"{name} is the built-in baseline, not the solver {name} of another package; "
                "a search needs that solver under another name",
                stacklevel=2,
            )
        method = BASELINES[name]
        if not (isinstance(method, type) and issubclass(method, AlphaUpdater)):
            raise EntryPointError(f"method {name!r} must be an AlphaUpdater, got {method!r}")
        return method

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*SOLVERS, *BASELINES])

    def __len__(self) -> int:
        return len(SOLVERS.keys() | BASELINES.keys())


METHODS: Mapping[str, type[AlphaUpdater]] = _Methods()


def describe_method(name: str) -> str:
    """Return one line for lists: the kind of a method and what it does."""
    method = METHODS[name]
    if method is ZeroOrderUpdater:
        return f"{method.kind}: the solver {name} on alpha (paper, Alg. 1)"
    summary = (method.__doc__ or name).strip().splitlines()[0]
    return f"{method.kind}: {summary}"

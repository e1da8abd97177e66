"""``zoopt-nas diagnose``: shows how a method behaves, by epoch and at the end of its searches."""

from __future__ import annotations

import math
from typing import Annotated, Any

from zoopt_nas.diagnostics import ConditionNumber
from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.settings.config import SearchConfig
from zoopt_nas.nas.settings.paper_size import reductions_of_all

from . import console
from .options import Json, Pictures, Runs, let_threads_sleep, make_folder, option

_FORMS = {
    "n_effective": ("N_e", "{:.3f}"),
    "effective_ratio": ("R_e", "{:.3f}"),
    "selection_ratio": ("selection", "{:.3f}"),
    "eigenvalue": ("eigenvalue", "{:.4f}"),
    "skip_connections": ("skips", "{}"),
}

_Q = "Measure Q (Eq. 11) at the end of each run, over K directions."
_OMEGA = {"sgd": "inner steps (sgd)", "second": "one step (second)", "first": "first"}
_ABOUT_FLOOR = (
    "The floor is the Q of the noise of training alone. Q is above it from twice the floor on; "
    "a Q below that measures noise, not the slope of the loss."
)


def diagnose(
    runs: Runs,
    every: Annotated[
        int | None, option("Epochs between rows of the table.", shown="about ten rows a run")
    ] = None,
    condition_number: Annotated[int, option(_Q, shown="not measured", metavar="K")] = 0,
    radius: Annotated[
        list[float] | None,
        option("Norm of the perturbations of Q; may be repeated.", shown="0.001, 0.01, 0.1, 1"),
    ] = None,
    draws: Annotated[int, option("Draws of the inner batches that Q averages over.")] = 4,
    seed: Annotated[int, option("Seeds the directions.")] = 0,
    out: Pictures = None,
    json: Json = False,
) -> None:
    """Show N_e, R_e, selection, eigenvalue and skip connections by epoch (Fig. 4), and Q."""
    let_threads_sleep()
    from zoopt_nas import nas
    from zoopt_nas.nas.analyses import plots
    from zoopt_nas.nas.analyses.diagnose import RADII, epoch_curves, run_condition_numbers
    from zoopt_nas.nas.drawing import figures

    if every is not None and every < 1:
        raise InvalidValueError(f"every must be a positive integer, got {every}")
    names = console.short_names(runs)
    folders = {name: nas.RunFolder.open(run) for name, run in zip(names, runs, strict=True)}
    curves = {name: epoch_curves(folder) for name, folder in folders.items()}
    numbers = {}
    radii = tuple(radius or RADII)
    for name, folder in folders.items() if condition_number else ():
        numbers[name] = run_condition_numbers(
            folder, n_directions=condition_number, radii=radii, n_draws=draws, seed=seed
        )
    reduced = reductions_of_all([folder.config(SearchConfig)] for folder in folders.values())
    out = out or folders[names[0]].path / "pictures"
    make_folder(out)
    pictures = figures.save(plots.draw_diagnostics(curves, reduced), out / "diagnostics")
    if json:
        shown = {
            name: {"n_samples": there.n_samples, "epochs": there.epochs, **there.columns}
            for name, there in curves.items()
        }
        found = {
            "runs": shown,
            "condition_numbers": {
                name: {kind: list(map(_as_json, rows)) for kind, rows in kinds.items()}
                for name, kinds in numbers.items()
            },
        }
        console.say_json({**found, "reduced": reduced, "pictures": pictures})
        return
    header = ["run", "N", "epoch", *(title for title, _ in _FORMS.values())]
    rows = [row for name, there in curves.items() for row in _rows(name, there, every)]
    console.say_table("diagnostics by epoch", header, rows)
    if numbers:
        console.say_table(
            f"condition number Q, K = {condition_number}, {draws} draws, seed {seed}",
            ["run", "omega*", "radius", "Q", "standard error", "floor", "above the floor"],
            [row for name, kinds in numbers.items() for row in _q_rows(name, kinds)],
        )
        console.say(_ABOUT_FLOOR)
    console.say_reduced(reduced)
    console.say(*pictures)


def _rows(name: str, curves: Any, every: int | None) -> list[list[str]]:
    """Return a row for every k-th epoch of a run, and the last."""
    step = every or max(1, math.ceil(len(curves.epochs) / 10))
    rows = []
    for i, epoch in enumerate(curves.epochs):
        if epoch % step == 0 or i + 1 == len(curves.epochs):
            values = [(form, curves.columns[key][i]) for key, (_, form) in _FORMS.items()]
            cells = ["-" if value is None else form.format(value) for form, value in values]
            rows.append([name, str(curves.n_samples or "-"), str(epoch), *cells])
    return rows


def _q_rows(name: str, kinds: dict[str, list[ConditionNumber]]) -> list[list[str]]:
    """Return a row for every approximation of omega* and radius."""
    return [
        [
            *(name, _OMEGA[kind], f"{one.radius:g}", f"{one.value:.4g}"),
            "-" if math.isnan(one.standard_error) else f"{one.standard_error:.2g}",
            *(f"{one.floor:.2g}", "yes" if one.is_above_floor else "no"),
        ]
        for kind, numbers in kinds.items()
        for one in numbers
    ]


def _as_json(one: ConditionNumber) -> dict[str, Any]:
    return {**one._asdict(), "is_above_floor": one.is_above_floor}

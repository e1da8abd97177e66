"""``zoopt-nas minimize``: minimizes a function of a Python module."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json as json_format
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import zoopt_nas
from zoopt_nas import Status
from zoopt_nas._minimize import MAXFEV_PER_DIM
from zoopt_nas.errors import InvalidValueError, RunInterrupted, UnknownNameError, ZooptNasError
from zoopt_nas.nas.settings.setting import WHAT

from . import console
from .options import Json, option, parse_pairs

_STOP, _EVALUATIONS = "When to stop", "Evaluations"
_DEFAULT_METHOD = inspect.signature(zoopt_nas.minimize).parameters["method"].default
_FUNCTION = "Takes a point (dim,) and returns a number. The current folder is searched first."
_FIELDS = ("x", "fun", "x_iterate", "fun_iterate", "nfev", "nit", "n_failed", "success")
_X_SCALE = "Typical step size: one number for all, or one each: 1000,1e-3."
_MAXFEV = f"{MAXFEV_PER_DIM} per coordinate, if there is no other limit"
_ON_ERROR = "At an exception: raise it, or fail that point only."
_FAILED = 1  # the function raised, or never returned a finite value
_SHORT_LIST = 20  # names that fit on a line

Value = Callable[[str], Any]


def minimize(
    function: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help=_FUNCTION)],
    x0: Annotated[str, option("The start: 1,-2.5 or 0*10 (ten zeros) or @list.json.", WHAT)],
    algo: Annotated[
        str | None, option("Solver; see zoopt-nas list solvers.", WHAT, str(_DEFAULT_METHOD))
    ] = None,
    solver_option: Annotated[
        list[str] | None,
        option("NAME=VALUE of the solver; may be repeated.", WHAT, False, flag="--option"),
    ] = None,
    bounds: Annotated[
        str | None, option("LOW:HIGH for all coordinates, or one each: 0:1,-5:,:2*8.", WHAT)
    ] = None,
    x_scale: Annotated[str | None, option(_X_SCALE, WHAT, "from the bounds and x0")] = None,
    seed: Annotated[int | None, option("Seeds the solver.", WHAT, "from the system", min=0)] = None,
    json: Json = False,
    maxfev: Annotated[int | None, option("Evaluations.", _STOP, _MAXFEV)] = None,
    maxiter: Annotated[int | None, option("Iterations.", _STOP)] = None,
    maxtime: Annotated[float | None, option("Seconds.", _STOP)] = None,
    maxstall: Annotated[int | None, option("Evaluations without a better value.", _STOP)] = None,
    target: Annotated[float | None, option("A value that is good enough.", _STOP)] = None,
    workers: Annotated[int, option("Processes; -1: one for each core.", _EVALUATIONS)] = 1,
    timeout: Annotated[
        float | None, option("Seconds after which an evaluation has failed.", _EVALUATIONS)
    ] = None,
    vectorized: Annotated[
        bool,
        option("FUNCTION takes (n, dim) and returns (n,).", _EVALUATIONS, flag="--vectorized"),
    ] = False,
    on_error: Annotated[
        str | None, option(_ON_ERROR, _EVALUATIONS, "raise; with workers: fail")
    ] = None,
    noisy: Annotated[
        bool,
        option("The value of a point differs from call to call.", _EVALUATIONS, flag="--noisy"),
    ] = False,
    checkpoint: Annotated[
        Path | None, option("File that saves the run and resumes it.", _EVALUATIONS)
    ] = None,
) -> int:
    """Minimize a function of a Python module; Ctrl-C ends it with the best point so far."""
    arguments: dict[str, Any] = {
        "x0": _numbers(x0),
        "bounds": None if bounds is None else _bounds(bounds),
        "x_scale": None if x_scale is None else _x_scale(x_scale),
        "options": parse_pairs(solver_option or [], "--option"),
        "maxfev": maxfev, "maxiter": maxiter, "maxtime": maxtime, "maxstall": maxstall,
        "target": target, "rng": seed, "noisy": noisy, "workers": workers, "timeout": timeout,
        "on_error": on_error, "vectorized": vectorized, "checkpoint": checkpoint,
    }  # fmt: skip
    if algo is not None:
        arguments["method"] = algo
    how = "" if checkpoint is None else "; run the same command to continue"

    # With --json, stdout is for the result: what the user's code prints goes to stderr.
    stdout = contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()
    with _current_folder_first(), stdout:
        result, raised = _run(_find(function), progress=not json, **arguments)
    if isinstance(raised, KeyboardInterrupt) or result.get("status") == Status.CALLBACK:
        _show(result, json, "INTERRUPTED", "The run was interrupted.")
        raise RunInterrupted(f"interrupted after {result.nfev} evaluations{how}")
    if raised is not None:
        message = _what(raised, function)
        _show(result, json, "ERROR", message)
        if isinstance(raised, ZooptNasError):
            raise raised
        return console.fail(message, _FAILED)
    _show(result, json, result.status.name, result.message)
    return 0 if result.status != Status.NO_FINITE_VALUE else _FAILED


def _run(fun: Callable[..., Any], **arguments: Any) -> tuple[Any, BaseException | None]:
    """Minimize; return the result, or the partial result and the exception that was raised.

    The first Ctrl-C ends the run after its iteration.

    Raises:
        ZooptNasError: an argument is wrong; no evaluation was made.
    """
    with console.stop_on_signals() as flag:

        def callback(intermediate_result: Any) -> None:
            if flag.raised:
                raise StopIteration

        try:
            return zoopt_nas.minimize(fun, callback=callback, **arguments), None
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if not hasattr(error, "partial_result"):
                raise
            return error.partial_result, error


def _show(result: Any, json: bool, status: str, message: str) -> None:
    """Print a result, complete or partial; JSON always has the same keys."""
    fields = {name: result.get(name) for name in _FIELDS}
    fields["success"] = bool(fields["success"])
    if json:
        for name in ("x", "x_iterate"):
            fields[name] = fields[name].tolist()
        console.say_json({**fields, "status": status, "message": message})
        return
    if status == "ERROR" and result.nfev == 0:
        return
    console.say("x: " + ",".join(map(repr, result.x.tolist())))  # in the format of --x0
    console.say(f"fun: {result.fun!r}")
    failed = f", {result.n_failed} of them failed" if result.get("n_failed") else ""
    console.say(f"nfev: {result.nfev}{failed}")
    if status != "ERROR":
        console.say(message)


def _what(error: BaseException, function: str) -> str:
    """Return one line on what the user's code raised, and where."""
    text = f"{function} raised {type(error).__name__}"
    if str(error):
        text += ": " + " ".join(str(error).split())
    file = getattr(sys.modules.get(function.partition(":")[0]), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f"{text} ({Path(str(file)).name}, line {lines[-1]})" if lines else text


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Search modules in the current folder first, as ``python -m`` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _find(function: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` or ``module:object.method`` names."""
    module, _, path = function.partition(":")
    if not module or not path:
        raise InvalidValueError(f"FUNCTION must read MODULE:FUNCTION, got {function!r}")
    found, where = _import(module), module
    for name in path.split("."):
        if not hasattr(found, name):
            raise _unknown(name, found, where)
        found, where = getattr(found, name), f"{where}.{name}"
    if not callable(found):
        raise InvalidValueError(f"{function} must be a function, got {type(found).__name__}")
    fun: Callable[..., Any] = found
    return fun


def _unknown(name: str, owner: Any, where: str) -> ZooptNasError:
    """Return the error that lists what ``owner`` has instead, unless the list is long."""
    members = [found for found, _ in inspect.getmembers_static(owner, callable)]
    public = [found for found in members if not found.startswith("_")]
    if difflib.get_close_matches(name, public) or 0 < len(public) <= _SHORT_LIST:
        return UnknownNameError(f"function of {where}", name, public)
    return InvalidValueError(f"{where} has no function {name!r}")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            hint = "; leave out .py" if module.endswith(".py") else ""
            raise InvalidValueError(
                f"no module {module!r} in the current folder or among the installed{hint}"
            ) from error
        text = f"cannot import {module}: {type(error).__name__}: {error}"
        raise InvalidValueError(text) from error


def _numbers(text: str) -> list[float]:
    """Parse ``1,-2``, ``0*10`` or ``@file.json`` as a list of numbers."""
    if not text.startswith("@"):
        return _entries("--x0", text, float, "numbers such as 1,-2.5 or 0*10, or @file.json")
    try:
        numbers = json_format.loads(Path(text[1:]).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(f"cannot read --x0 {text}: {error.strerror}") from error
    except ValueError as error:  # no text, or no JSON
        raise InvalidValueError(f"cannot read --x0 {text}: it is not JSON") from error
    is_list = isinstance(numbers, list) and len(numbers) > 0
    if not is_list or not all(type(number) in (int, float) for number in numbers):
        raise InvalidValueError(f"--x0 {text} must hold a list of numbers")
    return [float(number) for number in numbers]


def _x_scale(text: str) -> float | list[float]:
    """Parse ``0.5`` (all coordinates) or ``1000,1e-3*2`` (one each)."""
    steps = _entries("--x-scale", text, float, "numbers such as 0.5 or 1000,1e-3*2")
    return steps if _is_one_each(text) else steps[0]


def _bounds(text: str) -> Any:
    """Parse ``-5:5`` (all coordinates) or ``0:1,:3*2`` (one each)."""
    pairs = _entries("--bounds", text, _pair, "LOW:HIGH, such as -5:5, or 0:1,-5:,:2*8")
    return pairs if _is_one_each(text) else zoopt_nas.Box(*pairs[0])


def _is_one_each(text: str) -> bool:
    return "," in text or "*" in text


def _pair(text: str) -> tuple[float | None, float | None]:
    low, colon, high = text.partition(":")
    if not colon:
        raise ValueError
    return float(low) if low.strip() else None, float(high) if high.strip() else None


def _entries(flag: str, text: str, value: Value, rule: str) -> list[Any]:
    """Parse the entries between commas; ``entry*n`` repeats one n times."""
    entries: list[Any] = []
    try:
        for part in text.split(","):
            entry, times, count = part.partition("*")
            entries += [value(entry)] * (int(count) if times else 1)
    except ValueError:
        entries = []
    if not entries:
        raise InvalidValueError(f"{flag} must be {rule}, got {text!r}")
    return entries

"""``zoopt-nas minimize``: what it runs, prints and refuses, and how it is interrupted."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys

import numpy as np
import pytest

import zoopt_nas

FUNCTIONS = """
import functools, math, os, signal, sys

LIMIT = 3

def bowl(x): return float(((x - 1) ** 2).sum())

def many(points): return ((points - 1) ** 2).sum(axis=1)

class Model:
    loss = staticmethod(bowl)

class Counter:
    def __init__(self, n, action):
        self.n, self.action, self.calls = n, action, 0
    def __call__(self, x):
        self.calls += 1
        if self.calls == self.n:
            self.action()
        return bowl(x)

def fail():
    raise ValueError("a [red] wall\\nahead")

def interrupt(): os.kill(os.getpid(), signal.SIGINT)

def terminate(): os.kill(os.getpid(), signal.SIGTERM)

failing = Counter(8, fail)
leaving = Counter(8, lambda: sys.exit("bye"))
interrupting = Counter(8, interrupt)
insisting = Counter(8, lambda: (interrupt(), interrupt()))

def left(action, x):
    if x[0] < 0:
        action()
    return bowl(x)

fails_left = functools.partial(left, fail)
interrupted_left = functools.partial(left, interrupt)
terminated_left = functools.partial(left, terminate)

def talking(x):
    print("to stdout")
    return bowl(x)

def nan(x): return math.nan

def word(x): return "low"
"""
SOURCE_LINES = FUNCTIONS.splitlines()
BROKEN = {
    "raising.py": "1 / 0\n",
    "unfinished.py": "def f(\n",
    "needy.py": "import no_such_package\n",
    "leaving_early.py": "raise SystemExit(3)\n",
}
FORKS = multiprocessing.get_context().get_start_method() == "fork"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with modules to import."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    files = {"functions_of_mine.py": FUNCTIONS, **BROKEN}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "start.json").write_text("[0.5, -1]")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "words.json").write_text('["a", true]')
    (tmp_path / "text.txt").write_text("0.5,")
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def mini(cli):
    """``mini("bowl", "--x0", 1)`` minimizes a function of the module above, from seed 0."""

    def call(name: str, *arguments: object):
        seed = () if "--seed" in arguments else ("--seed", 0)
        return cli("minimize", f"functions_of_mine:{name}", *arguments, *seed)

    return call


def bowl(x):
    return float(((x - 1) ** 2).sum())


def parsed(line: str) -> dict:
    """A line of strict JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def line_of(code: str) -> int:
    return SOURCE_LINES.index(code) + 1


def test_the_result_is_that_of_the_library_as_text(mini):
    result = mini("bowl", "--x0", "3,-2", "--algo", "gld", "--maxfev", 200, "--seed", 4)
    assert (result.code, result.err) == (0, "")
    expected = zoopt_nas.minimize(bowl, [3.0, -2.0], "gld", maxfev=200, rng=4)
    x, fun, nfev, message = result.out.splitlines()
    assert [float(part) for part in x.removeprefix("x: ").split(",")] == expected.x.tolist()
    assert fun == f"fun: {expected.fun!r}"
    assert nfev == "nfev: 200"
    assert message == expected.message
    again = mini("bowl", "--x0", x.removeprefix("x: "), "--maxiter", 1)  # x is a start
    assert again.code == 0


def test_the_result_as_json(mini):
    result = mini("bowl", "--x0", "3,-2", "--algo", "rs", "--maxfev", 100, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    expected = zoopt_nas.minimize(bowl, [3.0, -2.0], "rs", maxfev=100, rng=0)
    assert parsed(result.out) == {
        "x": expected.x.tolist(),
        "fun": expected.fun,
        "x_iterate": expected.x_iterate.tolist(),
        "fun_iterate": expected.fun_iterate,
        "nfev": 100,
        "nit": expected.nit,
        "n_failed": 0,
        "success": True,
        "status": "MAXFEV",
        "message": expected.message,
    }


def test_method_and_budget_are_the_defaults_of_the_library(mini):
    result = parsed(mini("bowl", "--x0", "3,-2", "--json").out)
    expected = zoopt_nas.minimize(bowl, [3.0, -2.0], rng=0)
    assert (result["fun"], result["nfev"]) == (expected.fun, expected.nfev)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("2", [2.0]),
        ("-1,2.5", [-1.0, 2.5]),
        ("0*3,1e1", [0, 0, 0, 10]),
        ("1, -2", [1, -2]),
        ("@start.json", [0.5, -1]),
    ],
)
def test_how_a_start_is_written(text, point, mini):
    result = parsed(mini("bowl", "--x0", text, "--algo", "gld", "--maxfev", 1, "--json").out)
    assert (result["x"], result["fun"]) == (point, bowl(np.array(point)))


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("-2:0.5", [(-2, 0.5)] * 3),
        (":0.5", [(None, 0.5)] * 3),
        ("-1:", [(-1, None)] * 3),
        ("0:0.5,-1:,:", [(0, 0.5), (-1, None), (None, None)]),
        ("-1:1*2,0:0", [(-1, 1), (-1, 1), (0, 0)]),
    ],
)
def test_how_bounds_are_written(text, bounds, mini):
    limits = ("--algo", "gld", "--maxfev", 200)
    result = parsed(mini("bowl", "--x0", "0*3", "--bounds", text, *limits, "--json").out)
    expected = zoopt_nas.minimize(bowl, [0.0] * 3, "gld", bounds=bounds, maxfev=200, rng=0)
    assert result["x"] == expected.x.tolist()


@pytest.mark.parametrize(
    ("text", "x_scale"), [("8", 8.0), ("8,0.25,1", [8, 0.25, 1]), ("8*2,1", [8, 8, 1])]
)
def test_how_units_are_written(text, x_scale, mini):
    limits = ("--algo", "gld", "--maxfev", 100)
    result = parsed(mini("bowl", "--x0", "0*3", "--x-scale", text, *limits, "--json").out)
    expected = zoopt_nas.minimize(bowl, [0.0] * 3, "gld", x_scale=x_scale, maxfev=100, rng=0)
    assert result["x"] == expected.x.tolist()


def test_options_of_the_solver_and_limits(mini):
    options = ("--option", "max_radius=0.5", "--option", "deterministic=true")
    limits = ("--target", 0.05, "--maxfev", 500)
    result = parsed(
        mini("bowl", "--x0", "3,-2", "--algo", "adaptive_gld", *options, *limits, "--json").out
    )
    solver = zoopt_nas.AdaptiveGLD(max_radius=0.5, deterministic=True)
    expected = zoopt_nas.minimize(bowl, [3.0, -2.0], solver, target=0.05, maxfev=500, rng=0)
    assert (result["status"], result["success"]) == ("TARGET_REACHED", True)
    assert (result["fun"], result["nfev"]) == (expected.fun, expected.nfev)
    maxiter = parsed(mini("bowl", "--x0", "3", "--maxiter", 2, "--json").out)
    assert (maxiter["status"], maxiter["nit"]) == ("MAXITER", 2)
    assert parsed(mini("bowl", "--x0", 3, "--maxtime", 0.05, "--json").out)["status"] == "MAXTIME"


@pytest.mark.parametrize(
    ("name", "more"),
    [("many", ["--vectorized"]), ("Model.loss", []), ("bowl", ["--workers", 2])],
)
def test_kinds_of_functions_and_workers_change_no_number(name, more, mini):
    limits = ("--x0", "3,-2", "--algo", "gld", "--maxfev", 60, "--json")
    assert parsed(mini(name, *limits, *more).out) == parsed(mini("bowl", *limits).out)


def test_any_installed_module_will_do(cli):
    result = cli("minimize", "scipy.optimize:rosen", "--x0", "0*2", "--maxfev", 50, "--json")
    assert (result.code, parsed(result.out)["nfev"]) == (0, 50)


def test_a_checkpoint_is_gone_on_with(mini, folder):
    run = ("--x0", "3,-2", "--algo", "gld", "--checkpoint", "run.npz", "--json")
    mini("bowl", *run, "--maxiter", 3)
    assert (folder / "run.npz").is_file()
    whole = parsed(mini("bowl", *run, "--maxiter", 8).out)
    assert whole == parsed(mini("bowl", *run[:-3], "--json", "--maxiter", 8).out)


def test_what_the_function_prints_goes_to_stderr_beside_json(mini):
    limits = ("--x0", 3, "--maxfev", 2)
    result = mini("talking", *limits, "--json")
    assert (parsed(result.out)["nfev"], result.err) == (2, "to stdout\n" * 2)
    result = mini("talking", *limits)
    assert result.out.startswith("to stdout\nto stdout\nx: ")


def test_a_function_without_finite_values_is_an_error(mini):
    result = mini("nan", "--x0", 3, "--maxfev", 4)
    assert (result.code, result.err) == (1, "")
    assert "fun: inf\nnfev: 4, 4 of them failed\nThe function returned no finite" in result.out
    result = mini("nan", "--x0", 3, "--maxfev", 4, "--json")
    values = parsed(result.out)
    assert (result.code, values["fun"], values["fun_iterate"]) == (1, None, None)
    assert (values["status"], values["success"]) == ("NO_FINITE_VALUE", False)


def test_an_exception_of_the_function_is_one_line_beside_the_best_point(mini):
    limits = ("--x0", "3,-2", "--algo", "gld")
    result = mini("failing", *limits)
    line = line_of('    raise ValueError("a [red] wall\\nahead")')
    message = (
        "functions_of_mine:failing raised ValueError: a [red] wall ahead "
        f"(functions_of_mine.py, line {line})"
    )
    assert (result.code, result.err) == (1, f"error: {message}\n")
    x, fun, nfev = result.out.splitlines()
    best = [float(part) for part in x.removeprefix("x: ").split(",")]
    assert fun == f"fun: {bowl(np.array(best))!r}"
    assert nfev == "nfev: 7"

    del sys.modules["functions_of_mine"]
    result = mini("failing", *limits, "--json")
    values = parsed(result.out)
    assert (result.code, result.err) == (1, f"error: {message}\n")
    assert (values["x"], values["nfev"], values["n_failed"]) == (best, 7, None)
    assert (values["status"], values["message"], values["success"]) == ("ERROR", message, False)


def test_an_exit_of_the_function_is_an_exception_too(mini):
    result = mini("leaving", "--x0", "3,-2")
    assert result.code == 1
    assert result.err.startswith("error: functions_of_mine:leaving raised SystemExit: bye (")


def test_exceptions_cost_the_point_where_they_shall(mini):
    limits = ("--x0", "0.1,-2", "--algo", "gld", "--maxfev", 50)
    assert mini("fails_left", *limits).code == 1
    result = mini("fails_left", *limits, "--on-error", "fail")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"^nfev: 50, \d+ of them failed$", result.out, re.MULTILINE)


def test_ctrl_c_ends_the_run_after_its_iteration(mini, folder):
    start = ("--x0", "3,-2", "--algo", "gld", "--option", "schedule=search")
    result = mini("interrupting", *start)
    lines = result.err.splitlines()
    assert lines[0] == "stopping after this step; press Ctrl-C again to stop at once"
    (nfev,) = re.findall(r"^nfev: (\d+)$", result.out, re.MULTILINE)
    assert lines[1:] == [f"error: interrupted after {nfev} evaluations"]
    assert result.code == 130
    assert result.out.startswith("x: ")
    assert result.out.endswith("\nThe run was interrupted.\n")
    whole = zoopt_nas.minimize(
        bowl, [3.0, -2.0], zoopt_nas.GLD(schedule="search"), maxiter=1, rng=0
    )
    assert int(nfev) == whole.nfev

    del sys.modules["functions_of_mine"]
    result = mini("interrupting", *start, "--checkpoint", "run.npz", "--json")
    assert result.code == 130
    assert parsed(result.out)["status"] == "INTERRUPTED"
    assert parsed(result.out)["fun"] == whole.fun
    assert result.err.endswith("evaluations; run the same command to continue\n")
    assert (folder / "run.npz").is_file()


def test_a_second_ctrl_c_stops_at_once(mini):
    result = mini("insisting", "--x0", "3,-2", "--algo", "gld")
    assert result.code == 130
    assert result.err.endswith("error: interrupted after 7 evaluations\n")
    assert "nfev: 7\n" in result.out


@pytest.mark.skipif(not FORKS, reason="other processes do not inherit the handlers")
def test_signals_to_workers(mini):
    """Ctrl-C reaches them as well, but is for their parent; SIGTERM must still end them."""
    limits = ("--x0", "0.1,-2", "--algo", "gld", "--maxfev", 40, "--json")
    expected = parsed(mini("bowl", *limits).out)
    result = mini("interrupted_left", *limits, "--workers", 2)
    assert (result.code, result.err, parsed(result.out)) == (0, "", expected)
    result = mini("terminated_left", *limits, "--workers", 1, "--timeout", 60)
    assert (result.code, result.err) == (0, "")
    assert parsed(result.out)["n_failed"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("minimize", "Missing argument"),
        ("minimize M:bowl", "Missing option '--x0'"),
        ("minimize bowl --x0 1", "FUNCTION must read MODULE:FUNCTION, got 'bowl'"),
        ("minimize nowhere:f --x0 1", "no module 'nowhere' in the current folder"),
        ("minimize M.deeper:f --x0 1", "no module 'functions_of_mine.deeper' in the current"),
        ("minimize M.py:bowl --x0 1", "among the installed; leave out .py"),
        ("minimize M:bowel --x0 1", "unknown function of functions_of_mine 'bowel'; did you mean"),
        ("minimize M:Model.los --x0 1", "functions_of_mine.Model 'los'; did you mean 'loss'?"),
        ("minimize numpy:no_such_name --x0 1", "numpy has no function 'no_such_name'"),
        ("minimize M:LIMIT --x0 1", "functions_of_mine:LIMIT must be a function, got int"),
        ("minimize raising:f --x0 1", "cannot import raising: ZeroDivisionError: division"),
        ("minimize unfinished:f --x0 1", "cannot import unfinished: SyntaxError: "),
        ("minimize needy:f --x0 1", "No module named 'no_such_package'"),
        ("minimize leaving_early:f --x0 1", "cannot import leaving_early: SystemExit: 3"),
        ("minimize M:bowl --x0 one", "--x0 must be numbers such as 1,-2.5 or 0*10"),
        ("minimize M:bowl --x0 1,,2", "got '1,,2'"),
        ("minimize M:bowl --x0 1*0", "got '1*0'"),
        ("minimize M:bowl --x0 nan", "x0 must be finite, got [nan]"),
        ("minimize M:bowl --x0 @none.json", "cannot read --x0 @none.json: No such file"),
        ("minimize M:bowl --x0 @text.txt", "cannot read --x0 @text.txt: it is not JSON"),
        ("minimize M:bowl --x0 @empty.json", "--x0 @empty.json must hold a list of numbers"),
        ("minimize M:bowl --x0 @words.json", "--x0 @words.json must hold a list of numbers"),
        ("minimize M:bowl --x0 1 --bounds 2", "--bounds must be LOW:HIGH, such as -5:5"),
        ("minimize M:bowl --x0 1 --bounds a:b", "--bounds must be LOW:HIGH, such as -5:5"),
        ("minimize M:bowl --x0 1 --bounds 2:3", "x0[0] must be at least its lower bound 2.0"),
        ("minimize M:bowl --x0 1 --x-scale a", "--x-scale must be numbers such as 0.5 or 1000"),
        ("minimize M:bowl --x0 1 --x-scale 0", "x_scale must be positive finite numbers"),
        ("minimize M:bowl --x0 1 --algo gdl", "unknown solver 'gdl'; did you mean 'gld'?"),
        ("minimize M:bowl --x0 1 --option sigma", "--option must read NAME=VALUE, got sigma"),
        ("minimize M:bowl --x0 1 --algo mgs --option sigm=1", "did you mean 'sigma'?"),
        ("minimize M:bowl --x0 1 --maxfev 0", "maxfev must be a positive integer, got 0"),
        ("minimize M:bowl --x0 1 --seed -1", "Invalid value for '--seed'"),
        ("minimize M:bowl --x0 1 --workers 0", "workers must be a positive integer, -1"),
        ("minimize M:bowl --x0 1 --on-error skip", "on_error must be one of raise, fail"),
        ("minimize M:word --x0 1", "the value of fun must be a real number, got 'low'"),
        ("minimize M:bowl --x0 1 --checkpoint text.txt", "text.txt"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, refused):
    words = arguments.split()
    words[1:2] = [re.sub(r"^M\b", "functions_of_mine", word) for word in words[1:2]]
    assert message in refused(*words)

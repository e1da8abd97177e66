"""The package of docs/extending.md, built, installed and used like one from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"
# A block of code whose first line names the file that it is.
_FILE = re.compile(r"^```\w+\n# ([\w./-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(*command: object, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder of the package, as the page has it."""
    folder = tmp_path_factory.mktemp("zoopt-nas-es")
    files = dict(_FILE.findall(EXTENDING.read_text(encoding="utf-8")))
    assert {"pyproject.toml", "src/zoopt_nas_es/__init__.py", "tests/test_es.py"} <= files.keys()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(package, tmp_path_factory) -> Path:
    """Where pip has installed it, without a network."""
    target = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    done = run(
        *(sys.executable, "-m", "pip", "install", *offline, "--target", target, package),
        site=target,
        cwd=package,
    )
    assert done.returncode == 0, done.stderr
    assert list(target.glob("zoopt_nas_es-*.dist-info/entry_points.txt"))
    return target


def command_line(*arguments: object, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    main = "from zoopt_nas_cli.main import main; main()"
    return run(sys.executable, "-c", main, *arguments, site=site, cwd=cwd)


@pytest.mark.slow
def test_minimize_knows_the_name_and_its_options(site, tmp_path):
    code = """
import zoopt_nas
assert list(zoopt_nas.SOLVERS)[-1] == "evolution"
def fun(x): return float((x**2).sum())
result = zoopt_nas.minimize(
    fun, [1.0, -2.0], method="evolution", maxfev=400, rng=0, options={"n_samples": 6}
)
assert type(zoopt_nas.SOLVERS["evolution"]()).__module__ == "zoopt_nas_es"
assert (result.nfev, result.fun < 0.1) == (400, True), result
try:
    zoopt_nas.minimize(fun, [1.0], method="evolution", options={"n_sample": 6})
except zoopt_nas.UnknownNameError as error:
    print(error)
"""
    done = run(sys.executable, "-c", code, site=site, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "unknown option of evolution 'n_sample'; did you mean 'n_samples'?\n"


@pytest.mark.slow
def test_the_command_line_lists_it_and_minimizes_with_it(site, tmp_path):
    done = command_line("list", "solvers", "--json", site=site, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    assert listed["evolution"].startswith("Evolution strategy (1 + n): ")
    assert {"quasi_newton", "adaptive_mgs", "adaptive_gld"} <= listed.keys()

    (tmp_path / "bowl.py").write_text("def fun(x):\n    return float((x**2).sum())\n")
    limits = ("--maxfev", 200, "--seed", 0, "--option", "step=0.5", "--json")
    done = command_line(
        "minimize",
        "bowl:fun",
        "--x0",
        "1,-2",
        "--algo",
        "evolution",
        *limits,
        site=site,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["fun"] < 0.1  # 5 at the start


@pytest.mark.slow
def test_a_search_runs_with_it(site, tmp_path):
    pytest.importorskip("torchvision")
    tiny = (
        "--n-train",
        32,
        "--epochs",
        1,
        "--warmup-epochs",
        0,
        "--init-channels",
        2,
        "--n-cells",
        1,
    )
    few = ("--batch-size", 16, "--inner-steps", 1, "--n-samples", 1, "--device", "cpu")
    done = command_line(
        *("search", "--dataset", "digits", "--algo", "evolution", *tiny, *few, "--run-dir", "run"),
        "--json",
        site=site,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["genotype"]["normal"]) == 8
    config = (tmp_path / "run" / "config.toml").read_text()
    assert 'algo = "evolution"' in config
    assert "n_samples = 1" in config


@pytest.mark.slow
def test_its_own_tests_pass(site, package):
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "error")
    done = run(sys.executable, "-m", "pytest", *options, "tests", site=site, cwd=package)
    assert done.returncode == 0, done.stdout
    n_passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert n_passed > 20

"""`import zoopt_nas` is light, and so is a run on NumPy arrays."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "matplotlib", "typer", "pytest", "hypothesis")


def loaded_after(code, names):
    script = f"{code}\nimport sys\nprint([n for n in {list(names)!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    assert loaded_after("import zoopt_nas", [*HEAVY, "scipy.optimize"]) == "[]"


def test_minimize_on_numpy_never_loads_torch():
    code = "import zoopt_nas\nzoopt_nas.minimize(lambda x: x @ x, [1.0, 2.0], maxfev=50)"
    assert loaded_after(code, HEAVY) == "[]"


def test_the_check_above_can_fail():
    assert loaded_after("import scipy.optimize", ["scipy.optimize"]) == "['scipy.optimize']"


def test_every_public_name_exists():
    import zoopt_nas

    assert sorted(zoopt_nas.__all__) == sorted(set(zoopt_nas.__all__))
    assert all(hasattr(zoopt_nas, name) for name in zoopt_nas.__all__)


def test_version_is_that_of_the_package():
    from importlib.metadata import PackageNotFoundError, version

    import zoopt_nas

    try:
        installed = version("zoopt-nas")
    except PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert zoopt_nas.__version__ == installed

"""What a function may return: every form of a real number, and what counts as failed."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from zoopt_nas import SOLVERS, InvalidValueError, Status, minimize
from zoopt_nas._arrays import to_numpy
from zoopt_nas._calls import as_float, as_values

torch = pytest.importorskip("torch")

NUMBERS = {
    "int": (3, 3.0),
    "bool": (True, 1.0),
    "large int": (10**20, 1e20),
    "Decimal": (Decimal("2.5"), 2.5),
    "Fraction": (Fraction(5, 2), 2.5),
    "float32": (np.float32(2.5), 2.5),
    "longdouble": (np.longdouble(2.5), 2.5),
    "int64": (np.int64(-3), -3.0),
    "bool_": (np.bool_(True), 1.0),
    "0-d": (np.array(2.5), 2.5),
    "1-d": (np.array([2.5]), 2.5),
    "2-d": (np.array([[2.5]]), 2.5),
    "list": ([2.5], 2.5),
    "object": (np.array(Decimal("2.5")), 2.5),
    "objects": (np.array([Fraction(5, 2)]), 2.5),
    "masked array": (np.ma.array([2.5], mask=[False]), 2.5),
    "torch": (torch.tensor(2.5), 2.5),
    "torch 1-d": (torch.tensor([2.5], requires_grad=True), 2.5),
    "bfloat16": (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
    "torch int": (torch.tensor(3), 3.0),
}
FAILED = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "huge int": 10**400,
    "huge negative int": -(10**400),
    "huge Fraction": Fraction(10**400),
    "huge Decimal": Decimal("1e400"),
    "Decimal nan": Decimal("nan"),
    "Decimal snan": Decimal("snan"),
    "masked": np.ma.masked,
    "masked 0-d": np.ma.array(1.0, mask=True),
    "masked 1-d": np.ma.array([1.0], mask=[True]),
    "masked int": np.ma.array([1], mask=[True]),
    "torch nan": torch.tensor(math.nan),
    "float16 inf": np.float16(np.inf),
}
NO_NUMBERS = {
    "None": None,
    "str": "1.0",
    "bytes": b"1.0",
    "complex": 1 + 0j,
    "complex64": np.complex64(1),
    "complex array": np.array([1j]),
    "two": [1.0, 2.0],
    "empty": [],
    "ragged": [[1.0], [1.0, 2.0]],
    "dict": {},
    "time": np.timedelta64(1, "s"),
    "None in an array": np.array(None),
    "tensor of two": torch.ones(2),
    "complex tensor": torch.tensor(1j),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_real_number_in_any_form(name):
    returned, number = NUMBERS[name]
    assert as_float("x", returned) == number
    result = minimize(lambda x: returned, [1.0, 2.0], "adaptive_gld", maxfev=5, rng=0)
    assert (result.fun, result.n_failed) == (number, 0)


@pytest.mark.parametrize("name", FAILED)
def test_no_finite_number_has_failed(name):
    def fun(x):
        return float((x**2).sum()) if x[0] > 0.9 else FAILED[name]

    expected = minimize(
        lambda x: float((x**2).sum()) if x[0] > 0.9 else math.nan, [1.0, 2.0], "adaptive_gld",
        maxfev=80, rng=0,
    )  # fmt: skip
    result = minimize(fun, [1.0, 2.0], "adaptive_gld", maxfev=80, rng=0)
    assert result.n_failed == expected.n_failed > 0
    assert result.fun == expected.fun
    np.testing.assert_array_equal(result.x, expected.x)


@pytest.mark.parametrize("name", NO_NUMBERS)
@pytest.mark.parametrize("on_error", ["raise", "fail", None])
@pytest.mark.parametrize("workers", [1, map])
def test_what_is_no_number_is_treated_as_an_exception_is(name, on_error, workers):
    def fun(x):
        return float((x**2).sum()) if x[0] > 0.9 else NO_NUMBERS[name]

    run = {"x0": [1.0, 2.0], "method": "adaptive_gld", "maxfev": 80, "rng": 0, "workers": workers}
    if on_error == "raise" or (on_error is None and workers == 1):
        with pytest.raises(InvalidValueError, match="the value of fun must be a real number, got"):
            minimize(fun, **run, on_error=on_error)
        return
    result = minimize(fun, **run, on_error=on_error)
    assert result.n_failed > 0
    assert result.fun < 5


@pytest.mark.parametrize("workers", [1, map])
def test_a_function_that_returns_nothing(workers):
    run = {"x0": [1.0, 2.0], "method": "adaptive_gld", "maxfev": 30, "rng": 0, "workers": workers}
    with pytest.raises(InvalidValueError, match="must be a real number, got None"):
        minimize(lambda x: None, **run)  # with workers too: no call has ever returned a number
    result = minimize(lambda x: None, **run, on_error="fail")
    assert (result.status, result.n_failed, result.fun) == (Status.NO_FINITE_VALUE, 30, math.inf)


def test_values_of_a_vectorized_function():
    np.testing.assert_array_equal(
        as_values([Decimal(1), Fraction(1, 2), 10**20], 3), [1, 0.5, 1e20]
    )
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    np.testing.assert_array_equal(as_values(masked, 2), [1.0, np.nan])
    np.testing.assert_array_equal(as_values([1.0, np.ma.masked], 2), [1.0, np.nan])
    np.testing.assert_array_equal(as_values([1, 10**400], 2), [1.0, np.inf])
    with pytest.raises(InvalidValueError, match="fun must return real numbers, got"):
        as_values([1.0, None], 2)
    with pytest.raises(InvalidValueError, match=r"fun must return shape \(2,\)"):
        as_values([1.0], 2)


@pytest.mark.parametrize("kind", [list, np.ma.array, lambda v: np.array(v, dtype=object)])
def test_failed_rows_of_a_vectorized_function(kind):
    def fun(points):
        values = [float(p @ p) for p in points]
        return [v if p[0] > 0.9 else None for v, p in zip(values, points, strict=True)]

    def masked(points):
        return np.ma.array((points**2).sum(1), mask=points[:, 0] <= 0.9)

    run = {"x0": [1.0, 2.0], "method": "adaptive_gld", "maxfev": 80, "rng": 0, "vectorized": True}
    expected = minimize(masked, **run)
    assert expected.n_failed > 0
    if kind is np.ma.array:
        return
    result = minimize(lambda points: kind(fun(points)), **run, on_error="fail")
    assert (result.fun, result.n_failed) == (expected.fun, expected.n_failed)
    nothing = minimize(lambda points: None, **run, on_error="fail")
    assert (nothing.status, nothing.n_failed) == (Status.NO_FINITE_VALUE, 80)
    with pytest.raises(InvalidValueError, match=r"fun must return shape \(\d,\)"):
        minimize(lambda points: [1.0], **run, on_error="fail")


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("x0", [[1.0, -2.0, 3.0], torch.tensor([1.0, -2.0, 3.0])])
def test_tell_takes_every_form_and_masked_rows_have_failed(name, x0):
    solver = SOLVERS[name]()
    ends = []
    for form in range(3):
        state = solver.init(x0, rng=0)
        for _ in range(3):
            n = len(solver.ask(state))
            numbers = [float(7 * k % 5) for k in range(n)]
            mask = [k == n - 1 and n > 1 for k in range(n)]
            solver.tell(
                state,
                state.pending,
                [
                    [math.inf if m else v for v, m in zip(numbers, mask, strict=True)],
                    np.ma.array(numbers, mask=mask),
                    [10**400 if m else Fraction(v) for v, m in zip(numbers, mask, strict=True)],
                ][form],
            )
        ends.append(np.array(to_numpy(state.x)))
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_a_masked_start_is_no_start():
    with pytest.raises(InvalidValueError, match="x0 must be finite"):
        minimize(lambda x: 0.0, np.ma.array([1.0, 2.0], mask=[False, True]), maxfev=3)
    x = minimize(lambda x: 0.0, np.ma.array([1, 2]), maxfev=1, rng=0).x
    np.testing.assert_array_equal(x, [1.0, 2.0])


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("workers", [1, map])
@pytest.mark.parametrize("target", [math.inf, np.inf, Decimal("inf")])
def test_a_target_of_infinity_is_met_by_the_first_finite_value(target, workers, vectorized):
    if vectorized and workers != 1:
        pytest.skip("refused")
    calls = []

    def fun(x):
        calls.append(x)
        if vectorized:
            return np.where(x[:, 1] > 2.5, (x**2).sum(1), np.nan)
        return float((x**2).sum()) if x[1] > 2.5 else math.nan

    run = {"x0": [1.0, 2.0], "method": "adaptive_gld", "rng": 0, "workers": workers}
    result = minimize(fun, **run, target=target, maxfev=200, vectorized=vectorized)
    assert (result.success, result.status) == (True, Status.TARGET_REACHED)
    assert math.isfinite(result.fun)
    assert 0 < result.n_failed < result.nfev
    if workers == 1 and not vectorized:
        assert result.n_failed == result.nfev - 1
    none = minimize(lambda x: math.nan, [1.0, 2.0], target=target, maxfev=20, rng=0)
    assert (none.success, none.status, none.nfev) == (False, Status.NO_FINITE_VALUE, 20)


def test_a_target_of_minus_infinity_is_never_met():
    result = minimize(
        lambda x: -math.inf if x[0] < 0 else float(x[0]), [1.0], target=-math.inf, maxfev=90, rng=0
    )
    assert (result.success, result.nfev) == (False, 90)
    assert math.isfinite(result.fun)
    for target in (math.nan, Decimal("nan"), np.ma.masked):
        with pytest.raises(InvalidValueError, match="target must be a number, got nan"):
            minimize(lambda x: 0.0, [1.0], target=target)
    for target in ("0", None, 1j)[::2]:
        with pytest.raises(InvalidValueError, match="target must be a real number"):
            minimize(lambda x: 0.0, [1.0], target=target)

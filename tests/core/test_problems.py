"""The test functions: known values, optimum, batches, and both namespaces."""

import numpy as np
import pytest

from zoopt_nas import InvalidValueError, problems
from zoopt_nas.problems import PROBLEMS


@pytest.mark.parametrize("name", PROBLEMS)
def test_optimum(name):
    problem = PROBLEMS[name](6)
    assert problem.name == name
    assert float(problem(problem.x_opt)) == pytest.approx(problem.f_opt, abs=1e-12)
    around = problem.x_opt + 0.1 * np.random.default_rng(0).standard_normal((50, 6))
    assert np.all(problem(around) > problem.f_opt)
    assert float(problem(problem.x0)) > problem.f_opt


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_batch_is_its_rows_in_both_namespaces(name):
    torch = pytest.importorskip("torch")
    problem = PROBLEMS[name](4)
    points = np.random.default_rng(1).standard_normal((5, 4))
    values = problem(points)
    assert values.shape == (5,)
    np.testing.assert_allclose(values, [float(problem(row)) for row in points], rtol=1e-12)
    tensor = problem(torch.tensor(points))
    assert tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor.numpy(), values, rtol=1e-12)


def test_values_by_hand():
    x = np.array([1.0, 2.0, -1.0])
    assert float(problems.sphere(3)(x)) == 6.0
    assert float(problems.ellipsoid(3, condition=100)(x)) == pytest.approx(1 + 40 + 100)
    assert float(problems.rosenbrock(3)(x)) == 100 * (2 - 1) ** 2 + 0 + 100 * (-1 - 4) ** 2 + 1
    assert float(problems.rastrigin(2)(np.array([0.5, 1.0]))) == pytest.approx(21.25)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: problems.sphere(0), "dim must be a positive integer, got 0"),
        (lambda: problems.rosenbrock(1), "dim must be at least 2 for rosenbrock, got 1"),
        (lambda: problems.ellipsoid(2, 0.1), "condition must be a finite number of at least 1"),
        (lambda: problems.sphere(2)(np.ones(3)), "x must have 2 coordinates for sphere, got 3"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(InvalidValueError) as caught:
        build()
    assert message in str(caught.value)

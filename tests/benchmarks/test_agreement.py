"""Eq. 13-19 hold for the steps of the solvers, within tolerances computed from their spread."""

import agreement as script
import numpy as np
import pytest
from agreement import (
    BilevelToy,
    agreement,
    agreement_table,
    gld_cosine,
    mgs_step_length,
    rs_relative_error,
    solver_steps,
)

from zoopt_nas import GLD, MGS, RS, InvalidValueError

DIM = 8
TOY = BilevelToy.random(DIM, 0)
AT = np.zeros(DIM)
G = TOY.gradient(AT)


def test_the_gradient_is_that_of_differences():
    toy = BilevelToy.random(DIM, 1, inner_steps=1)
    at, h = np.linspace(-1, 1, DIM), 1e-5
    eye = h * np.eye(DIM)
    differences = (toy(at + eye) - toy(at - eye)) / (2 * h)
    assert toy.gradient(at) == pytest.approx(differences, abs=1e-8)
    # Eq. 2: the derivative of one unrolled step from 0 is lr * A.
    weights = 0.1 * toy.A @ at
    slopes = weights - toy.b + np.exp(toy.c @ weights) * toy.c
    assert toy.gradient(at) == pytest.approx(0.1 * toy.A.T @ slopes)


@pytest.mark.parametrize("direction", ["sphere", "gaussian"])
@pytest.mark.parametrize("estimator", ["one_point", "multi_point"])
def test_rs_is_unbiased_for_the_smoothed_gradient_only(direction, estimator):
    rs = RS(1.0, smoothing=2.0, n_samples=64, direction=direction, estimator=estimator)
    steps = solver_steps(rs, TOY, AT, n_repeats=400)
    smoothed = TOY.smoothed_gradient(AT, 2.0, direction)
    # The mean of DIM squares of nearly normal numbers: 1 +- sqrt(2 / DIM) each; 4 of them.
    assert agreement(steps, smoothed).deviation ** 2 < 1 + 4 * (2 / DIM) ** 0.5
    if (direction, estimator) == ("gaussian", "multi_point"):  # enough bias to be seen
        assert agreement(steps, G).deviation ** 2 > 1 + 8 * (2 / DIM) ** 0.5


@pytest.mark.parametrize("direction", ["sphere", "gaussian"])
@pytest.mark.parametrize("n", [4, 16])
def test_the_error_of_rs_is_that_of_a_linear_function(direction, n):
    rs = RS(1.0, smoothing=1e-3, n_samples=n, direction=direction)
    steps = solver_steps(rs, TOY, AT, n_repeats=400)
    squares = ((steps + G) ** 2).sum(1) / (G @ G)
    tolerance = 4 * squares.std(ddof=1) / 20  # four standard errors
    assert squares.mean() == pytest.approx(rs_relative_error(DIM, n, direction) ** 2, abs=tolerance)
    assert agreement(steps, G).relative_error == pytest.approx(squares.mean() ** 0.5)


def test_mgs_degenerates_to_gradient_descent():
    slope, radius, norm = 3.0, 1e-4, np.linalg.norm(G)
    cosines = []
    for n in (8, 64, 512):
        mgs = MGS(temperature=radius * norm / slope, sigma=radius, n_samples=n)
        steps = solver_steps(mgs, TOY, AT, n_repeats=100, ball=radius)
        cosines.append(agreement(steps, G).cosine)
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.95
    lengths = -steps @ G / (norm * radius)
    # Weights that are normalized by their own sum have a bias of the order of 1 / N.
    tolerance = 4 * lengths.std(ddof=1) / 10 + 2 / 512
    assert lengths.mean() == pytest.approx(mgs_step_length(DIM, slope), abs=tolerance)
    assert mgs_step_length(DIM, 1e-3) == pytest.approx(1e-3 / (DIM + 2), rel=1e-5)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_the_cosine_of_gld_is_that_of_the_best_of_n_directions(n):
    gld = GLD(max_radius=1e-4, schedule="search").with_n_samples(n)
    found = agreement(solver_steps(gld, TOY, AT, n_repeats=800), G)
    assert found.cosine == pytest.approx(
        gld_cosine(gld.radii(DIM), DIM), abs=4 * found.cosine_error
    )


def test_a_table_has_what_the_solvers_measure():
    rows = list(agreement_table(dim=DIM, widths=(0.1,), n_samples=(4, 32), n_repeats=20))
    assert [(row.method, row.n_samples) for row in rows] == [
        *[(name, 4) for name in ("rs (sphere)", "rs (gaussian)", "mgs", "gld")],
        *[(name, 32) for name in ("rs (sphere)", "rs (gaussian)", "mgs")],
    ]
    rs = RS(1.0, smoothing=0.1, n_samples=4)
    assert rows[0].measured == agreement(solver_steps(rs, TOY, AT, n_repeats=20), G)


def test_the_table_that_the_script_prints(monkeypatch, capsys):
    def small(seed):
        return agreement_table(dim=6, widths=(0.1,), n_samples=(4,), n_repeats=5, seed=seed)

    monkeypatch.setattr(script, "agreement_table", small)
    monkeypatch.setattr("sys.argv", ["agreement.py", "3"])
    script.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows] == ["rs (sphere)", "rs (gaussian)", "mgs", "gld"]
    assert [row[5] for row in rows[:2]] == [f"{(5 / 4) ** 0.5:.3f}", f"{(7 / 4) ** 0.5:.3f}"]
    found = next(small(3)).measured
    assert rows[0][3] == f"{found.cosine:.3f} ± {found.cosine_error:.3f}"
    assert rows[0][4] == f"{found.relative_error:.3f}"


def test_what_is_refused():
    with pytest.raises(InvalidValueError, match="steps must be two or more, got 1"):
        agreement(np.ones((1, DIM)), G)
    with pytest.raises(InvalidValueError, match="dim must be a positive integer, got 0"):
        BilevelToy.random(0)

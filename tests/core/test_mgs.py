"""MGS, the paper's form: weights against an independent reference, mixture, extreme values."""

import math

import numpy as np
import pytest
from scipy import stats

from zoopt_nas import MGS, InvalidValueError
from zoopt_nas.diagnostics import effective_sample_size
from zoopt_nas.solvers.mgs import WEIGHTINGS

DIM = 5
X0 = np.linspace(-1.0, 1.0, DIM)
GUIDE = np.array([0.3, -0.2, 0.1, 0.0, 0.4])


def step(solver, values, *, guide=None, seed=0, x0=X0):
    state = solver.init(x0, rng=seed)
    candidates = solver.ask(state, guide=guide)
    state = solver.tell(state, candidates, values)
    return state, candidates - x0


def reference_weights(solver, u, values, guide):
    """Eq. 7-10 and 26 in plain float64: densities by scipy, no logarithms, no shifts."""
    p = np.exp(-(values - values[0]) / solver.temperature)
    if solver.weighting == "density_free":
        return p / p.sum()
    covariance = solver.sigma**2 * np.eye(u.shape[1])
    q = (1 - solver.mixing) * stats.multivariate_normal.pdf(u, guide, covariance)
    q += solver.mixing * stats.multivariate_normal.pdf(u, np.zeros(u.shape[1]), covariance)
    return p / q / np.sum(p / q)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("mixing", [0.0, 1e-3, 0.4, 1.0])
@pytest.mark.parametrize("guide", [None, GUIDE])
def test_step_is_the_weighted_mean(weighting, mixing, guide):
    solver = MGS(sigma=0.2, temperature=0.5, n_samples=6, mixing=mixing, weighting=weighting)
    values = np.array([1.0, 0.8, 1.3, 0.2, 0.9, 1.1])
    state, u = step(solver, values, guide=guide)
    centre = np.zeros(DIM) if guide is None else guide
    weights = reference_weights(solver, u, values, centre)
    np.testing.assert_allclose(state.x, X0 + weights @ u, rtol=1e-9, atol=1e-12)
    assert float(state.metrics["n_effective"]) == pytest.approx(effective_sample_size(weights))
    assert float(state.metrics["effective_ratio"]) == pytest.approx(
        effective_sample_size(weights) / 6
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dim", [1, 56, 196])
def test_weights_sum_to_one(weighting, dim):
    rng = np.random.default_rng(dim)
    solver = MGS(temperature=0.01, weighting=weighting)
    steps, guide = rng.standard_normal((2, 7, dim))
    weights = solver._weights(steps, rng.standard_normal(7), guide[0])
    assert np.all(weights >= 0)
    assert float(np.sum(weights)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_adding_a_constant_changes_no_weight(weighting):
    solver = MGS(weighting=weighting, temperature=0.5, mixing=0.2)
    values = np.array([1.0, 0.5, 2.0, 1.5])
    first, _ = step(solver, values, guide=GUIDE)
    second, _ = step(solver, values + 1024.0, guide=GUIDE)  # exact in binary
    np.testing.assert_array_equal(first.x, second.x)


def test_scaled_noise_has_the_asked_standard_deviation_and_norm():
    n = 4000
    x0 = np.zeros(DIM)
    for weighting in WEIGHTINGS:
        solver = MGS(sigma=0.3, temperature=0.01, n_samples=n, weighting=weighting, mixing=0.0)
        u = solver.ask(solver.init(x0, rng=0), guide=GUIDE) - GUIDE
        # Var(u²) <= 2σ⁴ for either noise: the standard error of the mean square over n * DIM.
        tolerance = 5 * math.sqrt(2 / (n * DIM)) * 0.09
        assert abs(np.mean(u**2) - 0.09) < tolerance
        norms = np.linalg.norm(u, axis=1)
        if weighting == "fixed_norm":
            np.testing.assert_allclose(norms, 0.3 * math.sqrt(DIM), rtol=1e-12)
        else:
            assert norms.std() > 0.05


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_mixture_samples_both_components(weighting):
    n, mixing = 5000, 0.3
    far = np.full(DIM, 10.0)
    solver = MGS(sigma=0.1, temperature=0.01, n_samples=n, mixing=mixing, weighting=weighting)
    u = solver.ask(solver.init(np.zeros(DIM), rng=4), guide=far)
    from_centre = np.linalg.norm(u, axis=1) < 2
    from_guide = np.linalg.norm(u - far, axis=1) < 2
    # A weighted sum of the two (the released code) would lie in between and satisfy neither.
    assert np.all(from_centre ^ from_guide)
    assert abs(from_centre.mean() - mixing) < 5 * math.sqrt(mixing * (1 - mixing) / n)


def test_exact_density_corrects_for_the_mixture():
    # A flat objective: E_p[u] over q's support is estimated with weights 1 / q, which favour the
    # rare component by (1 - λ) / λ against the common one.
    solver = MGS(sigma=0.1, temperature=1.0, n_samples=400, mixing=0.1, weighting="fixed_norm")
    far = np.full(DIM, 10.0)
    state = solver.init(np.zeros(DIM), rng=0)
    u = solver.ask(state, guide=far)
    weights = solver._weights(u, np.zeros(400), far)
    rare = np.linalg.norm(u, axis=1) < 2
    np.testing.assert_allclose(weights[rare] / weights[~rare][0], 0.9 / 0.1, rtol=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 1e308])
@pytest.mark.parametrize("temperature", [1e-8, 1.0, 1e8])
def test_extreme_values_keep_the_step_finite(weighting, scale, temperature):
    solver = MGS(temperature=temperature, weighting=weighting)
    values = scale * np.array([1.0, -1.0, 0.5, -0.5])
    state, u = step(solver, values, guide=GUIDE)
    assert np.all(np.isfinite(state.x))
    assert 1.0 - 1e-9 <= float(state.metrics["n_effective"]) <= 4.0 + 1e-9
    if scale >= 1e30 and weighting == "density_free":
        np.testing.assert_allclose(state.x, X0 + u[1], rtol=1e-12)  # the best takes all


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_failed_candidates_have_no_weight(weighting):
    solver = MGS(sigma=0.025, temperature=1.0, n_samples=4, mixing=0.2, weighting=weighting)
    values = np.array([np.nan, 1.0, -np.inf, 0.5])
    state, u = step(solver, values, guide=GUIDE)
    weights = reference_weights(solver, u[[1, 3]], values[[1, 3]], GUIDE)
    np.testing.assert_allclose(state.x, X0 + weights @ u[[1, 3]], rtol=1e-9)


def test_no_effective_sample_if_all_failed():
    state, _ = step(MGS(temperature=0.01), [np.nan] * 4)
    assert float(state.metrics["n_effective"]) == 0.0
    np.testing.assert_array_equal(state.x, X0)


def test_the_guide_is_copied():
    solver = MGS(weighting="exact", mixing=0.3, sigma=0.2, temperature=1.0)
    ends = []
    for overwrite in (False, True):
        guide = GUIDE.copy()
        state = solver.init(X0, rng=0)
        candidates = solver.ask(state, guide=guide)
        if overwrite:
            guide[:] = 7.0
        ends.append(solver.tell(state, candidates, [1.0, 2.0, 0.5, 1.5]).x)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_a_guide_pulls_the_step():
    solver = MGS(sigma=1e-6, temperature=0.01, mixing=0.0)
    state, _ = step(solver, np.zeros(4), guide=GUIDE)
    np.testing.assert_allclose(state.x, X0 + GUIDE, atol=1e-5)


@pytest.mark.parametrize(("sigma", "ratio"), [(0.025, 0.046875), (0.2, 3.0)])
def test_the_mean_step_on_a_linear_function_is_the_guide_and_a_multiple_of_the_gradient(
    sigma, ratio
):
    # Weights linear in f / τ: the mean step is -(1 - λ) g - (1 - 1/N) (σ² / τ) g. The next order
    # is smaller by less than s² where s = σ ||g|| / τ.
    n, s, repeats = 4, 0.1, 10_000
    solver = MGS(sigma=sigma, temperature=0.01, n_samples=n, mixing=1e-3)
    assert (1 - 1 / n) * sigma**2 / solver.temperature == pytest.approx(ratio)
    g = GUIDE / np.linalg.norm(GUIDE) * s * solver.temperature / sigma
    state = solver.init(X0, rng=0)
    ratios, (means, moves) = np.empty(repeats), np.empty((2, repeats, DIM))
    for k in range(repeats):
        state.x = X0
        candidates = solver.ask(state, guide=-g)
        solver.tell(state, candidates, candidates @ g)
        means[k], moves[k] = (candidates - X0).mean(axis=0), state.x - X0
        ratios[k] = state.metrics["selection_ratio"]
    np.testing.assert_allclose(ratios, (moves - means) @ -g / (g @ g), rtol=1e-6, atol=1e-9)
    error = ratios.std() / math.sqrt(repeats)
    assert abs(ratios.mean() - ratio) < 5 * error + s**2 * ratio
    assert 5 * error + s**2 * ratio < 0.06 * ratio  # tight enough to tell 1 - 1/N from 1
    error = means.std(axis=0) / math.sqrt(repeats)
    assert np.all(np.abs(means.mean(axis=0) + (1 - solver.mixing) * g) < 5 * error)


def test_the_selection_ratio_by_hand():
    solver = MGS(sigma=0.2, temperature=1.0, n_samples=3, mixing=0.0)
    values = np.array([0.0, math.log(2), math.inf])  # weights 2/3, 1/3 and 0
    state, u = step(solver, values, guide=GUIDE)
    selected = u[0] / 3 - u[2] / 3  # less the mean: 2/3 - 1/3, 1/3 - 1/3, 0 - 1/3
    expected = selected @ GUIDE / (GUIDE @ GUIDE)
    assert float(state.metrics["selection_ratio"]) == pytest.approx(expected)
    for values, guide in (([math.nan] * 3, GUIDE), ([1.0, 2.0, 3.0], np.zeros(DIM))):
        state, _ = step(solver, values, guide=guide)
        assert float(state.metrics["selection_ratio"]) == 0.0
    state, _ = step(solver, np.array([1.0, 2.0, 3.0]))
    assert "selection_ratio" not in state.metrics  # there is no guide to compare with
    state, _ = step(solver, np.ones(3), guide=GUIDE)
    assert float(state.metrics["selection_ratio"]) == pytest.approx(0.0, abs=1e-12)


def test_scaled_shrinks_sigma_alone():
    solver = MGS(sigma=0.2, temperature=0.5)
    assert solver.scaled(0.25) == MGS(sigma=0.05, temperature=0.5)
    assert MGS(temperature=0.5).scaled(0.5) == MGS(sigma=0.0125, temperature=0.5)
    with pytest.raises(InvalidValueError, match=r"factor must be a positive finite number, got 0"):
        solver.scaled(0)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("sigma", 0.0, "a positive finite number"),
        ("temperature", math.inf, "a positive finite number"),
        ("n_samples", -1, "a positive integer"),
        ("mixing", 1.5, "a number in [0, 1]"),
        ("weighting", "none", "one of exact, density_free, fixed_norm"),
    ],
)
def test_bad_fields_are_named(field, value, rule):
    with pytest.raises(InvalidValueError) as caught:
        MGS(**{field: value})
    assert str(caught.value) == f"{field} must be {rule}, got {value!r}"

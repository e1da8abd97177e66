"""ZeroOrderSGD: steps against a reference in float64, and exact restores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.integrations import torch as module
from zoopt_nas.integrations.torch import DIRECTIONS, ESTIMATORS, ZeroOrderSGD

SEED = 7
# The seed of the directions for `rng=7`.
STREAM_SEED = int(np.random.default_rng(SEED).integers(2**63 - 1))
HALF = (torch.float16, torch.bfloat16)


def quadratic(weights):
    """A convex quadratic function of all weights: the loss and its gradient."""
    n = sum(w.numel() for w in weights)
    rng = np.random.default_rng(3)
    root = torch.from_numpy(rng.standard_normal((n, n)) / math.sqrt(n))
    linear = torch.from_numpy(rng.standard_normal(n))

    def flat(weights):
        return torch.cat([w.detach().double().reshape(-1) for w in weights])

    def loss(weights):
        v = flat(weights)
        return 0.5 * (root @ v) @ (root @ v) + linear @ v

    return loss, root.T @ (root @ flat(weights)) + linear


def make_weights(*shapes, dtype=torch.float64):
    rng = np.random.default_rng(5)
    return [nn.Parameter(torch.from_numpy(rng.standard_normal(s)).to(dtype)) for s in shapes]


def replayed(weights, k, direction, n_steps=0):
    """Direction k of a step, drawn independently of the module."""
    entropy = np.random.SeedSequence(STREAM_SEED, spawn_key=(n_steps, k, 0))
    stream = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
    draws = []
    for w in weights:
        z = torch.empty(w.shape, dtype=torch.float32 if w.dtype in HALF else w.dtype)
        if direction == "gaussian":
            draws.append(z.normal_(generator=stream))
        else:
            draws.append(z.random_(0, 2, generator=stream) * 2 - 1)
    return draws


def reference(weights, loss, options, groups, n_steps=0):
    """The weights after one step; ``groups[i]`` is (lr, smoothing, weight_decay) of weight i."""
    q, base = options["n_directions"], [w.detach().clone() for w in weights]

    def at(z, sign):
        points = zip(base, z, groups, strict=True)
        return float(loss([b + sign * eps * d for b, d, (_, eps, _) in points]))

    directions = [replayed(weights, k, options["direction"], n_steps) for k in range(q)]
    plus = [at(z, 1) for z in directions]
    if options["estimator"] == "central":
        minus = [at(z, -1) for z in directions]
        changes = [(p - m) / 2 for p, m in zip(plus, minus, strict=True)]
        perturbed = plus + minus
    else:
        changes = [p - float(loss(base)) for p in plus]
        perturbed = plus
    sigma = np.std(perturbed, ddof=1) if options["normalize"] else 1.0
    after = []
    for i, (b, (lr, eps, decay)) in enumerate(zip(base, groups, strict=True)):
        g = sum(c / eps * z[i] for c, z in zip(changes, directions, strict=True)) / q
        after.append(b - lr * g / sigma - lr * decay * b)
    return after


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n_directions", [2, 5])
def test_two_steps_follow_a_replay_by_hand(estimator, direction, normalize, n_directions):
    weights = make_weights((3, 4), (17,), ())
    loss, _ = quadratic(weights)
    options = {
        "n_directions": n_directions,
        "estimator": estimator,
        "direction": direction,
        "normalize": normalize,
    }
    groups = [(0.02, 1e-3, 0.0), (0.03, 2e-3, 0.1), (0.03, 2e-3, 0.1)]
    optimizer = ZeroOrderSGD(
        [
            {"params": weights[:1]},
            {"params": weights[1:], "lr": 0.03, "smoothing": 2e-3, "weight_decay": 0.1},
        ],
        lr=0.02,
        rng=SEED,
        **options,
    )
    for n_steps in range(2):
        before = float(loss(weights))
        expected = reference(weights, loss, options, groups, n_steps)
        returned = optimizer.step(lambda: loss(weights))
        for w, e in zip(weights, expected, strict=True):
            torch.testing.assert_close(w.detach(), e, rtol=1e-11, atol=1e-12)
        # The mean of a pair differs from the loss by the curvature, O(smoothing²).
        assert returned == pytest.approx(before, abs=0.0 if estimator == "one_sided" else 1e-3)


def test_rows_are_drawn_in_chunks_whatever_the_strides(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 8)
    storage = torch.arange(28.0, dtype=torch.float64).reshape(4, 7)
    weight = nn.Parameter(storage.T)  # 7 rows of 4 entries, so 2 rows a chunk; not contiguous
    base = weight.detach().clone()
    seen = []

    def closure():
        seen.append(weight.detach().clone())
        return 0.0

    ZeroOrderSGD([weight], 1.0, 0.5, rng=SEED).step(closure)
    chunks = [torch.empty(n, 4, dtype=torch.float64) for n in (2, 2, 2, 1)]
    z = torch.cat(replayed(chunks, 0, "gaussian"))
    torch.testing.assert_close(seen[0], base + 0.5 * z, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(seen[1], base - 0.5 * z, rtol=1e-14, atol=1e-14)
    assert torch.equal(weight.detach(), base)  # both losses and the estimate are 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_expected_estimate_is_the_gradient(estimator, direction):
    q = 1500
    weights = make_weights((2, 3))
    loss, gradient = quadratic(weights)
    before = weights[0].detach().clone()
    optimizer = ZeroOrderSGD(
        weights, 1.0, 1e-5, q, estimator=estimator, direction=direction, rng=SEED
    )
    optimizer.step(lambda: loss(weights))
    estimate = (before - weights[0].detach()).reshape(-1)
    # Var (zᵀg z_i) = |g|² + g_i² (Gaussian) or |g|² - g_i² (Rademacher); smoothing adds < 1e-4.
    sign = 1 if direction == "gaussian" else -1
    deviation = torch.sqrt((gradient @ gradient + sign * gradient**2) / q)
    assert torch.all((estimate - gradient).abs() < 5 * deviation)
    assert (estimate - gradient).norm() > 0.2 * deviation.norm()  # it is an estimate


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_normalized_steps_ignore_the_scale_of_the_loss(estimator):
    ends = []
    for scale in (1.0, 1024.0):
        weights = make_weights((2, 3))
        loss, _ = quadratic(weights)
        optimizer = ZeroOrderSGD(
            weights, 1e-4, n_directions=4, estimator=estimator, normalize=True, rng=SEED
        )
        for _ in range(3):
            optimizer.step(lambda w=weights, f=loss, s=scale: s * f(w))
        ends.append(weights[0].detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


def test_the_standard_deviation_measures_the_slope():
    """On a linear loss L = gᵀθ it is ε|g|, so that a step with lr = ε is about g / |g|."""
    weights = make_weights((50,))
    gradient = torch.linspace(-1, 2, 50, dtype=torch.float64)
    q, eps = 2000, 1e-3
    before = weights[0].detach().clone()
    ZeroOrderSGD(
        weights, eps, eps, q, estimator="one_sided", direction="gaussian", normalize=True, rng=SEED
    ).step(lambda: gradient @ weights[0])
    moved = (before - weights[0].detach()) @ gradient / gradient.norm()
    # (zᵀg)² / |g|² is chi²_1, of mean 1 and variance 2; the deviation adds 1 / 2q to the square.
    assert float(moved) == pytest.approx(1.0, abs=5 * math.sqrt(2.5 / q))


@pytest.mark.parametrize(("estimator", "n_calls"), [("central", 6), ("one_sided", 4)])
def test_the_number_of_losses_of_a_step(estimator, n_calls):
    weights = make_weights((4,))
    calls = []

    def closure():
        calls.append(weights[0].detach().clone())
        return math.nan if len(calls) == 2 else 1.0  # a failure changes no count

    base = weights[0].detach().clone()
    ZeroOrderSGD(weights, 0.1, n_directions=3, estimator=estimator, rng=SEED).step(closure)
    assert len(calls) == n_calls
    assert torch.equal(calls[0], base) == (estimator == "one_sided")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_200_steps_at_lr_0_leave_every_bit(dtype):
    as_integers = torch.int32 if dtype is torch.float32 else torch.int16
    special = torch.tensor([0.0, -0.0, 1e-7, -3.0, 1000.1, 65504.0]).to(dtype)
    weights = [nn.Parameter(special), *make_weights((33, 9), (2, 3, 5), dtype=dtype)]
    before = [w.detach().clone().view(as_integers) for w in weights]
    n_moved = 0

    def closure():
        nonlocal n_moved
        n_moved += not torch.equal(weights[1].detach().view(as_integers), before[1])
        return weights[1].float().sum()

    optimizer = ZeroOrderSGD(weights, 0.0, 1e-3, weight_decay=0.1, rng=SEED)
    for _ in range(200):
        optimizer.step(closure)
    assert n_moved == 400
    for w, b in zip(weights, before, strict=True):
        assert torch.equal(w.detach().view(as_integers), b)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_rounded_once(dtype):
    weights = make_weights((40,), dtype=dtype)
    base = weights[0].detach().clone()
    z = [replayed(weights, k, "gaussian")[0] for k in range(2)]
    losses = iter([3.0, 1.0, 5.0, 2.0])
    seen = []

    def closure():
        seen.append(weights[0].detach().clone())
        return next(losses)

    ZeroOrderSGD(weights, 0.05, 0.25, 2, weight_decay=0.5, rng=SEED).step(closure)
    for point, step in zip(seen, (z[0], -z[0], z[1], -z[1]), strict=True):
        assert torch.equal(point, (base.float() + 0.25 * step).to(dtype))
    g = (1.0 * z[0] + 1.5 * z[1]) / 0.25 / 2
    expected = (base.double() * (1 - 0.05 * 0.5) - 0.05 * g.double()).to(dtype)
    # float32 and float64 may fall on two sides of a midpoint between neighbours: rarely.
    assert (weights[0].detach() != expected).sum() <= 1
    torch.testing.assert_close(weights[0].detach(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("failure", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_failed_loss_drops_its_direction(failure, estimator):
    weights = make_weights((5,))
    base = weights[0].detach().clone()
    z = [replayed(weights, k, "gaussian")[0] for k in range(3)]
    if estimator == "central":
        losses, changes, loss = [3.0, 1.0, failure, 1.0, 5.0, 2.0], (1.0, 1.5), 11 / 4
    else:
        losses, changes, loss = [1.0, 3.0, failure, 5.0], (2.0, 4.0), 1.0
    values = iter(losses)
    optimizer = ZeroOrderSGD(weights, 0.01, 0.5, 3, estimator=estimator, rng=SEED)
    assert optimizer.step(lambda: next(values)) == loss
    g = (changes[0] * z[0] + changes[1] * z[2]) / 0.5 / 2
    torch.testing.assert_close(weights[0].detach(), base - 0.01 * g, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        ([math.nan] * 4, {}),
        ([math.nan, 1.0, 1.0, math.inf], {}),
        ([math.nan, 1.0, 2.0], {"estimator": "one_sided"}),
        ([0.0, 1.0, math.nan], {"estimator": "one_sided", "normalize": True}),
        ([1e308, -1e308, math.nan, 1.0], {}),  # the difference overflows
        ([1e100, 0.0, 1.0, 1.0], {}),  # so would the step, in float32
    ],
)
def test_without_a_direction_the_weights_stay_and_new_ones_are_drawn(losses, options):
    weights = make_weights((4,), dtype=torch.float32)
    base = weights[0].detach().clone()
    optimizer = ZeroOrderSGD(weights, 0.1, 0.1, 2, weight_decay=0.5, rng=SEED, **options)
    values = iter(losses)
    optimizer.step(lambda: next(values))
    assert torch.equal(weights[0].detach(), base)
    seen = []
    optimizer.step(lambda: seen.append(weights[0].detach().clone()) or 0.0)
    first = 1 if options else 0
    z = replayed(weights, 0, "gaussian", n_steps=1)[0]
    torch.testing.assert_close(seen[first], base + 0.1 * z, rtol=1e-6, atol=1e-6)


def test_equal_losses_only_decay():
    weights = make_weights((4,))
    base = weights[0].detach().clone()
    optimizer = ZeroOrderSGD(weights, 0.1, normalize=True, weight_decay=0.5, rng=SEED)
    assert optimizer.step(lambda: 2.0) == 2.0
    torch.testing.assert_close(weights[0].detach(), base * 0.95, rtol=1e-14, atol=0)


def test_a_closure_that_raises_leaves_the_step_untaken():
    weights, twin = make_weights((6,)), make_weights((6,))
    loss, _ = quadratic(weights)
    optimizer, other = (ZeroOrderSGD(w, 0.01, n_directions=3, rng=SEED) for w in (weights, twin))
    base = weights[0].detach().clone()
    calls = []

    def interrupted():
        calls.append(weights[0].detach().clone())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(weights)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert not torch.equal(calls[3], base)
    assert torch.equal(weights[0].detach(), base)
    optimizer.step(lambda: loss(weights))
    other.step(lambda: loss(twin))
    assert torch.equal(weights[0].detach(), twin[0].detach())


@pytest.mark.parametrize("direction", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_step_out_of_the_dtype_of_the_weights_is_no_step(dtype, direction):
    limit = torch.finfo(dtype).max
    for share in (1e-3, 2.0, 1e10):  # the step relative to the largest number
        half = torch.ones(50, dtype=dtype, requires_grad=True)
        other = torch.ones(50, dtype=torch.float64, requires_grad=True)
        optimizer = ZeroOrderSGD([half, other], 1.0, 1.0, direction=direction, rng=SEED)
        # The slope is the difference of the losses over twice the smoothing of 1.
        losses = iter([share * limit, -share * limit])
        optimizer.step(lambda losses=losses: next(losses))
        assert torch.isfinite(half.detach().double()).all()
        assert torch.isfinite(other.detach()).all()
        has_moved = not torch.equal(half.detach(), torch.ones(50, dtype=dtype))
        assert has_moved == (share < 1)
        assert torch.equal(other.detach(), torch.ones(50, dtype=torch.float64)) != has_moved


@pytest.mark.parametrize("sign", [1, -1])
def test_float16_weights_near_the_end_do_not_become_infinite(sign):
    start = torch.full((20,), sign * 65000.0, dtype=torch.float16)
    weights = start.clone().requires_grad_()
    optimizer = ZeroOrderSGD([weights], 1.0, 1e-3, direction="rademacher", rng=SEED)
    losses = iter([2.0, -2.0])  # a slope of 2000
    optimizer.step(lambda: next(losses))
    assert torch.equal(weights.detach(), start)
    near = (0.5 * start).requires_grad_()
    optimizer = ZeroOrderSGD([near], 1.0, 1e-3, direction="rademacher", rng=SEED)
    losses = iter([2.0, -2.0])
    optimizer.step(lambda: next(losses))
    torch.testing.assert_close(
        (near.detach() - 0.5 * start).abs().float(), torch.full((20,), 2000.0), rtol=0.01, atol=0
    )


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (None, "closure must be a function that returns the loss, got None"),
        (lambda: torch.ones(3), "closure must return a real number, got Tensor of shape (3,)"),
        (lambda: None, "closure must return a real number, got NoneType"),
        (lambda: 1j, "closure must return a real number, got complex"),
    ],
)
def test_bad_closures_are_named(closure, message):
    weights = make_weights((6,))
    base = weights[0].detach().clone()
    with pytest.raises(InvalidValueError) as caught:
        ZeroOrderSGD(weights, 0.1, rng=SEED).step(closure)
    assert str(caught.value) == message
    assert torch.equal(weights[0].detach(), base)


def test_no_gradient_is_ever_recorded():
    weights = make_weights((6,))
    recorded = []

    def closure():
        loss = (weights[0] ** 2).sum()
        recorded.append(loss.requires_grad)
        return loss

    ZeroOrderSGD(weights, 0.1, rng=SEED).step(closure)
    assert recorded == [False, False]
    assert weights[0].requires_grad
    assert weights[0].grad is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        ZeroOrderSGD(weights, 0.1, rng=SEED).step(lambda: (weights[0] ** 2).sum().backward())

"""SmoothDARTS: perturbed architecture weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_supernets import TINY, setup
from torch.nn import functional as F

from zoopt_nas.nas.search.methods.smooth import (
    AdversarialSmoothing,
    RandomSmoothing,
    perturbation_radius,
    to_simplex,
)
from zoopt_nas.nas.settings.config import SearchConfig

CONFIG = SearchConfig.for_dataset(algo="sdarts_rs")


def test_the_radius_grows_over_the_epochs():
    assert perturbation_radius(0.0) == 0.03
    assert perturbation_radius(0.5) == pytest.approx(0.165)
    assert perturbation_radius(1.0) == pytest.approx(0.3)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=st.integers(0, 2**31), radius=st.floats(0.0, 2.0))
def test_perturbed_weights_are_on_the_simplex(seed: int, radius: float):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.softmax(torch.randn(6, 4, generator=generator), dim=1)
    clean[2:, 3] = 0.0  # no candidate
    moved = clean + radius * (2 * torch.rand(6, 4, generator=generator) - 1)
    result = to_simplex(moved, clean)
    assert (result >= 0).all()
    assert (result <= 1).all()
    torch.testing.assert_close(result.sum(dim=1), torch.ones(6))
    assert (result[2:, 3] == 0).all()


def test_where_nothing_is_left_the_largest_weight_stays():
    clean = torch.tensor([[0.2, 0.5, 0.3]])
    assert to_simplex(-clean, clean).tolist() == [[0.0, 1.0, 0.0]]


def smooth(cls, seed: int = 0):
    made = setup()
    batch = made.objective()._train_stream.next_batch()
    return made, cls(CONFIG, made.alphas(1)[0], seed), batch


def test_random_smoothing_moves_within_its_radius():
    made, updater, batch = smooth(RandomSmoothing)
    clean = made.net.edge_weights(updater.alpha)
    drawn = [updater.training_weights(made.net, *batch, progress=0.0) for _ in range(50)]
    assert not torch.equal(drawn[0], drawn[1])
    # Within 0.03 of the clean weights, divided by a sum within 3 * 0.03 of 1.
    for weights in drawn:
        assert float((weights - clean).abs().max()) < 0.03 + 0.09 / 0.91
    mean = torch.stack(drawn).mean(dim=0)
    # The standard deviation of an entry is below that of the noise, 0.03 / sqrt(3), and a sum's
    # share; five standard errors of 50 draws.
    assert float((mean - clean).abs().max()) < 5 * 2 * 0.03 / math.sqrt(3) / math.sqrt(50)


def test_alpha_itself_stays_clean():
    made, updater, batch = smooth(AdversarialSmoothing)
    before = updater.alpha.clone()
    updater.training_weights(made.net, *batch, progress=0.5)
    assert torch.equal(updater.alpha, before)
    assert not updater.alpha.requires_grad


def test_the_attack_raises_the_loss_more_than_noise_and_leaves_the_supernet_alone():
    made, updater, (images, labels) = smooth(AdversarialSmoothing)
    state = {name: value.clone() for name, value in made.net.state_dict().items()}

    def loss(weights):
        with torch.no_grad():
            made.net.eval()
            value = F.cross_entropy(made.net.mix(images, weights), labels)
            made.net.train()
        return float(value)

    made.net.train()
    clean = loss(made.net.edge_weights(updater.alpha))
    attacked = loss(updater.training_weights(made.net, images, labels, progress=0.5))
    assert made.net.training
    noisy = [
        loss(
            RandomSmoothing(CONFIG, updater.alpha, seed).training_weights(
                made.net, images, labels, 0.5
            )
        )
        for seed in range(20)
    ]
    assert attacked > clean
    assert attacked > sorted(noisy)[-2]
    for name, value in made.net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_an_attack_that_lowers_the_loss_is_given_up(monkeypatch):
    made, updater, (images, labels) = smooth(AdversarialSmoothing)
    monkeypatch.setattr("zoopt_nas.nas.search.methods.smooth.N_ASCENTS", 0)
    clean = made.net.edge_weights(updater.alpha)
    made.net.train()
    kept = [
        torch.equal(updater.training_weights(made.net, images, labels, 0.5), clean)
        for _ in range(20)
    ]
    assert 0 < sum(kept) < 20  # noise lowers the loss in some draws and raises it in others


@pytest.mark.parametrize("cls", [RandomSmoothing, AdversarialSmoothing])
def test_shares_of_edges_stay_as_they_are(cls):
    space = dataclasses.replace(TINY, edge_normalization=True)
    made = setup(space)
    made.net.train()
    batch = made.objective()._train_stream.next_batch()
    updater = cls(CONFIG, made.alphas(1)[0], 0)
    weights = updater.training_weights(made.net, *batch, progress=0.5)
    assert not torch.equal(weights, made.net.edge_weights(updater.alpha))
    torch.testing.assert_close(weights.sum(dim=1), space.edge_factors(updater.alpha))

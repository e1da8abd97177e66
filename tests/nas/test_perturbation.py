"""DARTS-PT: its decisions against a reference on a network by hand, and how it continues a run."""

from __future__ import annotations

import copy

import pytest
import torch
from stopping import StopAt
from tiny_supernets import OneBatch, supernet_of
from torch.nn import functional as F

from zoopt_nas.errors import InvalidValueError, RunError, RunInterrupted
from zoopt_nas.nas.networks.space import UNUSED
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import RunFolder
from zoopt_nas.nas.search.finished import continue_finished
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.search.methods.perturbation import decision_epoch
from zoopt_nas.nas.search.objective import BilevelObjective
from zoopt_nas.nas.search.run import _build, resume_search, run_search
from zoopt_nas.nas.search.updater import EpochEnd
from zoopt_nas.nas.settings.config import SearchConfig


def batches():
    generator = torch.Generator().manual_seed(3)
    for size in (40, 24):
        images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
        yield images, torch.randint(3, (size,), generator=generator)


def score(net, table: torch.Tensor) -> tuple[float, float]:
    """Accuracy and minus the loss, image by image."""
    n_right, losses = 0, []
    with torch.no_grad():
        for images, labels in batches():
            logits = net.mix(images, table)
            n_right += int((logits.argmax(dim=1) == labels).sum())
            losses += F.cross_entropy(logits, labels, reduction="none").tolist()
    return n_right / len(losses), -sum(losses) / len(losses)


def reference(space, net, alpha, plans) -> dict[int, int]:
    """Algorithm 1 of Wang et al. (2021) without training in between."""
    width = max(space.sizes)
    table = torch.zeros(len(space.sizes), width, dtype=torch.float64)
    for edge, part in enumerate(torch.split(alpha, list(space.sizes))):
        table[edge, : len(part)] = torch.softmax(part, 0)
    net, chosen = copy.deepcopy(net).eval(), {}
    names = [edge for kind in space.kinds for edge in space.candidates(kind)]
    for turn in range(len(plans[0])):
        for plan in plans:
            part = plan[turn]
            if isinstance(part, int):
                found = []
                for k, name in enumerate(names[part]):
                    if name != "none" or space.name == "nasbench201":
                        without = table.clone()
                        without[part, k] = 0
                        found.append((score(net, without), k))
                chosen[part] = min(found)[1]
                table[part] = 0
                table[part, chosen[part]] = 1
                continue
            left = list(part.edges)
            while len(left) > 2:
                found = []
                for edge in left:
                    without = table.clone()
                    without[edge] = 0
                    found.append((score(net, without), edge))
                worst = max(found)[1]
                left.remove(worst)
                chosen[worst] = UNUSED
                table[worst] = 0
    return chosen


@pytest.mark.parametrize("name", ["small_s3", "nasbench201"])
def test_the_operations_kept_are_those_whose_loss_costs_most(name, small_spaces):
    space = SPACES[name]
    torch.manual_seed(0)
    net = supernet_of(space, 3, 2, 3).double()
    alpha = space.init_alpha(rng=1, scale=1.0).double()
    with torch.no_grad():  # running statistics
        for _ in range(5):
            net.train()(next(batches())[0], alpha)
    config = SearchConfig(algo="darts_pt", space=name, epochs=2)
    updater = METHODS["darts_pt"].build(config, alpha, 5, space)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective = BilevelObjective(net, optimizer, OneBatch(), OneBatch(), seed=0, inner="first")
    n_decided = []
    for is_last in (False, True):
        updater.end_epoch(EpochEnd(objective, is_last, 0.0, None, batches))
        n_decided.append(len(updater.choices))
    expected = reference(space, net, alpha, updater._plans)
    assert updater.choices == expected
    assert 0 < n_decided[0] <= n_decided[1] == len(space.sizes)
    path = space.path(space.discretize(updater.alpha))
    assert path == tuple(expected[edge] for edge in range(len(space.sizes)))
    assert net.training


def test_the_order_of_decisions_is_random():
    def order(seed: int) -> list[int]:
        config = SearchConfig(algo="darts_pt", space="s2")
        updater = METHODS["darts_pt"].build(config, torch.zeros(56), seed, SPACES["s2"])
        return [part for part in updater._plans[0] if isinstance(part, int)]

    assert sorted(order(0)) == list(range(14))
    assert order(0) != order(1)
    assert order(0) == order(0)


def test_when_decisions_are_made():
    assert [decision_epoch(k, 17, 85) for k in range(17)] == list(range(4, 85, 5))
    assert [decision_epoch(k, 4, 2) for k in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("algo", ["mgs", "darts_minus"])  # zero-order; one with other weights, too
def test_it_continues_the_supernet_of_a_finished_search(algo, search_config, tmp_path):
    finished = run_search(search_config(algo), run_dir=tmp_path / "run")
    config = search_config("darts_pt", supernet=str(tmp_path / "run"), warmup_epochs=0)
    search = _build(config, None)
    continue_finished(search)
    torch.testing.assert_close(search.alpha.cpu(), finished.alpha)
    saved = RunFolder.open(tmp_path / "run").load_checkpoint(torch.device("cpu"))["own"]["supernet"]
    state = search.supernet.state_dict()
    assert set(state) <= set(saved)
    assert all(value.equal(saved[name]) for name, value in state.items())


def test_a_selection_resumes_bit_for_bit(search_config, tmp_path, without_seconds):
    run_search(search_config("darts1"), run_dir=tmp_path / "run")
    config = search_config("darts_pt", supernet=str(tmp_path / "run"), epochs=4, warmup_epochs=0)
    whole = run_search(config)
    with pytest.raises(RunInterrupted):
        run_search(config, run_dir=tmp_path / "again", observer=StopAt(5))
    (tmp_path / "run" / "checkpoint.pt").unlink()  # needed at the start only
    rest = resume_search(tmp_path / "again")
    assert rest.alpha.equal(whole.alpha)
    assert rest.genotype == whole.genotype
    assert without_seconds(rest.metrics) == without_seconds(whole.metrics)


def test_runs_that_cannot_be_continued_are_refused(search_config, tmp_path):
    run_search(search_config("random"), run_dir=tmp_path / "untrained")
    run_search(search_config("darts1", epochs=2), run_dir=tmp_path / "run")
    with pytest.raises(InvalidValueError, match="supernet must be the folder of a finished search"):
        run_search(search_config("darts_pt"))
    with pytest.raises(RunError, match="has no trained supernet"):
        run_search(search_config("darts_pt", supernet=str(tmp_path / "untrained")))
    given = str(tmp_path / "run")
    with pytest.raises(InvalidValueError, match=r"n_cells must be 1 as in .*, got 2"):
        run_search(search_config("darts_pt", supernet=given, n_cells=2))
    for algo in ("darts1", "gld"):
        with pytest.raises(InvalidValueError, match=f"supernet must be left out with {algo}"):
            run_search(search_config(algo, supernet=given))


def test_what_darts_pt_is_defined_with():
    config = SearchConfig(algo="darts_pt", dataset="cifar10")
    assert (config.epochs, config.lr, config.lr_min, config.warmup_epochs) == (85, 0.0025, 0.001, 0)

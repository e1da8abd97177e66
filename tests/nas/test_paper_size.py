"""What results say of being smaller than the paper's."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from zoopt_nas.nas.analyses.landscape import LandscapeSettings
from zoopt_nas.nas.config import SearchConfig, TrainConfig
from zoopt_nas.nas.figures import label_size
from zoopt_nas.nas.paper_size import reductions


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "imagenet"])
def test_nothing_is_smaller_by_default(dataset):
    assert reductions(SearchConfig.for_dataset(dataset)) == []
    assert reductions(TrainConfig.for_dataset(dataset, "DARTS_V2")) == []


@pytest.mark.parametrize("space", ["s1", "s2", "s3", "s4"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn"])
def test_the_sizes_of_rdarts_are_those_of_the_paper(dataset, space):
    config = TrainConfig.for_dataset(dataset, "DARTS_V2", protocol="rdarts", space=space)
    assert reductions(config) == []
    assert reductions(config.replace(n_cells=7))[0].startswith("n_cells 7 of ")


def test_what_is_smaller_is_named():
    small = SearchConfig.for_dataset("digits", n_train=64, n_cells=8)
    assert reductions(small) == [
        *("dataset digits", "n_train 64", "epochs 10 of 50", "init_channels 4 of 16")
    ]
    few = TrainConfig.for_dataset("imagenet", "DARTS_V2", epochs=5, init_channels=8)
    assert reductions(few) == ["epochs 5 of 250", "init_channels 8 of 48"]
    assert reductions(SearchConfig.for_dataset("cifar10", epochs=200)) == []


def test_a_search_and_its_retraining_are_told_apart():
    search = SearchConfig.for_dataset("cifar10", epochs=3)
    train = TrainConfig.for_dataset("cifar10", "DARTS_V2", epochs=6, n_train=100)
    assert reductions(search, train) == [
        *("search epochs 3 of 50", "retraining n_train 100", "retraining epochs 6 of 600")
    ]
    own = reductions(search.replace(dataset="a.npz"), train.replace(dataset="a.npz"))
    assert own == ["dataset a.npz", *reductions(search, train)]


def test_a_coarser_grid_is_smaller():
    assert LandscapeSettings(step=0.02).reductions() == []
    assert LandscapeSettings(step=0.5).reductions() == ["step 0.5, not 0.02"]


def test_a_figure_has_the_line_only_if_something_is_smaller():
    figure = Figure(layout="constrained")
    label_size(figure, [])
    assert figure.get_supxlabel() == ""
    label_size(figure, ["epochs 3 of 50", "n_train 64"])
    assert figure.get_supxlabel() == "reduced size: epochs 3 of 50, n_train 64"

"""What results say of being smaller than the paper's."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from zoopt_nas import SOLVERS
from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings
from zoopt_nas.nas.drawing.figures import label_size
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.paper_size import reductions, reductions_of_all


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
        *("dataset digits", "n_train 64", "epochs 10 of 50", "init_channels 4 of 16"),
        "inner_steps 4 of 10",
    ]
    file = SearchConfig.for_dataset("images.npz", image_size=16)
    assert reductions(file) == ["dataset images.npz", "image_size 16 of 32"]
    assert reductions(file.replace(image_size=32)) == ["dataset images.npz"]
    few = TrainConfig.for_dataset("imagenet", "DARTS_V2", epochs=5, init_channels=8)
    assert reductions(few) == ["epochs 5 of 250", "init_channels 8 of 48"]
    assert reductions(SearchConfig.for_dataset("cifar10", epochs=200)) == []


ZERO_ORDER = ("mgs", "rs", "gld", "lizo")


@pytest.mark.parametrize("preset", [None, "paper", "released"])
@pytest.mark.parametrize("algo", list(METHODS))
def test_every_method_has_full_size_by_default(algo, preset):
    if algo in SOLVERS and algo not in ZERO_ORDER:  # not in the paper
        preset = None
    for dataset in ("cifar10", "imagenet"):
        assert reductions(SearchConfig.for_dataset(dataset, algo, preset=preset)) == []


def search_of(algo: str, **fields) -> SearchConfig:
    return SearchConfig.for_dataset("cifar10", algo, **fields)


@pytest.mark.parametrize("algo", ZERO_ORDER)
def test_a_search_with_fewer_samples_or_steps_is_smaller(algo):
    assert reductions(search_of(algo, inner_steps=3)) == ["inner_steps 3 of 10"]
    assert reductions(search_of(algo, inner_steps=0)) == ["inner_steps 0 of 10"]
    assert reductions(search_of(algo, solver={"n_samples": 2})) == ["n_samples 2 of 4"]
    larger = search_of(algo, solver={"n_samples": 8}, inner_steps=20)
    assert reductions(larger) == []
    assert reductions(larger.replace(update_period=20)) == []
    assert reductions(larger.replace(update_period=1)) == []
    assert reductions(larger.replace(update_period=391)) == ["update_period 391, not 20"]
    for inner in ("first", "second"):
        assert reductions(search_of(algo, inner=inner)) == [f"inner {inner}, not sgd"]
    assert reductions(search_of(algo, partial_channels=4)) == ["partial_channels 4, not 1"]


def test_the_radii_of_gld_are_its_samples():
    assert reductions(search_of("gld", solver={"min_radius": 1.0})) == ["n_samples 2 of 4"]
    assert reductions(search_of("gld", solver={"max_radius": 0.2, "min_radius": 0.2})) == [
        "n_samples 1 of 4"
    ]
    assert reductions(search_of("gld", solver={"min_radius": 1e-3})) == []


@pytest.mark.parametrize("algo", ["darts1", "darts2", "pc", "random_ws", "es"])
def test_steps_of_candidates_are_none_of_a_baseline(algo):
    assert reductions(search_of(algo, inner_steps=1)) == []
    if algo != "random_ws":
        assert reductions(search_of(algo, update_period=5)) == ["update_period 5, not 1"]


def test_pc_has_its_own_share_of_channels():
    assert reductions(search_of("pc", partial_channels=8)) == ["partial_channels 8, not 4"]


def test_merged_kernels_are_a_smaller_supernet_than_that_of_other_methods():
    assert reductions(search_of("mgs", merge_kernels=True)) == ["merge_kernels"]
    assert reductions(search_of("merge_nas")) == []


def test_rome_samples_seven_cells_and_gdas_one():
    assert reductions(search_of("rome", sampled_paths=3)) == ["sampled_paths 3 of 7"]
    assert reductions(search_of("gdas"), TrainConfig.for_dataset("cifar10", "DARTS_V2")) == []


def test_smaller_images_are_named():
    assert reductions(search_of("mgs", image_size=16)) == ["image_size 16 of 32"]
    assert reductions(search_of("mgs", image_size=32)) == []
    train = TrainConfig.for_dataset("imagenet", "DARTS_V2", image_size=128)
    assert reductions(train) == ["image_size 128 of 224"]


@pytest.mark.parametrize("name", ["n_samples", "inner_steps"])
def test_searches_that_compare_n_or_m_are_as_large_as_the_largest(name):
    """Tables 5 and 6 of the paper."""

    def searches(*values, algo="mgs"):
        changes = [{"solver": {name: n}} if name == "n_samples" else {name: n} for n in values]
        return [[search_of(algo, **change)] for change in changes]

    paper = 4 if name == "n_samples" else 10
    assert reductions_of_all(searches(2, paper, 2 * paper)) == []
    assert reductions_of_all(searches(2, 3)) == [f"{name} 2 of {paper}", f"{name} 3 of {paper}"]
    assert reductions_of_all(searches(2)) == [f"{name} 2 of {paper}"]
    # Each method by itself.
    both = [*searches(2), *searches(2, paper, algo="rs")]
    assert reductions_of_all(both) == [f"{name} 2 of {paper}"]
    assert reductions_of_all([[TrainConfig.for_dataset("cifar10", "DARTS_V2")]]) == []


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

"""The published genotypes: their spaces, and the published sizes of their networks."""

import re

import pytest
import torch

from zoopt_nas import nas
from zoopt_nas.nas.networks.counting import count_parameters
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.genotype import CELL_KINDS, GENOTYPES
from zoopt_nas.nas.networks.spaces import SPACES

IN_S1_TO_S4 = [
    f"{method}_{space}_{dataset}"
    for method in ("SDARTS_RS", "SDARTS_ADV", "PCDARTS")
    for dataset in ("CIFAR10", "CIFAR100", "SVHN")
    for space in ("S1", "S2", "S3", "S4")
]
IN_DARTS = ["DARTS_V1", "DARTS_V2", "PDARTS", "PCDARTS", "PCDARTS_IMAGENET", "SDARTS_RS"]
IN_DARTS += ["SDARTS_ADV"]
SPACE_OF = dict.fromkeys(IN_DARTS, "darts")
SPACE_OF |= {name: re.findall(r"_(S\d)_", name)[0].lower() for name in IN_S1_TO_S4}

# Millions, with one digit: Liu et al. (2019), Table 1; Chen et al. (2019), Table 1; Xu et al.
# (2020), Table 1; Chen and Hsieh (2020), Table 2.
ON_CIFAR_10 = {
    "DARTS_V2": 3.3,
    "PDARTS": 3.4,
    "PCDARTS": 3.6,
    "SDARTS_ADV": 3.3,
}
# The released cells that have other sizes than their papers say: 3.3 M and 3.4 M.
RELEASED_ON_CIFAR_10 = {"DARTS_V1": 3_169_414, "SDARTS_RS": 3_606_166}
# Millions: Liu et al. (2019), Table 3; Chen et al. (2019), Table 2; Xu et al. (2020), Table 2.
# Their multiply-adds are in test_network.py.
ON_IMAGENET = {"DARTS_V2": 4.7, "PDARTS": 4.9, "PCDARTS": 5.3, "PCDARTS_IMAGENET": 5.3}


def network(name: str, size: tuple[int, int, int], stem: str) -> DartsNetwork:
    with torch.device("meta"):
        return DartsNetwork(GENOTYPES[name], *size, stem=stem)


def test_the_names():
    assert list(GENOTYPES) == list(SPACE_OF)
    assert all(nas.load_architecture(name) is GENOTYPES[name] for name in SPACE_OF)


@pytest.mark.parametrize("name", SPACE_OF)
def test_every_cell_is_in_its_space(name):
    space = SPACES[SPACE_OF[name]]
    for kind in CELL_KINDS:
        edges = GENOTYPES[name].edges(kind)
        assert len(edges) == 8
        candidates = dict(zip(space.edges, space.candidates(kind), strict=True))
        for i, (operation, source) in enumerate(edges):
            assert operation in candidates[source, 2 + i // 2]
        for first, second in zip(edges[::2], edges[1::2], strict=True):
            assert first[1] != second[1]


@pytest.mark.parametrize("name", ON_CIFAR_10)
def test_parameters_on_cifar_10(name):
    n_parameters = count_parameters(network(name, (10, 36, 20), "cifar"))
    assert round(n_parameters / 1e6, 1) == ON_CIFAR_10[name]


@pytest.mark.parametrize("name", RELEASED_ON_CIFAR_10)
def test_parameters_of_released_cells(name):
    n_parameters = count_parameters(network(name, (10, 36, 20), "cifar"))
    assert n_parameters == RELEASED_ON_CIFAR_10[name]


@pytest.mark.parametrize("name", ON_IMAGENET)
def test_parameters_on_imagenet(name):
    n_parameters = count_parameters(network(name, (1000, 48, 14), "imagenet"))
    assert round(n_parameters / 1e6, 1) == ON_IMAGENET[name]

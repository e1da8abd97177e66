"""S3 and S4 with two nodes, as an installed package brings spaces of its own."""

from zoopt_nas.nas.networks.darts_space import DartsSpace, cell_edges
from zoopt_nas.nas.networks.spaces import SPACES


def _small(name: str) -> DartsSpace:
    cell = SPACES[name].normal[:1] * len(cell_edges(2))
    return DartsSpace(f"small_{name}", normal=cell, reduce=cell, n_nodes=2)


SMALL_S3, SMALL_S4 = _small("s3"), _small("s4")

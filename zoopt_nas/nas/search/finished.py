"""Continue the supernet of a finished search with another method."""

from __future__ import annotations

import torch

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.runs.folder import ARCHITECTURES, RunFolder
from zoopt_nas.nas.search.algorithm import Search
from zoopt_nas.nas.settings.config import SearchConfig

# What both searches must agree on, so that the weights fit and mean the same.
_AGREED = (
    *("dataset", "space", "relaxation", "edge_normalization", "partial_channels"),
    *("merge_kernels", "init_channels", "n_cells", "paths"),
)


def continue_finished(search: Search) -> None:
    """Give a search the weights and alpha of the finished one that its config names.

    Raises:
        InvalidValueError: No folder is given, or a setting differs.
        RunError: The folder holds no search with weights.
    """
    config = search.config
    if config.supernet is None:
        raise InvalidValueError(
            f"supernet must be the folder of a finished search with {config.algo}, got none"
        )
    folder = RunFolder.open(config.supernet)
    if folder.kind != "search":
        raise RunError(f"{folder.path} is not the folder of a search")
    finished = folder.config(SearchConfig)
    for name in _AGREED:
        here, there = getattr(config, name), getattr(finished, name)
        if here != there:
            raise InvalidValueError(f"{name} must be {there} as in {folder.path}, got {here}")
    state, rows = folder.load_checkpoint(search.device), folder.rows(ARCHITECTURES)
    if state is None or not rows:
        raise RunError(f"{folder.path} has no trained supernet")
    # Auxiliary skip connections have faded out.
    weights = {
        name: value
        for name, value in state["own"]["supernet"].items()
        if name in search.supernet.state_dict()
    }
    try:
        search.start_from(weights, torch.tensor(rows[-1]["alpha"], device=search.device))
    except RuntimeError as error:
        raise RunError(f"the supernet in {folder.path} does not fit") from error

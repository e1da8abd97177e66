"""Weight steps on single paths: each trains one operation per edge (paper, section 6).

A path is a discrete cell, trained in its own time and memory. ``uniform`` draws it uniformly (SPOS:
Guo et al., 2020). ``fair`` draws without replacement and trains as many paths in a step as an edge
has candidates, which is strict fairness (FairNAS: Chu et al., 2021): in NAS-Bench-201 every step
trains each operation of each edge once. In cells that keep two edges of each node, all operations
of a node are trained once before any is trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.space import UNUSED, EdgeGroup, Path, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.settings.config import FAIR, MIXED, SearchConfig
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.weight_step import weight_step

Token = tuple[int, int]
"""``(edge, candidate)``."""


def path_sampler(
    config: SearchConfig, space: SearchSpace, generator: torch.Generator
) -> PathSampler | None:
    """Return the sampler of a config; None with the mixed supernet."""
    if config.paths == MIXED:
        return None
    return PathSampler(space, is_fair=config.paths == FAIR, generator=generator)


class PathSampler:
    """Draws the paths of weight steps.

    Args:
        space: The search space.
        is_fair: Whether to draw operations without replacement, several paths a step.
        generator: A CPU generator.
    """

    def __init__(self, space: SearchSpace, *, is_fair: bool, generator: torch.Generator) -> None:
        self._groups, self._n_edges = space.groups, len(space.sizes)
        self._is_fair, self._generator = is_fair, generator
        self._n_paths = max(space.sizes) if is_fair else 1
        self._decks: list[list[Token]] = [[] for _ in self._groups]

    def next_paths(self) -> list[Path]:
        """Return the paths of the next weight step."""
        return [self._next_path() for _ in range(self._n_paths)]

    def state_dict(self) -> dict[str, Any]:
        """Return the generator and the operations that are still to be drawn."""
        return {"generator": self._generator.get_state(), "decks": [list(d) for d in self._decks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._generator.set_state(state["generator"].cpu())
        self._decks = [[(int(edge), int(c)) for edge, c in deck] for deck in state["decks"]]

    def _next_path(self) -> Path:
        path = [UNUSED] * self._n_edges
        for k, group in enumerate(self._groups):
            tokens = self._dealt(k, group) if self._is_fair else self._drawn(group)
            for edge, choice in tokens:
                path[edge] = choice
        return tuple(path)

    def _drawn(self, group: EdgeGroup) -> list[Token]:
        """Draw the kept edges uniformly, and an operation uniformly on each."""
        kept = torch.randperm(len(group.edges), generator=self._generator)[: group.n_kept]
        tokens = []
        for i in kept.tolist():
            choices = group.choices[i]
            pick = torch.randint(len(choices), (), generator=self._generator)
            tokens.append((group.edges[i], choices[int(pick)]))
        return tokens

    def _dealt(self, k: int, group: EdgeGroup) -> list[Token]:
        """Take the next operations on different edges from a shuffled deck of all of them."""
        deck, tokens = self._decks[k], list[Token]()
        while len(tokens) < group.n_kept:
            taken = {edge for edge, _ in tokens}
            usable = next((i for i, (edge, _) in enumerate(deck) if edge not in taken), None)
            if usable is None:
                deck += self._shuffled(group)
            else:
                tokens.append(deck.pop(usable))
        return tokens

    def _shuffled(self, group: EdgeGroup) -> list[Token]:
        tokens = [
            (edge, choice)
            for edge, choices in zip(group.edges, group.choices, strict=True)
            for choice in choices
        ]
        order = torch.randperm(len(tokens), generator=self._generator)
        return [tokens[i] for i in order.tolist()]


class PathStep:
    """A weight step on the sum of the losses of some paths, with the memory of one path.

    Args:
        supernet: The supernet.
        optimizer: The optimizer of its weights.
        grad_clip: Bound on the norm of the gradient.
        execution: Precision; paths are not compiled, because they differ from step to step.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: torch.optim.SGD,
        grad_clip: float | None,
        execution: Execution,
    ) -> None:
        self._supernet, self._optimizer = supernet, optimizer
        self._grad_clip, self._execution = grad_clip, execution

    def __call__(
        self, images: Tensor, labels: Tensor, paths: Sequence[Path]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step; return the mean loss (), and logits and labels of all paths, joined."""
        losses, logits = [], []

        def one_by_one() -> Iterator[Tensor]:
            for path in paths:
                with self._execution.precision():
                    out = self._supernet(images, path)
                    loss = F.cross_entropy(out, labels)
                losses.append(loss.detach())
                logits.append(out.detach())
                yield loss

        weight_step(one_by_one(), self._optimizer, self._grad_clip)
        return torch.stack(losses).mean(), torch.cat(logits), labels.repeat(len(paths))

"""States of past epochs, kept so that a search can return to one (method ``ada``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Snapshots:
    """CPU copies of the states after the last epochs.

    Only the epochs that the method may still return to are kept: see
    ``AlphaUpdater.oldest_return``.
    """

    def __init__(self) -> None:
        self._states: dict[int, dict[str, Any]] = {}  # by epoch, from 0

    @property
    def epochs(self) -> list[int]:
        """The kept epochs, oldest first."""
        return sorted(self._states)

    def add(self, epoch: int, state: dict[str, Any], oldest: int) -> None:
        """Store a copy of the state after ``epoch``, and drop epochs before ``oldest``."""
        self.forget(oldest)
        if epoch >= oldest:
            self._states[epoch] = _on_host(state)

    def forget(self, oldest: int) -> None:
        """Drop the epochs before ``oldest``."""
        self._states = {epoch: state for epoch, state in self._states.items() if epoch >= oldest}

    def go_back(self, epoch: int) -> dict[str, Any]:
        """Return the state after ``epoch`` and drop later ones, which will be run again."""
        self._states = {at: state for at, state in self._states.items() if at <= epoch}
        return self._states[epoch]

    def state_dict(self) -> dict[str, Any]:
        """Return the kept states."""
        return {"states": dict(self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the kept states."""
        self._states = {int(epoch): _on_host(value) for epoch, value in state["states"].items()}


def _on_host(state: Any) -> Any:
    """Return a copy of a nested state on the CPU."""
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_on_host(value) for value in state]
    return state.detach().cpu().clone() if isinstance(state, Tensor) else state

"""States of past epochs, kept so that a search can return to one (``ada``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Snapshots:
    """The state after each of the last epochs, on the host.

    It keeps exactly the epochs that the method may still return to, however its returns follow each
    other: see ``AlphaUpdater.oldest_return``.
    """

    def __init__(self) -> None:
        self._states: dict[int, dict[str, Any]] = {}  # by epoch, from 0

    @property
    def epochs(self) -> list[int]:
        """The epochs that are kept, oldest first."""
        return sorted(self._states)

    def add(self, epoch: int, state: dict[str, Any], oldest: int) -> None:
        """Keep a copy of the state after ``epoch``, and only epochs from ``oldest`` on."""
        self.forget(oldest)
        if epoch >= oldest:
            self._states[epoch] = _on_host(state)

    def forget(self, oldest: int) -> None:
        """Forget the epochs before ``oldest``."""
        self._states = {epoch: state for epoch, state in self._states.items() if epoch >= oldest}

    def go_back(self, epoch: int) -> dict[str, Any]:
        """Return the state after ``epoch`` and forget later ones, which will be made again."""
        self._states = {at: state for at, state in self._states.items() if at <= epoch}
        return self._states[epoch]

    def state_dict(self) -> dict[str, Any]:
        return {"states": dict(self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states = {int(epoch): _on_host(value) for epoch, value in state["states"].items()}


def _on_host(state: Any) -> Any:
    """A copy of a nested state that takes no memory of the device."""
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_on_host(value) for value in state]
    return state.detach().cpu().clone() if isinstance(state, Tensor) else state

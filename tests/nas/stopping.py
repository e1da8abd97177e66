"""An observer that stops runs."""

from __future__ import annotations

from zoopt_nas.nas.runs.loop import Observer


class StopAt(Observer):
    """Stops before the step that follows ``n_steps`` steps of this process."""

    def __init__(self, *n_steps: int) -> None:
        self.at, self.n_steps = set(n_steps), 0

    def on_step(self, progress):
        self.n_steps += 1

    def should_stop(self):
        return self.n_steps in self.at

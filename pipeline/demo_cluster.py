"""The demo on a cluster of this machine that loses a node half way: the score is that of a demo left alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.nodes import Nodes, started
from pipeline import worknotes
from pipeline.events import Event, Listed, Opened, Received

Note = Callable[[str], None]


class NodeLost:
    """Watches a run, and once half of its videos are over kills a node at work: one that runs the models, if there is one."""

    def __init__(self, nodes: Nodes, note: Note) -> None:
        self._nodes, self._note = nodes, note
        self._run, self._due, self._over, self.is_lost = "", 0, 0, False

    def __call__(self, event: Event) -> None:
        """Takes note."""
        match event:
            case Opened(run_id):
                self._run = run_id
            case Listed(videos):
                self._due = videos
            case Received(delta=delta):
                self._over += delta.videos
                if not self.is_lost and self._due <= 2 * self._over < 2 * self._due:
                    self._lose()

    def _lose(self) -> None:
        busy = sorted((note for _, note in worknotes.read(self._run)), key=lambda note: note.step in ("decode", "stage parts"))
        if not busy:  # between two tables: the next receipt is not far
            return
        self.is_lost = True
        number = self._nodes.lose(busy[0].node)
        units = ", ".join(sorted({unit.uri.rpartition("/")[2] for unit in busy[0].units}))
        self._note(
            f"half way: node {number} of {len(self._nodes.workers)} is killed, in {busy[0].step} of {units or 'nothing'}"
        )


@contextmanager
def losing(workers: int, note: Note) -> Iterator[tuple[str, NodeLost]]:
    """A cluster of `workers` nodes on this machine, its address, and what has to watch the run; gone at the end."""
    note(f"starting a Ray head and {workers} nodes of one CPU each on this machine")
    with started(workers) as nodes:
        before = dict(os.environ)
        os.environ.update(nodes.env)
        loss = NodeLost(nodes, note)
        try:
            yield nodes.address, loss
            if not loss.is_lost:
                note("no node was killed: the run was not long enough")
        finally:
            os.environ.clear()
            os.environ.update(before)

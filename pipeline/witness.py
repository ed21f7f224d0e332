"""Asks the nodes of a cluster what their workers are at, or were at when they died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline import worknotes
from pipeline.summary import duration
from pipeline.worknotes import AtUnit, Note
from schemas.errors import one_line

ASK_S = 30.0  # for an answer; a node may first have to start a process for it
MOST_LISTED = 20


@dataclass(frozen=True)
class Answers:
    """What was found out: notes of the nodes that answered, by their names, and the names of those that did not."""

    notes: Mapping[str, Sequence[Note]]
    silent: Sequence[str] = ()

    def troubled(self, turn: int) -> dict[str, Note]:
        """By unit: the note of a worker that died, or failed, at it in a round."""
        of_round = (note for notes in self.notes.values() for note in notes if note.turn == turn)
        ended = (note for note in of_round if note.state == "failed" or note.has_died)
        return {unit.name: note for note in ended for unit in note.units}


def ask(run: str, timeout_s: float = ASK_S) -> Answers:
    """Asks every node that is up. Notes of workers that are no more are given once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked, names = {}, {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=where).remote(run, node["NodeID"])] = node["NodeID"]
            names[node["NodeID"]] = _name(node)
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    found: dict[str, Sequence[Note]] = {}
    for answer in done:
        with contextlib.suppress(ray.exceptions.RayError):  # a node that was lost just now is one that does not answer
            found[asked[answer]] = ray.get(answer)
    for answer in set(asked) - set(done):
        ray.cancel(answer, force=True)
    silent = sorted(names[node] for node in names.keys() - found.keys())
    return Answers({names[node]: notes for node, notes in found.items()}, silent)


def _name(node: Mapping[str, str]) -> str:
    address, host = node.get("NodeManagerAddress", ""), node.get("NodeManagerHostname", "")
    return f"{host} ({address})" if host and host != address else address


def _look(run: str, node: str) -> list[Note]:
    """Runs on a node."""
    found = worknotes.read(run, [node])
    for path, note in found:
        if note.state == "failed" or note.owner.is_gone() is True:
            path.unlink(missing_ok=True)
    return [note for _, note in found]


def outstanding(answers: Answers, missing: Collection[str], now: float | None = None) -> list[str]:
    """Lines for whoever is woken up by a run that stands still: which of the missing units (`unit_id`s) are where.

    `now`: seconds since 1970.
    """
    now = time.time() if now is None else now
    busy = [
        (note.since, place, note, unit)
        for place, notes in answers.notes.items()
        for note in notes
        if note.state == "working" and not note.has_died
        for unit in note.units
        if unit.name in missing
    ]
    busy.sort(key=lambda found: (found[0], found[1], found[3].name))
    waiting = len(missing) - len({unit.name for *_, unit in busy})
    lines = [_line(note, unit, place, now - since) for since, place, note, unit in busy[:MOST_LISTED]]
    if len(busy) > MOST_LISTED:
        lines.append(f"and {len(busy) - MOST_LISTED} more")
    lines += [f"node {name} does not answer" for name in answers.silent]
    if waiting:
        lines.append(f"{waiting:,} {'more wait' if busy else 'wait, and no worker is at any of them'}")
    if busy:
        lines.append("a worker's stack: py-spy dump --pid PID on its node; a video that is there every time can be moved away")
    else:
        lines.append(
            "is there room in the cluster for the run's tasks and actors? `ray status` says what is asked for and free"
        )
    return lines


def _line(note: Note, unit: AtUnit, place: str, took_s: float) -> str:
    of = f", unit {unit.unit + 1} of {unit.units}" if unit.units > 1 else ""
    since = time.strftime("%H:%M:%S", time.gmtime(note.since))
    return f"{one_line(unit.uri)}{of}: {note.step} since {since} UTC ({duration(took_s)}), pid {note.owner.pid} on {place}"

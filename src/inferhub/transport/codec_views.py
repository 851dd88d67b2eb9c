"""A gateway's view of the fleet as steps from one to the next: written by orchestrators, read by gateways.

Used by `control_server` and `control`. Pure: no I/O and no clock of its own.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable

from inferhub.core.fleet import FleetView, Member
from inferhub.core.serving import WorkerStatus, after, alike, beat_of
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import orchestrator_pb2 as pb

_log = logging.getLogger(__name__)

MAX_LIVES = 32_768
"""Ids whose last life is remembered, those that left included."""


def encode_step(before: FleetView | None, view: FleetView) -> pb.WatchReply:
    """What changes `before` into `view`; without it, all of the view."""
    known = {m.worker.id: m.worker for m in before.members} if before else {}
    step = pb.WatchReply(epoch=view.epoch, revision=view.revision)
    for member in view.members:
        worker, old = member.worker, known.pop(member.worker.id, None)
        if member.is_suspect:
            step.suspects.append(worker.id)
        if worker is old:
            continue
        if old is not None and alike(old, worker):
            step.beats.append(nouns.encode_beat(beat_of(worker)))
        else:
            step.members.append(nouns.encode_member(member))
    step.gone.extend(known)
    return step


class ViewReader:
    """The whole view again, over any number of streams of steps; believes no step that goes back in time."""

    def __init__(self, hold_s: float) -> None:
        """`hold_s`: how long workers are still shown that a restarted orchestrator does not know yet."""
        self._hold_s = hold_s
        self._epoch = ""
        self._revision = -1
        self._workers: dict[str, WorkerStatus] = {}
        self._suspects: frozenset[str] = frozenset()
        self._held_until_s: dict[str, float] = {}
        self._lives: OrderedDict[str, int] = OrderedDict()
        self._is_first = True

    def begin(self) -> None:
        """A new stream: its first step has all members."""
        self._is_first = True

    def take(self, step: pb.WatchReply, now_s: float) -> FleetView | None:
        """The view after this step; None where it changed nothing. Raises `ValueError` where it is old or
        does not fit what came before: nothing is changed then, and the stream is of no more use."""
        self._check_time(step)
        workers = {} if self._is_first else dict(self._workers)
        self._bring_in(step, workers)
        for id_ in step.gone:
            workers.pop(id_, None)
        before = self._workers, self._suspects, self._revision, self._epoch
        if self._is_first:
            self._hold(step, workers, now_s)
        for id_ in [i for i in self._held_until_s if i in step.gone or i in _named(step)]:
            del self._held_until_s[id_]
        self._workers, self._suspects = workers, frozenset(step.suspects)
        self._epoch, self._revision, self._is_first = step.epoch, step.revision, False
        self._let_go(now_s)
        after_ = self._workers, self._suspects, self._revision, self._epoch
        return None if before == after_ else self.view()

    def view(self) -> FleetView:
        doubtful = self._suspects | self._held_until_s.keys()
        members = tuple(Member(worker, id_ in doubtful) for id_, worker in self._workers.items())
        return FleetView(self._epoch, max(self._revision, 0), members)

    def _check_time(self, step: pb.WatchReply) -> None:
        if step.epoch == self._epoch:
            if step.revision < self._revision:
                raise ValueError(f"revision {step.revision} after {self._revision} of the same orchestrator")
        elif not self._is_first:
            raise ValueError("another life of the orchestrator in the middle of a stream")

    def _bring_in(self, step: pb.WatchReply, workers: dict[str, WorkerStatus]) -> None:
        for member in step.members:
            worker = nouns.decode_worker(member.worker)
            if worker.incarnation < self._lives.get(worker.id, 0):
                # An orchestrator that was cut off still shows a life that is over.
                _log.warning("Ignored an old life of worker %s in the view of the fleet", worker.id)
                if worker.id in self._workers:
                    workers[worker.id] = self._workers[worker.id]
                continue
            self._remember(worker)
            workers[worker.id] = worker
        for message in step.beats:
            if message.incarnation < self._lives.get(message.id, 0):
                continue  # Of the life that was ignored above.
            old = workers.get(message.id)
            if old is None or old.incarnation != message.incarnation:
                raise ValueError(f"figures of worker {message.id!r}, which this view does not have")
            workers[message.id] = after(old, nouns.decode_beat(message))

    def _remember(self, worker: WorkerStatus) -> None:
        self._lives[worker.id] = worker.incarnation
        self._lives.move_to_end(worker.id)
        while len(self._lives) > MAX_LIVES:
            self._lives.popitem(last=False)

    def _hold(self, step: pb.WatchReply, workers: dict[str, WorkerStatus], now_s: float) -> None:
        """An orchestrator that has just started knows nobody: that is no reason to call nobody."""
        self._held_until_s = {}
        if step.epoch == self._epoch:
            return
        for id_, worker in self._workers.items():
            if id_ not in workers:
                workers[id_] = worker
                self._held_until_s[id_] = now_s + self._hold_s

    def _let_go(self, now_s: float) -> None:
        for id_ in [id_ for id_, until_s in self._held_until_s.items() if now_s >= until_s]:
            del self._held_until_s[id_]
            del self._workers[id_]


def _named(step: pb.WatchReply) -> Iterable[str]:
    return {member.worker.id for member in step.members}

"""One transaction on the log, collected in memory and written in a handful of statements."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from training_fsm.domain.errors import ChampionMoved, Conflict
from training_fsm.domain.events import (
    ArtifactsReleased,
    AttemptFailed,
    ChampionPromoted,
    CheckpointSaved,
    CommandRefused,
    Event,
    FeaturesRequested,
    ParentResolved,
    RunClaimed,
    RunPaused,
    RunRequested,
)
from training_fsm.domain.evolve import evolve
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.inbound import LetterReceived
from training_fsm.domain.machine import destination
from training_fsm.domain.run import Run
from training_fsm.domain.states import State
from training_fsm.ports import Cause, InboxEntry
from training_fsm.store import statements as sql
from training_fsm.store.engine import APPEND_LOCK
from training_fsm.store.feature_configs import keep_feature_config
from training_fsm.store.hash_chain import GENESIS, Envelope

WORK_CHANNEL = "training_fsm_work"
"""Notified when a run becomes claimable."""


@dataclass(slots=True)
class _Head:
    """A run in this unit: as it was read (version 0: not there), and as it will be."""

    version: int
    token: int
    last_hash: bytes
    run: Run | None
    requested_at: datetime
    lease: str = "keep"
    lease_s: float = 0.0

    @property
    def changed(self) -> bool:
        return self.run is not None and self.run.version != self.version


class PostgresUnitOfWork:
    """Implements `ports.UnitOfWork`; `flush` writes what was collected."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        now = connection.execute(
            sa.text("SELECT pg_advisory_xact_lock_shared(:lock), clock_timestamp()"), {"lock": APPEND_LOCK}
        ).one()[1]
        assert isinstance(now, datetime)
        self.now = now
        self._heads: dict[str, _Head] = {}
        self._events: list[tuple[Envelope, bytes, bytes]] = []
        self._entries: list[InboxEntry] = []
        self._letters: list[dict[str, object]] = []
        self._checkpoints: list[dict[str, object]] = []
        self._released: list[dict[str, object]] = []
        self._feature_configs: dict[str, FeatureConfigVersionInfo] = {}
        self._claimable: list[str] = []

    def runs(self, run_ids: Sequence[str]) -> Mapping[str, Run]:
        """The runs as they stand in this unit; unknown ids are left out."""
        missing = sorted(set(run_ids) - self._heads.keys())
        if missing:
            rows = self._connection.execute(sql.READ_HEADS, {"ids": missing}).all()
            for run_id, version, token, last_hash, requested_at, run in rows:
                folded = Run.model_validate_json(run)
                self._heads[run_id] = _Head(version, token, bytes(last_hash), folded, requested_at)
            for run_id in missing:
                self._heads.setdefault(run_id, _Head(0, 0, GENESIS, None, self.now))
        return {run_id: run for run_id in run_ids if (run := self._heads[run_id].run) is not None}

    def runs_awaiting(self, request_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Ids of the runs whose open or last feature request is one of these, by request id."""
        rows = self._connection.execute(
            sa.text(
                "SELECT request_id, array_agg(run_id) AS run_ids FROM run_heads WHERE request_id = ANY(:ids) GROUP BY 1"
            ),
            {"ids": list(request_ids)},
        )
        return {row.request_id: row.run_ids for row in rows}

    def claimable(self, run_id: str | None) -> str | None:
        """A due run that no live lease holds, locked for this unit; longest due first."""
        found = self._connection.execute(sql.CLAIMABLE, {"run_id": run_id}).scalar_one_or_none()
        return None if found is None else str(found)

    def holds(self, run_id: str, after_version: int, events: Sequence[Event]) -> bool:
        """Whether a run's log has exactly these events next after a version."""
        stored = self._connection.execute(
            sql.EVENTS_AFTER, {"stream": f"run-{run_id}", "version": after_version, "limit": len(events)}
        )
        return [tuple(row) for row in stored] == [(event.type(), event.model_dump_json()) for event in events]

    def seen_commands(self, keys: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """Which of these (source, command id) are in the inbox already, or will be with this unit."""
        if not keys:
            return frozenset()
        rows = self._connection.execute(
            sa.text(
                "SELECT source, command_id FROM commands WHERE (source, command_id) IN "
                "(SELECT * FROM unnest(cast(:sources AS text[]), cast(:ids AS text[])))"
            ),
            {"sources": [source for source, _ in keys], "ids": [command_id for _, command_id in keys]},
        )
        return frozenset((row.source, row.command_id) for row in rows)

    def append(self, run_id: str, events: Sequence[Event], cause: Cause) -> Run:
        """Add events to a run and fold them. Raises TransitionRefused where the machine has no such arrow."""
        self.runs([run_id])
        head = self._heads[run_id]
        for event in events:
            before = head.run
            to_state = destination(before, event)
            head.run = evolve(before, run_id, event, to_state)
            states = (before.state if before else None, to_state)
            head.last_hash = self._record(f"run-{run_id}", head.run.version, event, cause, head.last_hash, states)
            self._project(run_id, event, head)
            if head.run.claimable and not (before and before.claimable):
                self._claimable.append(run_id)
        assert head.run is not None, "a run has at least one event"
        return head.run

    def refuse(self, entry: InboxEntry, cause: Cause) -> None:
        """Record a refusal, in the inbox and as an event of the command's own stream."""
        self._entries.append(entry)
        event = CommandRefused(
            command_id=entry.command_id,
            command_source=entry.source,
            command_type=entry.command_type,
            run_id=entry.run_id,
            reason=entry.reason or "",
        )
        # Sources are paths, ids may be: escaped, or `a` + `b/c` and `a/b` + `c` would share a stream.
        command_id = entry.command_id.replace("%", "%25").replace("/", "%2F")
        self._record(f"command-{entry.source}/{command_id}", 1, event, cause)

    def accept(self, entry: InboxEntry) -> None:
        """Record an accepted command in the inbox."""
        self._entries.append(entry)

    def dead_letter(self, letter: LetterReceived, cause: Cause) -> None:
        """Keep an unreadable message whole; the same letter id twice is kept once."""
        letter_id = letter.letter_id
        known = self._connection.execute(
            sa.text("SELECT 1 FROM dead_letters WHERE letter_id = :id"), {"id": letter_id}
        ).first()
        if known or any(row["letter_id"] == letter_id for row in self._letters):
            return
        row = letter.event.model_dump(include={"topic", "partition", "offset", "reason"})
        row |= {"letter_id": letter_id, "message": letter.message, "received_at": self.now, "key": letter.key}
        pairs = [[name, base64.b64encode(content).decode()] for name, content in letter.headers]
        self._letters.append(row | {"headers": json.dumps(pairs)})
        self._record(f"letter-{letter_id}", 1, letter.event, cause)

    def promote(self, promotion: ChampionPromoted, after_version: int, cause: Cause) -> None:
        """Make a version its model's champion. Raises ChampionMoved where the model's stream is not at that version."""
        stream = f"model-{promotion.name}"
        last = self._connection.execute(sql.CHAMPIONS, {"stream": stream}).one_or_none()
        version, previous = (0, GENESIS) if last is None else (last.version, bytes(last.hash))
        if version != after_version:
            raise ChampionMoved(f"model {promotion.name}: its stream is at version {version}, not {after_version}")
        self._record(stream, version + 1, promotion, cause, previous)

    def _record(
        self,
        stream: str,
        version: int,
        event: Event,
        cause: Cause,
        previous: bytes = GENESIS,
        states: tuple[State | None, State | None] = (None, None),
    ) -> bytes:
        """Add an event behind the one with hash `previous`; its own hash."""
        from_state, to_state = states
        envelope = Envelope(
            stream=stream,
            version=version,
            type=event.type(),
            schema_version=event.schema_version,
            occurred_at=self.now,
            from_state=from_state and from_state.value,
            to_state=to_state and to_state.value,
            actor=cause.actor,
            causation_id=cause.causation_id,
            correlation_id=cause.correlation_id,
            payload=event.model_dump_json().encode(),
        )
        digest = envelope.hash(previous)
        self._events.append((envelope, previous, digest))
        return digest

    def _project(self, run_id: str, event: Event, head: _Head) -> None:
        match event:
            case RunClaimed(lease_s=lease_s):
                head.lease, head.lease_s = "set", lease_s
            case AttemptFailed() | FeaturesRequested() | RunPaused():
                head.lease = "clear"
            case CheckpointSaved(step=step, artifact=artifact):
                row: dict[str, object] = {"run_id": run_id, "step": step, "saved_at": self.now}
                self._checkpoints.append(row | artifact.model_dump())
            case ArtifactsReleased(artifacts=artifacts):
                released = {"run_id": run_id, "version": head.run and head.run.version, "released_at": self.now}
                self._released += ({**released, **artifact.model_dump()} for artifact in artifacts)
            case RunRequested(feature_config=config) | ParentResolved(feature_config=config) if config is not None:
                self._feature_configs.setdefault(config.hash, config)
            case _:
                pass
        if head.run is not None and head.run.ended:
            head.lease = "clear"

    def flush(self) -> None:
        """Write everything. Raises Conflict where a head has moved since it was read."""
        if self._entries:
            names = ("source", "command_id", "command_type", "run_id", "outcome", "reason")
            self._connection.execute(sql.INSERT_COMMANDS, _columns(self._entries, names) | {"now": self.now})
        changed = sorted(run_id for run_id, head in self._heads.items() if head.changed)
        if read := [run_id for run_id in changed if self._heads[run_id].version]:
            # Heads in run-id order, then events, as a claim takes them: two units cannot wait for each other.
            self._connection.execute(sql.LOCK_HEADS, {"ids": read})
        if self._events:
            self._connection.execute(sql.INSERT_EVENTS, _event_columns(self._events))
        if new := [self._row(run_id) for run_id in changed if self._heads[run_id].version == 0]:
            arrays = {name: [row[name] for row in new] for name in new[0]}
            self._connection.execute(sql.INSERT_HEADS, arrays | {"now": self.now})
        for run_id in changed:
            head = self._heads[run_id]
            if head.version and self._connection.execute(sql.WRITE_HEAD, self._row(run_id)).rowcount != 1:
                raise Conflict(f"run {run_id} has moved on since version {head.version}")
        for statement, rows in (
            (sql.INSERT_LETTERS, self._letters),
            (sql.INSERT_CHECKPOINTS, self._checkpoints),
            (sql.INSERT_RELEASED, self._released),
        ):
            if rows:
                self._connection.execute(statement, rows)
        for hash_ in sorted(self._feature_configs):
            keep_feature_config(self._connection, self._feature_configs[hash_])
        claimable = [run_id for run_id in self._claimable if (run := self._heads[run_id].run) and run.claimable]
        if claimable:
            self._connection.execute(sql.NOTIFY, [{"channel": WORK_CHANNEL, "id": run_id} for run_id in claimable])

    def _row(self, run_id: str) -> dict[str, object]:
        head = self._heads[run_id]
        assert head.run is not None, "only changed heads are written"
        run = head.run
        until = self.now + timedelta(seconds=head.lease_s) if head.lease == "set" else None
        return {
            "run_id": run_id,
            "read_version": head.version,
            "read_token": head.token,
            "state": run.state.value,
            "claimable": run.claimable,
            "version": run.version,
            "token": run.token,
            "worker": run.worker,
            "keep_lease": head.lease == "keep",
            "lease_until": until,
            "due_at": run.due_at,
            "request_id": run.features.request_id if run.features else None,
            "model": run.model,
            "symbol": run.symbol,
            "timeframe": run.timeframe,
            "now": self.now,
            "last_hash": head.last_hash,
            "run": run.model_dump_json().encode(),
        }


def _columns(rows: Sequence[object], names: Sequence[str]) -> dict[str, object]:
    """One array for each column: a statement takes any number of rows at once."""
    return {name: [getattr(row, name) for row in rows] for name in names}


def _event_columns(events: Sequence[tuple[Envelope, bytes, bytes]]) -> dict[str, object]:
    names = (
        "stream", "version", "type", "schema_version", "occurred_at", "from_state", "to_state",
        "actor", "causation_id", "correlation_id", "payload",
    )  # fmt: skip
    columns = _columns([envelope for envelope, _, _ in events], names)
    columns["previous_hash"] = [previous for _, previous, _ in events]
    columns["hash"] = [digest for _, _, digest in events]
    return columns

"""The tables, as SQLAlchemy knows them. Migrations hold literals; a test compares the two."""

import sqlalchemy as sa

from training_fsm.domain.machine import arrows
from training_fsm.domain.states import State

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s",
    }
)


def allowed_transitions() -> tuple[str, ...]:
    """What the CHECK on events accepts, as `from/type/to`; streams without states have none."""
    runs = tuple(
        f"{'' if source is State.NEW else source.value}/{event}/{dest.value}" for source, event, dest in arrows()
    )
    return (*runs, "/champion_promoted/", "/command_refused/", "/log_restored/", "/message_dead_lettered/")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


events = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.BigInteger, sa.Identity(always=False), primary_key=True),
    _text("stream"),
    sa.Column("version", sa.Integer, nullable=False),
    _text("type"),
    sa.Column("schema_version", sa.SmallInteger, nullable=False),
    _time("occurred_at"),
    _text("from_state", nullable=True),
    _text("to_state", nullable=True),
    _text("actor"),
    _text("causation_id"),
    _text("correlation_id"),
    sa.Column("payload", sa.JSON, nullable=False, comment="exact text: the hash covers its bytes"),
    sa.Column("previous_hash", sa.LargeBinary, nullable=False, comment="hash of the event before it in its stream"),
    sa.Column("hash", sa.LargeBinary, nullable=False, comment="sha256 over the length-prefixed envelope"),
    sa.UniqueConstraint("stream", "version", name="events_stream_version_key"),
    sa.CheckConstraint(
        "coalesce(from_state, '') || '/' || type || '/' || coalesce(to_state, '') IN ("
        + ", ".join(f"'{transition}'" for transition in allowed_transitions())
        + ")",
        name="transition",
    ),
    sa.CheckConstraint("octet_length(payload::text) <= 524288", name="size"),
    sa.Index("events_champion_idx", "stream", "version", postgresql_where=sa.text("type = 'champion_promoted'")),
    comment="The log: append-only, one stream per run, command, dead letter or model name.",
)

log_places = sa.Table(
    "log_places",
    metadata,
    sa.Column(
        "place", sa.Text, primary_key=True, comment="cluster, timeline and table of events, as log_place() gives them"
    ),
    _time("since"),
    comment="Where the log may grow: after a restore not before it was compared with Kafka.",
)

run_heads = sa.Table(
    "run_heads",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    _text("state"),
    sa.Column("claimable", sa.Boolean, nullable=False, comment="there is work for a worker, now or when it is due"),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("token", sa.Integer, nullable=False, comment="fencing token: raised by every claim"),
    _text("worker", nullable=True),
    _time("lease_until", nullable=True),
    _time("due_at", nullable=True),
    _text("request_id", nullable=True),
    _text("model"),
    _text("symbol"),
    _text("timeframe"),
    _time("requested_at"),
    _time("changed_at"),
    sa.Column("last_hash", sa.LargeBinary, nullable=False),
    sa.Column("run", sa.JSON, nullable=False, comment="the folded state"),
    sa.Column("progress", sa.JSON, nullable=True, comment="what the last heartbeat said; no part of the log"),
    sa.Index("run_heads_work_idx", "due_at", postgresql_where=sa.text("claimable")),
    sa.Index(
        "run_heads_features_idx", "due_at", postgresql_where=sa.text("state = 'AWAITING_FEATURES' AND NOT claimable")
    ),
    sa.Index("run_heads_request_id_idx", "request_id"),
    sa.Index("run_heads_requested_at_idx", "requested_at"),
    comment="One row per run: where it stands, who holds it, what it folds to.",
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("command_id", sa.Text, primary_key=True),
    _text("command_type"),
    _text("run_id", nullable=True),
    _text("outcome"),
    _text("reason", nullable=True),
    _time("received_at"),
    sa.CheckConstraint("outcome IN ('accepted', 'refused')", name="outcome"),
    sa.Index("commands_run_id_idx", "run_id"),
    sa.Index("commands_received_at_idx", "received_at"),
    comment="The inbox: what became of each command.",
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("letter_id", sa.Text, primary_key=True),
    _text("topic"),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    _text("reason"),
    sa.Column("message", sa.LargeBinary, nullable=False, comment="the whole bytes"),
    _time("received_at"),
    sa.Column(
        "key",
        sa.LargeBinary,
        nullable=True,
        comment="whole; empty where it had none, and in letters from before headers were kept",
    ),
    sa.Column("headers", sa.JSON, nullable=True, comment="pairs of name and base64, in order; empty: not kept"),
    comment="Messages that could not be read, whole.",
)

letter_replays = sa.Table(
    "letter_replays",
    metadata,
    sa.Column("replay_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column(
        "letter_id",
        sa.Text,
        sa.ForeignKey("dead_letters.letter_id", name="letter_replays_letter_id_fkey"),
        nullable=False,
    ),
    _text("actor"),
    _time("asked_at"),
    _text("topic"),
    sa.Column("partition", sa.Integer, nullable=True),
    sa.Column("offset", sa.BigInteger, nullable=True, comment="empty: Kafka did not confirm; it may have arrived"),
    sa.Index("letter_replays_letter_id_idx", "letter_id"),
    comment="Who sent a dead letter onto its topic again, when, and where it landed.",
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    _text("uri"),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    _time("saved_at"),
    comment="Projection of checkpoint_saved.",
)

released_files = sa.Table(
    "released_files",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("uri", sa.Text, primary_key=True),
    _text("sha256"),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("version", sa.Integer, nullable=False, comment="of the event that released it"),
    _time("released_at"),
    sa.Column("deleted_at", sa.TIMESTAMP(timezone=True), nullable=True, comment="empty: still to be deleted"),
    sa.Index("released_files_pending_idx", "released_at", postgresql_where=sa.text("deleted_at IS NULL")),
    comment="Projection of artifacts_released, and when the janitor had deleted each file.",
)

feature_configs = sa.Table(
    "feature_configs",
    metadata,
    sa.Column("hash", sa.Text, primary_key=True),
    _text("semver"),
    _time("created_at"),
    sa.Column("feature_definitions", sa.JSON, nullable=False),
    _text("description", nullable=True),
    comment="The family's table of feature configurations; training is its only writer.",
)

topics = sa.Table(
    "topics",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    _text("topic_id"),
    sa.Column("relayed_position", sa.BigInteger, nullable=True, comment="the relay's cursor, when Kafka has lost it"),
    _time("changed_at"),
    comment="Each topic as we know it: one deleted and made anew is read from its beginning.",
)

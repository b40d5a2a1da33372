"""Dead letters for people: what could not be read, whole, and the record of what was sent again."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from training_fsm.domain.model import Model
from training_fsm.domain.timeframe import UtcTime
from training_fsm.store.errors import domain_errors
from training_fsm.store.reads import PostgresReads

_LETTERS = """
    SELECT letter_id, topic, partition, "offset", reason, octet_length(message) AS size_bytes, received_at
    FROM dead_letters
"""

_LIST = sa.text(
    f"{_LETTERS} WHERE cast(:topic AS text) IS NULL OR topic = :topic ORDER BY received_at DESC, letter_id LIMIT :limit"
)

_ONES = sa.text(f"{_LETTERS} WHERE letter_id = ANY(:ids)")

_NOT_SENT_AGAIN = sa.text(
    """
    SELECT letter_id FROM dead_letters
    WHERE topic = :topic
      AND NOT EXISTS (
          SELECT FROM letter_replays AS replay
          WHERE replay.letter_id = dead_letters.letter_id AND replay."offset" IS NOT NULL
      )
    ORDER BY received_at, partition, "offset"
    """
)

_MATCHING = sa.text(
    "SELECT letter_id FROM dead_letters WHERE left(letter_id, length(:beginning)) = :beginning "
    "ORDER BY letter_id LIMIT :limit"
)

# What landed at a place and became a letter from that place could not be read again.
_REPLAYS = sa.text(
    """
    SELECT letter_replays.letter_id, actor, asked_at, letter_replays.partition, letter_replays."offset",
           again.letter_id AS again
    FROM letter_replays LEFT JOIN dead_letters AS again
      ON again.topic = letter_replays.topic AND again.partition = letter_replays.partition
     AND again."offset" = letter_replays."offset" AND again.received_at > letter_replays.asked_at
    WHERE letter_replays.letter_id = ANY(:ids) ORDER BY replay_id
    """
)

_MESSAGE = sa.text(
    """
    SELECT message, key, headers::text AS headers,
           (SELECT payload ->> 'key_base64' FROM events WHERE stream = 'letter-' || :id AND version = 1) AS first_key
    FROM dead_letters WHERE letter_id = :id
    """
)

_ASK = sa.text(
    "INSERT INTO letter_replays (letter_id, actor, asked_at, topic) "
    "VALUES (:letter_id, :actor, clock_timestamp(), :topic) RETURNING replay_id"
)

_LANDED = sa.text('UPDATE letter_replays SET partition = :partition, "offset" = :offset WHERE replay_id = :replay_id')


class LetterReplay(Model):
    """One time that a letter was sent onto its topic again."""

    actor: str
    asked_at: UtcTime
    partition: int | None
    """With the offset, where it landed; None where Kafka did not confirm: it may have arrived."""
    offset: int | None
    again: str | None
    """The letter that it became, where it could not be read again."""


class Letter(Model):
    """A message that could not be read."""

    letter_id: str
    topic: str
    """Where it came from, with partition and offset."""
    partition: int
    offset: int
    reason: str
    size_bytes: int
    """Of its value."""
    received_at: UtcTime
    replays: tuple[LetterReplay, ...] = ()


@dataclass(frozen=True, slots=True)
class LetterMessage:
    """The bytes of a letter, as they came."""

    value: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...] | None
    """None: they were not kept then, and of the key the first kilobyte was."""


class PostgresLetters:
    """What people ask about dead letters; every method raises OutsideUnavailable where Postgres does not answer."""

    def __init__(self, reads: PostgresReads) -> None:
        self._engine = reads._engine

    def letters(self, topic: str | None, limit: int) -> Sequence[Letter]:
        """Letters from a topic, or all, the newest first."""
        with domain_errors(), self._engine.connect() as connection:
            rows = connection.execute(_LIST, {"topic": topic, "limit": limit}).all()
            return _with_replays(connection, rows)

    def ones(self, letter_ids: Sequence[str]) -> Sequence[Letter]:
        """These letters, in this order; those that are not there are left out."""
        with domain_errors(), self._engine.connect() as connection:
            rows = {row.letter_id: row for row in connection.execute(_ONES, {"ids": list(letter_ids)})}
            return _with_replays(connection, [rows[letter_id] for letter_id in letter_ids if letter_id in rows])

    def not_sent_again(self, topic: str) -> Sequence[str]:
        """Ids of the letters from a topic of which no replay has landed, the oldest first."""
        with domain_errors(), self._engine.connect() as connection:
            return tuple(connection.execute(_NOT_SENT_AGAIN, {"topic": topic}).scalars())

    def matching(self, beginning: str, limit: int = 5) -> Sequence[str]:
        """Ids of letters that begin so."""
        with domain_errors(), self._engine.connect() as connection:
            return tuple(connection.execute(_MATCHING, {"beginning": beginning, "limit": limit}).scalars())

    def message(self, letter_id: str) -> LetterMessage:
        """The bytes of a letter that is there."""
        with domain_errors(), self._engine.connect() as connection:
            row = connection.execute(_MESSAGE, {"id": letter_id}).one()
        if row.headers is None:
            key = None if row.first_key is None else base64.b64decode(row.first_key)
            return LetterMessage(bytes(row.message), key, None)
        headers = tuple((str(name), base64.b64decode(content)) for name, content in json.loads(row.headers))
        return LetterMessage(bytes(row.message), None if row.key is None else bytes(row.key), headers)

    def ask_replay(self, letter: Letter, actor: str) -> int:
        """Record that a letter is about to be sent again; the id of this replay."""
        values = {"letter_id": letter.letter_id, "actor": actor, "topic": letter.topic}
        with domain_errors(), self._engine.begin() as connection:
            return int(connection.execute(_ASK, values).scalar_one())

    def landed(self, replay_id: int, partition: int, offset: int) -> None:
        """Record where a replay landed."""
        with domain_errors(), self._engine.begin() as connection:
            connection.execute(_LANDED, {"replay_id": replay_id, "partition": partition, "offset": offset})


def _with_replays(connection: sa.Connection, rows: "Sequence[sa.Row[tuple[object, ...]]]") -> Sequence[Letter]:
    replays: dict[str, list[LetterReplay]] = {row.letter_id: [] for row in rows}
    for row in connection.execute(_REPLAYS, {"ids": list(replays)}):
        columns = dict(row._mapping)
        replays[columns.pop("letter_id")].append(LetterReplay(**columns))
    return tuple(Letter(**row._mapping, replays=tuple(replays[row.letter_id])) for row in rows)

"""The hash chain of a stream: each event carries the hash of the one before it."""

import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

GENESIS = bytes(32)
"""Stands in for the hash before a stream's first event."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the hash covers, besides the hash before it."""

    stream: str
    version: int
    type: str
    schema_version: int
    occurred_at: datetime
    from_state: str | None
    to_state: str | None
    actor: str
    causation_id: str
    correlation_id: str
    payload: bytes

    def hash(self, previous: bytes) -> bytes:
        """sha256 over every field, each behind its length in 8 bytes; time in UTC microseconds."""
        fields = (
            self.stream.encode(),
            str(self.version).encode(),
            self.type.encode(),
            str(self.schema_version).encode(),
            str((self.occurred_at - _EPOCH) // timedelta(microseconds=1)).encode(),
            (self.from_state or "").encode(),
            (self.to_state or "").encode(),
            self.actor.encode(),
            self.causation_id.encode(),
            self.correlation_id.encode(),
            self.payload,
            previous,
        )
        digest = hashlib.sha256()
        for field in fields:
            digest.update(struct.pack(">Q", len(field)))
            digest.update(field)
        return digest.digest()

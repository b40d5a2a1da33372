"""Dead letters for people and as JSON."""

import base64
from collections.abc import Sequence

from rich.table import Table

from training_fsm.cli.event_summary import count, moment
from training_fsm.cli.output import UNKNOWN, make_console, print_json, print_json_list, printable
from training_fsm.domain.facts import Header
from training_fsm.domain.model import Model
from training_fsm.store.letter_reads import Letter, LetterMessage, LetterReplay

ID_CHARACTERS = 12
SHOWN_BYTES_MAX = 16_384
DUMPED_BYTES_MAX = 1_024
DUMPED_PER_LINE = 16


class LetterDetails(Letter):
    """What `dlq show --json` prints."""

    key_base64: str | None
    headers: tuple[Header, ...] | None
    """None: they were not kept when this letter came."""
    value_base64: str


class Replayed(Model):
    """What `dlq replay --json` prints of each letter."""

    letter_id: str
    topic: str
    partition: int | None
    offset: int | None
    """With the partition, where it landed; None in a dry run."""


def print_letters(letters: Sequence[Letter], *, as_json: bool) -> None:
    """A table, or a word that there is nothing."""
    if as_json:
        print_json_list(letters)
        return
    console = make_console()
    if not letters:
        console.print("no dead letters")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("LETTER", "RECEIVED", "FROM", "BYTES", "REASON", "SENT AGAIN"):
        table.add_column(name, overflow="fold", no_wrap=name in ("LETTER", "RECEIVED"))
    for letter in letters:
        table.add_row(
            letter.letter_id[:ID_CHARACTERS],
            moment(letter.received_at),
            place(letter),
            f"{letter.size_bytes:,}",
            printable(letter.reason),
            printable(_replay_words(letter.replays[-1])) if letter.replays else "",
        )
    console.print(table)


def place(letter: Letter) -> str:
    """Where a letter came from."""
    return f"{letter.topic}/{letter.partition} at {letter.offset}"


def print_letter(letter: Letter, message: LetterMessage, *, as_json: bool) -> None:
    """Everything of a letter."""
    if as_json:
        headers = message.headers
        details = LetterDetails(
            **dict(letter),
            key_base64=None if message.key is None else _base64(message.key),
            headers=None if headers is None else tuple(Header(name=n, value_base64=_base64(v)) for n, v in headers),
            value_base64=_base64(message.value),
        )
        print_json(details)
        return
    console = make_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(letter, message):
        table.add_row(name, printable(value))
    console.print(table)
    if message.value:
        console.print()
        console.print(printable(_shown(message.value)), soft_wrap=True)


def print_replayed(replayed: Sequence[Replayed], *, as_json: bool) -> None:
    """Where each letter landed, or would be sent."""
    if as_json:
        print_json_list(replayed)
        return
    console = make_console()
    for one in replayed:
        landed = "would be sent" if one.offset is None else f"landed in partition {one.partition} at {one.offset}"
        console.print(f"{one.letter_id[:ID_CHARACTERS]}  {one.topic}  {landed}")
    if not replayed:
        console.print("nothing to send again")


def _rows(letter: Letter, message: LetterMessage) -> list[tuple[str, str]]:
    headers = message.headers
    if headers is None:
        shown = [("headers", "not kept when this letter came")]
    else:
        shown = [("header", f"{name}: {_line(content)}") for name, content in headers] or [("headers", "none")]
    return [
        ("letter", letter.letter_id),
        ("from", place(letter)),
        ("received", moment(letter.received_at)),
        ("reason", letter.reason),
        *(("sent again", _replay_words(replay)) for replay in letter.replays),
        ("key", UNKNOWN if message.key is None else _line(message.key)),
        *shown,
        ("value", count(len(message.value), "byte")),
    ]


def _replay_words(replay: LetterReplay) -> str:
    words = f"by {replay.actor} at {moment(replay.asked_at)}"
    if replay.offset is None:
        return f"{words}, not confirmed: it may have arrived"
    words += f", landed in partition {replay.partition} at {replay.offset}"
    return words if replay.again is None else f"{words}, unreadable again: {replay.again[:ID_CHARACTERS]}"


def _line(content: bytes) -> str:
    text = _text(content)
    return content.hex(" ") if text is None or "\n" in text else text


def _text(content: bytes) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\r\n\t" for character in text) else None


def _shown(value: bytes) -> str:
    """The value as text, or as a hex dump where it is none; its beginning where it is long."""
    text = _text(value)
    if text is not None and len(value) <= SHOWN_BYTES_MAX:
        return text
    if text is not None:
        shown, so_many = value[:SHOWN_BYTES_MAX].decode(errors="ignore"), SHOWN_BYTES_MAX
    else:
        shown, so_many = _dump(value[:DUMPED_BYTES_MAX]), DUMPED_BYTES_MAX
    more = f"\n… and {count(len(value) - so_many, 'byte')} more; --raw writes all" if len(value) > so_many else ""
    return shown + more


def _dump(value: bytes) -> str:
    lines = []
    for start in range(0, len(value), DUMPED_PER_LINE):
        part = value[start : start + DUMPED_PER_LINE]
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{DUMPED_PER_LINE * 3}} {characters}")
    return "\n".join(lines)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

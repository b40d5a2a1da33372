"""`training-fsm dlq …`: messages that could not be read, and sending them onto their topic again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from training_fsm.cli.context import AsJson, Home, opened_log, settings_of
from training_fsm.cli.errors import BadInput, NotSo

if TYPE_CHECKING:
    from training_fsm.cli.letter_output import Replayed
    from training_fsm.settings import Settings
    from training_fsm.store.letter_reads import Letter, PostgresLetters

app = typer.Typer(help="Look at messages that could not be read, and send them again.", no_args_is_help=True)

LetterId = Annotated[str, typer.Argument(metavar="LETTER", help="Letter id, or a beginning that only one letter has.")]
Topic = Annotated[str | None, typer.Option("--topic", help="Only letters that came from this topic.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many, newest first.")]


@app.command("list")
def list_letters(
    ctx: typer.Context, topic: Topic = None, limit: Limit = 20, as_json: AsJson = False, home: Home = None
) -> None:
    """List dead letters, the newest first, and what was sent again."""
    from training_fsm.cli.letter_output import print_letters
    from training_fsm.store.letter_reads import PostgresLetters

    with opened_log(settings_of(ctx, home)) as log:
        letters = PostgresLetters(log).letters(topic, limit)
    print_letters(letters, as_json=as_json)


@app.command()
def show(
    ctx: typer.Context,
    letter: LetterId,
    raw: Annotated[bool, typer.Option("--raw", help="Write the value's bytes, and nothing else.")] = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show a dead letter: why it could not be read, where it came from, its key, headers and value."""
    import sys

    from training_fsm.cli.letter_output import print_letter
    from training_fsm.store.letter_reads import PostgresLetters

    if raw and as_json:
        raise BadInput("--raw and --json: expected one of them")
    with opened_log(settings_of(ctx, home)) as log:
        letters = PostgresLetters(log)
        (found,) = letters.ones([_resolved(letters, letter)])
        message = letters.message(found.letter_id)
    if raw:
        sys.stdout.buffer.write(message.value)
        sys.stdout.buffer.flush()
    else:
        print_letter(found, message, as_json=as_json)


@app.command()
def replay(
    ctx: typer.Context,
    letters: Annotated[list[str] | None, typer.Argument(metavar="LETTER...", help="Letter ids, or beginnings.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All letters of --topic that were not sent again yet.")] = False,
    topic: Annotated[str | None, typer.Option("--topic", help="With --all: the topic that they came from.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also onto a topic that is another service's.")] = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Send dead letters, as they came, onto the topic that they came from, so that they are read again."""
    from training_fsm.cli.letter_output import Replayed, print_replayed
    from training_fsm.store.letter_reads import PostgresLetters

    if every is not bool(topic) or every is bool(letters):
        raise BadInput("expected LETTER..., or --all with --topic TOPIC")
    settings = settings_of(ctx, home)
    with opened_log(settings) as log:
        reads = PostgresLetters(log)
        ids = reads.not_sent_again(topic) if topic else [_resolved(reads, one) for one in dict.fromkeys(letters or ())]
        chosen = reads.ones(ids)
        if not force:
            _require_ours(settings, chosen)
        if dry_run:
            would = [Replayed(letter_id=one.letter_id, topic=one.topic, partition=None, offset=None) for one in chosen]
            print_replayed(would, as_json=as_json)
            return
        done: list[Replayed] = []
        try:
            _replay(settings, reads, chosen, done)
        finally:
            if done or not chosen:
                print_replayed(done, as_json=as_json)


def _replay(settings: "Settings", reads: "PostgresLetters", chosen: "Sequence[Letter]", done: "list[Replayed]") -> None:
    from training_fsm.cli.letter_output import Replayed
    from training_fsm.domain.errors import OutsideUnavailable
    from training_fsm.messaging.command_sender import actor
    from training_fsm.messaging.confirmed_producer import ConfirmedProducer

    try:
        producer = ConfirmedProducer(settings)
    except ValueError as error:
        raise BadInput(str(error)) from error
    for letter in chosen:
        message = reads.message(letter.letter_id)
        replay_id = reads.ask_replay(letter, actor())  # first: a replay that is not on record would be the worse one
        try:
            partition, offset = producer.send(
                letter.topic, message.key, message.value, message.headers or (), letter.partition
            )
        except OutsideUnavailable as error:
            raise NotSo(f"letter {letter.letter_id}: {error}", f"{len(done)} of {len(chosen)} were sent") from error
        reads.landed(replay_id, partition, offset)
        done.append(Replayed(letter_id=letter.letter_id, topic=letter.topic, partition=partition, offset=offset))


def _require_ours(settings: "Settings", letters: "Sequence[Letter]") -> None:
    """Others read a neighbour's topics too: what is put there once more is put there for all of them."""
    from training_fsm.messaging.topics import Topics

    ours = Topics.with_prefix(settings.topic_prefix).requested
    if foreign := sorted({letter.topic for letter in letters} - {ours}):
        raise NotSo(
            f"{', '.join(foreign)}: not ours to write, whoever else reads there would get the message again",
            f"only letters from {ours} are sent again; --force does it all the same",
        )


def _resolved(letters: "PostgresLetters", beginning: str) -> str:
    """The id of the one letter that begins so. Raises NotSo where there is none, BadInput where there are several."""
    candidates = letters.matching(beginning)
    if not candidates:
        raise NotSo(f"there is no dead letter {beginning}")
    if len(candidates) > 1:
        raise BadInput(f"{beginning} is the beginning of several letters:", *(f"  {one}" for one in candidates))
    return candidates[0]

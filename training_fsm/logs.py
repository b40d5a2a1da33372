"""Logs: one line per fact, for people or as JSON; those of libraries come out the same way."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from training_fsm.settings import Settings

_everywhere: dict[str, str] = {}


def configure_logs(settings: Settings, role: str) -> None:
    """Send every line of this process to stderr, each with the role that wrote it.

    Libraries say what is at least a warning; with `log_level=debug`, what is at least information.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    # One handler for all: two would tear each other's lines.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(as_json=settings.log_format == "json"))
    logging.root.handlers = [handler]
    logging.root.setLevel(max(level, logging.WARNING) if level > logging.DEBUG else logging.INFO)
    logging.getLogger("training_fsm").setLevel(level)
    logging.captureWarnings(True)
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # it would write lines of its own make
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    threading.excepthook = _thread_died
    _everywhere["role"] = role


@contextmanager
def bound_everywhere(**fields: str) -> Iterator[None]:
    """Put fields on every line of this process, whichever thread writes it, for as long as the block lasts.

    Context variables end at a thread's edge, and a worker's threads all work on its one run.
    """
    _everywhere.update(fields)
    try:
        yield
    finally:
        for name in fields:
            del _everywhere[name]


def _add_everywhere(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**_everywhere, **event}


_SHARED: tuple[structlog.typing.Processor, ...] = (
    _add_everywhere,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _formatter(*, as_json: bool) -> logging.Formatter:
    rendering: tuple[structlog.typing.Processor, ...] = (
        (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str))
        if as_json
        else (
            # Not rich's traceback: it shows the values of variables, a password among them.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        )
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """As a line, not as a bare traceback."""
    if args.exc_value is None or isinstance(args.exc_value, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "?"
    error = (args.exc_type, args.exc_value, args.exc_traceback)
    structlog.get_logger(__name__).critical("thread died", thread=name, exc_info=error)

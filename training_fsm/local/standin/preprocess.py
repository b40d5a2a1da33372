"""Stand-in for drl-trading-preprocess, started as `python -m training_fsm.local.standin.preprocess`."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Answer preprocessing requests until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m training_fsm.local.standin.preprocess", description=main.__doc__)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument(
        "--feast-repo", type=Path, required=True, help="folder of the Feast repository, made if missing"
    )
    parser.add_argument("--answer-delay-s", type=float, default=0.0, help="wait so long before each answer")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("feast").setLevel(logging.WARNING)
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    # Feast takes torch only where there is one, and nothing here needs it: a second sooner, and far less memory.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from training_fsm.local.standin.feast_repository import FeastRepository
    from training_fsm.local.standin.preprocess_service import Preprocess

    repository = FeastRepository(options.feast_repo)
    Preprocess(options.bootstrap_servers, repository, options.answer_delay_s).run(stopping)


if __name__ == "__main__":
    main()

"""What came out of the demo's run, as tables."""

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_fsm.domain.events import EvaluationFinished
from training_fsm.domain.metrics import CURVE_METRICS, TRADE_METRICS
from training_fsm.domain.model import Model


class LoadedModel(Model):
    """What a process without this package found in MLflow."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    inputs: tuple[str, ...]
    prediction: tuple[dict[str, float], ...]


def print_backtest(console: Console, evaluation: EvaluationFinished) -> None:
    """Test metrics beside those of holding one long position, their bands, and the gate's verdicts."""
    bands = {band.metric: band for band in evaluation.bands}
    table = Table(box=None, pad_edge=False)
    for name in ("TEST PART", "AGENT", "BAND", "BUY AND HOLD"):
        table.add_column(name, justify="left" if name == "TEST PART" else "right", no_wrap=True)
    for name in (*CURVE_METRICS, *TRADE_METRICS):
        if name not in evaluation.metrics:
            continue
        band = bands.get(name)
        between = f"{_number(band.low)} to {_number(band.high)} ({band.confidence:.0%})" if band else ""
        held = evaluation.metrics.get(f"buy_and_hold_{name}")
        table.add_row(name, _number(evaluation.metrics[name]), between, "" if held is None else _number(held))
    console.print(table)
    for verdict in (*evaluation.gate, *evaluation.validations):
        word = Text("holds", style="green") if verdict.passed else Text("FAILS", style="red")
        console.print(Text.assemble("gate  ", word, f"  {verdict.explanation}"), soft_wrap=True)


def print_model(console: Console, model: LoadedModel) -> None:
    """Version, alias, lineage and a prediction."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("model", f"{model.name} version {model.version}, alias {', '.join(model.aliases)}")
    for name, value in model.tags.items():
        if name.startswith("training_fsm."):
            table.add_row(name, value)
    table.add_row("inputs", ", ".join(model.inputs))
    table.add_row("predicts", ", ".join(f"{name} {_number(value)}" for name, value in model.prediction[0].items()))
    console.print(table)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)

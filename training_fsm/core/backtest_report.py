"""A backtest on disk: curves and trades as parquet, a plot that opens offline, and a summary that names them all."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from training_fsm.client.digest import file_digest
from training_fsm.core.backtest import Backtest
from training_fsm.domain.facts import Judgement

SUMMARY = "backtest.json"
_POINTS_PLOTTED = 20_000


class BacktestSummary(Judgement):
    """What the summary file holds; its own digest covers the other files through theirs."""

    run_id: str
    breach: str | None
    bars: int
    files: dict[str, str]
    """sha256 of each other file of the report."""


def write_report(folder: Path, run_id: str, backtest: Backtest, judgement: Judgement) -> tuple[Path, ...]:
    """Write equity.parquet, trades.parquet, backtest.html and, last, backtest.json; returns the paths in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    equity, trades, plot = folder / "equity.parquet", folder / "trades.parquet", folder / "backtest.html"
    backtest.curve.to_parquet(equity, index=False)
    backtest.trades.to_parquet(trades, index=False)
    # The library itself is 4.8 MB of each plot: a report must open without a network.
    _figure(backtest, run_id).write_html(plot, include_plotlyjs=True, div_id="backtest")
    summary = BacktestSummary(
        run_id=run_id,
        **dict(judgement),
        breach=backtest.breach,
        bars=len(backtest.curve),
        files={path.name: file_digest(path) for path in (equity, trades, plot)},
    )
    (folder / SUMMARY).write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    return equity, trades, plot, folder / SUMMARY


def _figure(backtest: Backtest, run_id: str) -> go.Figure:
    """Equity beside buy and hold, each trade's profit at its exit, and the position."""
    curve = backtest.curve.iloc[:: -(-len(backtest.curve) // _POINTS_PLOTTED)]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, row_heights=[0.6, 0.25, 0.15], vertical_spacing=0.03)
    times = _plain(curve["time"])
    figure.add_trace(go.Scattergl(x=times, y=curve["equity"], name="equity"), row=1, col=1)
    figure.add_trace(go.Scattergl(x=times, y=curve["buy_and_hold"], name="buy and hold"), row=1, col=1)
    trades = backtest.trades
    colours = ["#2a9d8f" if profit > 0 else "#d1495b" for profit in trades["profit"]]
    markers = go.Scattergl(
        x=_plain(trades["exit_time"]),
        y=trades["profit"],
        mode="markers",
        marker={"color": colours},
        name="profit of a trade",
        text=["long" if side > 0 else "short" for side in trades["side"]],
    )
    figure.add_trace(markers, row=2, col=1)
    figure.add_trace(go.Scattergl(x=times, y=curve["position"], name="position", line={"shape": "hv"}), row=3, col=1)
    figure.update_layout(title=f"Backtest of run {run_id}", template="plotly_white", hovermode="x unified", height=800)
    return figure


def _plain(times: pd.Series) -> pd.Series:
    """UTC without a zone: plotly draws zoned times as objects, slowly."""
    plain: pd.Series = times.dt.tz_localize(None)
    return plain

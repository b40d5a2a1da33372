"""Challenger against champion: both policies over the same bars, of which neither was trained on any."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from training_fsm.core.backtest import Policy, backtest_numbers, run_backtest
from training_fsm.core.data_checks import TIME
from training_fsm.core.market_data import market_data
from training_fsm.domain.errors import DataUnusable, FeaturesMissing
from training_fsm.domain.facts import Contest, FrozenData, ModelRef
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import TimeRange

BARS_MIN = 30
"""Fewer bars tell nothing, and no champion falls for them."""

ReadFeatures = Callable[[TrainingRequest, FeatureConfigVersionInfo], pd.DataFrame]
"""Feature rows of a request from the feature store."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A trained policy and what it was trained with."""

    policy: Policy
    request: TrainingRequest
    feature_config: FeatureConfigVersionInfo
    data: FrozenData
    trained_until: datetime
    """Opening of the last bar that it, or an ancestor, was trained on."""


class HeldOutRing:
    """Implements the evaluation's Ring on the challenger's frozen rows."""

    def __init__(
        self,
        challenger: Contender,
        champion: tuple[ModelRef, Contender] | None,
        stream_version: int,
        frame: pd.DataFrame,
        read_features: ReadFeatures,
    ) -> None:
        self._challenger, self._champion, self._stream_version = challenger, champion, stream_version
        self._frame, self._read_features = frame, read_features

    def fight(self, request: TrainingRequest, metric: str) -> Contest:
        """Both over the bars of the challenger's test part that lie behind both trainings and the longer embargo.

        Costs, start balance and position sizes are the challenger's for both; window and long_only are each one's own.
        """
        if self._champion is None:
            return Contest(champion=None, stream_version=self._stream_version, metric=metric)
        name, champion = self._champion
        none = Contest(champion=name, stream_version=self._stream_version, metric=metric)
        if (champion.request.symbol, champion.request.timeframe) != (request.symbol, request.timeframe):
            traded = f"{champion.request.symbol} {champion.request.timeframe.value}"
            return none.model_copy(update={"obstacle": f"champion {name} trades {traded}: there are no bars of both"})
        first, last = self._bars(champion)
        if last - first < BARS_MIN:
            words = f"{max(last - first, 0)} bars lie behind the training of both, expected at least {BARS_MIN}"
            return none.model_copy(update={"obstacle": words})
        try:
            theirs = self._metrics(champion, self._champion_frame(champion), first, last)
        except (FeaturesMissing, DataUnusable) as error:
            return none.model_copy(update={"obstacle": f"the features of champion {name}: {error}"})
        times = self._frame[TIME]
        return none.model_copy(
            update={
                "start": times.iloc[first].to_pydatetime(),
                "end": times.iloc[last - 1].to_pydatetime(),
                "bars": last - first,
                "challenger_metrics": self._metrics(self._challenger, self._frame, first, last),
                "champion_metrics": theirs,
            }
        )

    def _bars(self, champion: Contender) -> tuple[int, int]:
        """Rows [first, last) of the frame; the first is the first on which both can decide."""
        test = self._challenger.data.bounds.test
        contenders = (self._challenger, champion)
        trained_until = max(contender.trained_until for contender in contenders)
        embargo = max(contender.request.embargo_bars for contender in contenders)
        behind = int(self._frame[TIME].searchsorted(pd.Timestamp(trained_until), side="right")) + embargo
        window = max(contender.request.env.window for contender in contenders)
        return max(test.first, behind) + window - 1, test.last

    def _champion_frame(self, champion: Contender) -> pd.DataFrame:
        """The challenger's rows; with other features, the champion's own from the feature store beside the prices."""
        if champion.feature_config.hash == self._challenger.feature_config.hash:
            return self._frame
        start, end = self._frame[TIME].iloc[0].to_pydatetime(), self._challenger.request.range.end
        asked = champion.request.model_copy(update={"range": TimeRange(start=start, end=end)})
        columns = list(champion.data.observation_columns)
        theirs = self._read_features(asked, champion.feature_config).set_index(TIME)[columns].astype(np.float32)
        prices = self._challenger.request.data.columns.model_dump(exclude_none=True).values()
        ours = self._frame[[TIME, *dict.fromkeys(prices)]].drop(columns=columns, errors="ignore").set_index(TIME)
        return ours.join(theirs).reset_index(names=TIME)

    def _metrics(self, contender: Contender, frame: pd.DataFrame, first: int, last: int) -> dict[str, float]:
        request, own = self._challenger.request, contender.request.env
        env = request.env.model_copy(update={"window": own.window, "long_only": own.long_only})
        rows = frame.iloc[first - own.window + 1 : last]
        market = market_data(
            rows, request.data.columns, contender.data.observation_columns, contender.data.normalisation
        )
        played = run_backtest(contender.policy, market, env, request.agent.seed)
        periods_per_year = request.evaluation.periods_per_year or self._challenger.data.periods_per_year
        return backtest_numbers(played, periods_per_year, request.agent.seed).metrics

import pytest
from pydantic import JsonValue

from training_fsm.local.standin.feature_views import InvalidFeatureError, compute_views, validation_errors
from training_fsm.local.standin.indicators import FeatureRole
from training_fsm.local.standin.prices import load_prices
from training_fsm.local.standin.wire import FeatureDefinition, Timeframe

RSI_STEM = "rsi_14_d96c08b4dbc0b3ee845986f64170fea9"


def _definition(name: str, *parameter_sets: dict[str, JsonValue]) -> FeatureDefinition:
    return FeatureDefinition(name=name, enabled=True, derivatives=[], raw_parameter_sets=list(parameter_sets))


def test_the_contracts_example_gets_its_name() -> None:
    """The parameter set of the contract's example gives exactly the view name of that example."""
    rsi = _definition("rsi", {"type": "rsi", "enabled": True, "length": 14})
    (view,) = compute_views([rsi], load_prices("EURUSD"), "EURUSD", Timeframe.MINUTE_5)
    assert view.name == f"{RSI_STEM}_EURUSD_5m"
    assert list(view.rows.columns) == [RSI_STEM]
    assert view.role is FeatureRole.OBSERVATION_SPACE


def test_the_order_of_keys_names_nothing() -> None:
    """The same parameter set, written in another order, is the same view."""
    one = _definition("macd", {"type": "macd", "fast": 12, "slow": 26, "signal": 9})
    other = _definition("macd", {"signal": 9, "slow": 26, "type": "macd", "fast": 12})
    names = {compute_views([d], load_prices("EURUSD"), "EURUSD", Timeframe.HOUR_4)[0].name for d in (one, other)}
    assert len(names) == 1


def test_close_price_without_parameters() -> None:
    """The close price's view has no parameters in its name, and its field is the one that a request maps."""
    (view,) = compute_views([_definition("close_price")], load_prices("EURUSD"), "EURUSD", Timeframe.HOUR_4)
    assert view.name == "close_price_EURUSD_4h"
    assert list(view.rows.columns) == ["close_price_value"]
    assert view.role is FeatureRole.REWARD_ENGINEERING
    assert view.rows["close_price_value"].tolist() == load_prices("EURUSD")["close"].tolist()


def test_sub_features_are_fields_of_one_view() -> None:
    """An indicator of several columns is one view whose fields end in the columns' names."""
    bands = _definition("bollinger_bands", {"length": 20, "deviations": 2.5})
    (view,) = compute_views([bands], load_prices("EURUSD"), "EURUSD", Timeframe.HOUR_4)
    stem = view.name.removesuffix("_EURUSD_4h")
    assert stem.startswith("bollinger_bands_20_2.5_")
    assert list(view.rows.columns) == [f"{stem}_upper", f"{stem}_middle", f"{stem}_lower"]


def test_one_view_per_enabled_parameter_set() -> None:
    """Each parameter set has a view of its own; a disabled one has none."""
    rsi = _definition("rsi", {"length": 7}, {"length": 14, "enabled": False}, {"length": 21})
    views = compute_views([rsi], load_prices("EURUSD"), "EURUSD", Timeframe.HOUR_4)
    assert [view.name.split("_")[1] for view in views] == ["7", "21"]


def test_invalid_features_are_named_with_reasons() -> None:
    """Every feature that cannot be computed is listed under its name, the others are not."""
    definitions = [_definition("rsi"), _definition("wizardry"), _definition("ema", {"span": 3})]
    errors = validation_errors(definitions)
    assert list(errors) == ["wizardry", "ema"]
    assert errors["wizardry"].startswith("unknown feature, expected one of adx, atr")
    assert errors["ema"] == "unknown parameter 'span', expected length"
    with pytest.raises(InvalidFeatureError):
        compute_views(definitions, load_prices("EURUSD"), "EURUSD", Timeframe.HOUR_4)

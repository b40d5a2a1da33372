"""What is read of preprocess: a message that is of the contract is heard as what it says."""

import json
from collections.abc import Callable

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training_fsm.contracts.preprocess import PREPROCESS_MESSAGES, PreprocessingCompleted, PreprocessMessage
from training_fsm.domain.inbound import NotificationReceived
from training_fsm.domain.notifications import PreprocessCompleted, PreprocessFailed
from training_fsm.messaging.message import Message
from training_fsm.messaging.preprocessing_listener import hear_preprocess

Contract = Callable[[str], jsonschema_rs.Draft202012Validator]

each = pytest.mark.parametrize("kind", PREPROCESS_MESSAGES, ids=lambda kind: kind.event_type)


def _message(topic: str, event_type: str, text: str) -> Message:
    return Message(topic, 0, 1, 2, b"key", text.encode(), (("event_type", event_type.encode()),))


@each
def test_what_is_of_the_contract_is_heard(kind: type[PreprocessMessage], contract: Contract) -> None:
    """On each of its topics, and with fields that nobody here reads."""

    @settings(max_examples=25, deadline=None)
    @given(st.builds(kind))
    def holds(sent: PreprocessMessage) -> None:
        value = json.loads(sent.model_dump_json()) | {"timestamp": "2026-11-24T12:00:00"}
        text = json.dumps(value)
        assume("\\u0000" not in text)  # no JSON that we take
        contract(f"preprocess/{kind.event_type}").validate(value)
        for topic in kind.topics:
            heard = hear_preprocess(_message(topic, kind.event_type, text))
            assert isinstance(heard, NotificationReceived)
            news = heard.notification
            assert news.request_id == sent.request_id
            if isinstance(sent, PreprocessingCompleted):
                assert isinstance(news, PreprocessCompleted)
                assert news.total_features_computed == sent.total_features_computed
                assert news.success_details == sent.success_details
            else:
                assert isinstance(news, PreprocessFailed)
                assert news.error == kind.event_type

    holds()


@each
def test_without_a_request_it_is_not_of_the_contract(kind: type[PreprocessMessage], contract: Contract) -> None:
    """The request's id is the only link to a run: neither absent, nor null, nor longer than ours ever are."""
    validator = contract(f"preprocess/{kind.event_type}")
    others = {name: part for name, part in _least(kind).items() if name != "request_id"}
    assert validator.is_valid(others | {"request_id": "r" * 200})
    for wrong in (others, others | {"request_id": None}, others | {"request_id": "r" * 201}):
        assert not validator.is_valid(wrong)
        heard = hear_preprocess(_message(kind.topics[0], kind.event_type, json.dumps(wrong)))
        assert not isinstance(heard, NotificationReceived)


def _least(kind: type[PreprocessMessage]) -> dict[str, object]:
    """The fields that the message cannot do without."""
    needed = {name: field.annotation for name, field in kind.model_fields.items() if field.is_required()}
    return {name: "words" if annotation is str else [] for name, annotation in needed.items()}

"""The ingest service over HTTP: asks for data and features. Trying again is the orchestrator's timer's business."""

import html
import re
from types import TracebackType
from typing import Literal, Self

import httpx
from pydantic import Field, ValidationError, field_validator

from training_fsm.domain.errors import IngestRefused, OutsideUnavailable
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.model import Model
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import Timeframe, TimeRange, UtcTime
from training_fsm.ports import IngestAnswer

BASE_URL = "http://localhost:8080/api/v1"
"""Where ingest's code serves; its published specification says http://localhost:5000/api/v1."""
PATH = "/preprocessing/requests"
"""What ingest's code serves; its published specification says /preprocessing-requests."""
_WORDS_MAX = 500
_BODY_BYTES_MAX = 64 * 1024
_TRY_AGAIN = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})


class FeaturePreprocessingRequest(Model):
    """The body that ingest reads, names and defaults its own; sent whole, so a new default there changes nothing."""

    symbol: str
    base_timeframe: Timeframe
    target_timeframes: tuple[Timeframe, ...]
    feature_config_version_info: FeatureConfigVersionInfo
    start_time: UtcTime
    end_time: UtcTime
    request_id: str = Field(min_length=1)
    force_recompute: bool = False
    incremental_mode: bool = True
    processing_context: Literal["training", "backfill"] = "training"
    skip_existing_features: bool = True
    materialize_online: bool = False
    batch_size: int | None = None
    parallel_processing: bool = True

    @field_validator("feature_config_version_info")
    @classmethod
    def _unparsed(cls, value: FeatureConfigVersionInfo) -> FeatureConfigVersionInfo:
        """Parsed parameter sets are made by preprocess; the wire carries them empty."""
        raw = tuple(
            definition.model_copy(update={"parsed_parameter_sets": {}}) for definition in value.feature_definitions
        )
        return value.model_copy(update={"feature_definitions": raw})


class _Accepted(Model, extra="ignore"):
    request_id: str
    status: Literal["accepted"]


class _Refusal(Model, extra="ignore"):
    error: str = Field(min_length=1)


class IngestClient:
    """Asks a real ingest service. Closes its connections as a context manager, or by `close`.

    `path` is appended to `base_url`. Redirects are not followed: an address that moved is a matter of settings.
    Raises ValueError where the two make no http or https URL.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        path: str = PATH,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
    ) -> None:
        self._url = httpx.URL(f"{base_url.rstrip('/')}/{path.lstrip('/')}")
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ValueError(f"ingest base_url: expected http://host… or https://host…, got {base_url!r}")
        # Errors name the address, and must not show a password in it.
        self._where = str(self._url.copy_with(userinfo=b""))
        self._http = httpx.Client(timeout=httpx.Timeout(read_timeout_s, connect=connect_timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request_features(
        self,
        request_id: str,
        wanted: TimeRange,
        request: TrainingRequest,
        feature_config: FeatureConfigVersionInfo,
        context: Literal["training", "backfill"] = "training",
    ) -> IngestAnswer:
        """Ask for data and features of a range, under our own request id.

        Raises IngestRefused on a 4xx, with ingest's words, and on a redirect; OutsideUnavailable where asking again may
        help: 408, 429, 5xx, time-outs, no connection, and a 2xx whose body is not ingest's.
        """
        asked = FeaturePreprocessingRequest(
            symbol=request.symbol,
            base_timeframe=request.base_timeframe,
            target_timeframes=(request.timeframe,),
            feature_config_version_info=feature_config,
            start_time=wanted.start,
            end_time=wanted.end,
            request_id=request_id,
            processing_context=context,
            force_recompute=context == "backfill",
            skip_existing_features=context != "backfill",
        )
        response, text = self._post(asked.model_dump_json().encode())
        status = response.status_code
        if response.is_success:
            return _accepted(status, text, request_id)
        if response.is_redirect:
            location = response.headers.get("location", "nowhere")[:_WORDS_MAX]
            raise IngestRefused(
                status, f"{self._where} redirects to {location}; expected the address itself in settings"
            )
        words = _words(text, response.headers.get("content-type", ""))
        if response.is_client_error and status not in _TRY_AGAIN:
            raise IngestRefused(status, words)
        raise OutsideUnavailable("ingest", f"{self._where} answered {status}: {words}")

    def _post(self, body: bytes) -> tuple[httpx.Response, str]:
        """The answer and the text of its body, of which no more is read than a bound."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            with self._http.stream("POST", self._url, content=body, headers=headers) as response:
                read = bytearray()
                for chunk in response.iter_bytes():
                    read += chunk
                    if len(read) > _BODY_BYTES_MAX:
                        break
                return response, read[:_BODY_BYTES_MAX].decode(errors="replace")
        except httpx.RequestError as error:
            raise OutsideUnavailable("ingest", f"{self._where}: {type(error).__name__}: {error}") from error


def _accepted(status: int, text: str, request_id: str) -> IngestAnswer:
    expected = f'{{"request_id": "{request_id}", "status": "accepted"}}'
    try:
        accepted = _Accepted.model_validate_json(text)
    except ValidationError as error:
        raise OutsideUnavailable(
            "ingest", f"answered {status}, expected {expected}, got {text[:_WORDS_MAX]!r}"
        ) from error
    if accepted.request_id != request_id:
        # Preprocess would answer under an id that nobody here waits for.
        raise OutsideUnavailable("ingest", f"answered {status}, expected {expected}, got id {accepted.request_id!r}")
    return IngestAnswer(status, text)


def _words(text: str, content_type: str) -> str:
    """What an answer says, for people: its JSON `error`, else its text without markup."""
    try:
        return _Refusal.model_validate_json(text).error[:_WORDS_MAX]
    except ValidationError:
        plain = text
        if "html" in content_type or text.lstrip().startswith("<"):
            plain = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", text))
        return " ".join(plain.split())[:_WORDS_MAX] or "no words"

"""Which views and fields a run's feature service is made of, and for whom, as the registry says."""

from contextlib import suppress
from dataclasses import dataclass

from feast import FeatureService, FeatureView
from feast.data_source import DataSource
from feast.errors import FeatureServiceNotFoundException, FeatureViewNotFoundException
from feast.infra.registry.base_registry import BaseRegistry

from training_fsm.domain.errors import FeaturesMissing
from training_fsm.domain.facts import Failure
from training_fsm.domain.features import FeatureConfigVersionInfo
from training_fsm.domain.request import TrainingRequest
from training_fsm.domain.timeframe import Timeframe

JOIN_KEY = "symbol"
OBSERVATION = "observation_space"
REWARD = "reward_engineering"
_SERVICES_NAMED_MAX = 20


@dataclass(frozen=True, slots=True)
class View:
    """A feature view of a service: what is read of it, and for whom."""

    name: str
    role: str
    fields: tuple[str, ...]
    source: DataSource


@dataclass(frozen=True, slots=True)
class ResolvedService:
    """A feature service and its views, in its order."""

    name: str
    views: tuple[View, ...]

    def fields(self, role: str) -> tuple[str, ...]:
        """The fields of a role, in the order of views, then fields."""
        return tuple(field for view in self.views if view.role == role for field in view.fields)


def service_name(role: str, symbol: str, timeframe: Timeframe, feature_config: FeatureConfigVersionInfo) -> str:
    """The family's name of a feature service."""
    return f"{role}_{symbol}_{timeframe.value.replace('-', '_')}_{feature_config.semver}_{feature_config.hash}"


def resolve_service(
    registry: BaseRegistry, project: str, request: TrainingRequest, feature_config: FeatureConfigVersionInfo
) -> ResolvedService:
    """Find the run's service, and the service of the other role where there is one; roles are what the views' tags say.

    Reads the registry itself, never its cache, which may be ten minutes old.
    Raises FeaturesMissing for a service, view, tag or price column that is not there.
    """
    symbol = request.symbol
    name, reward_name = (
        service_name(role, symbol, request.timeframe, feature_config) for role in (OBSERVATION, REWARD)
    )
    services = [_service(registry, project, name, symbol)]
    with suppress(FeatureServiceNotFoundException):  # today's family has one service, with the views of both roles
        services.append(registry.get_feature_service(reward_name, project, allow_cache=False))
    fields: dict[str, dict[str, None]] = {}
    for found in services:
        for projection in found.feature_view_projections:
            names = (field.name for field in projection.features if field.name != JOIN_KEY)
            fields.setdefault(projection.name, {}).update(dict.fromkeys(names))
    resolved = ResolvedService(
        name, tuple(_view(registry, project, view, tuple(of_view), name, symbol) for view, of_view in fields.items())
    )
    _check_fields(resolved, request)
    return resolved


def missing(words: str, service: str, field: str | None = None, detail: str | None = None) -> FeaturesMissing:
    """The error for what the feature store does not have."""
    return FeaturesMissing(Failure(kind="features_missing", words=words, service=service, field=field, detail=detail))


def _service(registry: BaseRegistry, project: str, name: str, symbol: str) -> FeatureService:
    try:
        return registry.get_feature_service(name, project, allow_cache=False)
    except FeatureServiceNotFoundException as error:
        names = sorted(found.name for found in registry.list_feature_services(project, allow_cache=False))
        of_symbol = [found for found in names if f"_{symbol}_" in found][:_SERVICES_NAMED_MAX]
        raise missing(
            f"feature service {name} does not exist in project {project}",
            name,
            detail=f"services of {symbol}: {', '.join(of_symbol) or 'none'}",
        ) from error


def _view(registry: BaseRegistry, project: str, name: str, fields: tuple[str, ...], service: str, symbol: str) -> View:
    where = f"feature view {name} of service {service}"
    try:
        definition: FeatureView = registry.get_feature_view(name, project, allow_cache=False)
    except FeatureViewNotFoundException as error:
        raise missing(f"{where} does not exist", service, name) from error
    role, of_symbol = definition.tags.get("feature_role"), definition.tags.get("symbol", symbol)
    if role not in (OBSERVATION, REWARD):
        raise missing(f"{where}: expected tag feature_role {OBSERVATION} or {REWARD}, got {role!r}", service, name)
    if of_symbol != symbol:
        raise missing(f"{where}: expected tag symbol {symbol}, got {of_symbol!r}", service, name)
    if definition.batch_source is None:
        raise missing(f"{where}: expected a batch source, it has none", service, name)
    return View(name, role, fields, definition.batch_source)


def _check_fields(service: ResolvedService, request: TrainingRequest) -> None:
    owners: dict[str, str] = {}
    for view in service.views:
        for field in view.fields:
            if owners.setdefault(field, view.name) != view.name:
                words = (
                    f"field {field} of service {service.name} is in {owners[field]} and {view.name}, expected in one"
                )
                raise missing(words, service.name, field)
    if not service.fields(OBSERVATION):
        raise missing(f"feature service {service.name} has no view tagged feature_role: {OBSERVATION}", service.name)
    for use, column in request.data.columns.model_dump(exclude_none=True).items():
        if column not in owners:
            words = f"data.columns.{use}: feature service {service.name} has no field {column}"
            raise missing(words, service.name, column, detail=f"its fields: {', '.join(owners)}")

"""Dashboard and alerts ask for metrics that the roles export, in PromQL that parses."""

import json
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/training-fsm.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"up"}


def _selectors(node: object) -> Iterator[str]:
    """Metric names in a parsed expression."""
    match node:
        case promql_parser.VectorSelector(name=name):
            assert name is not None
            yield name
        case promql_parser.MatrixSelector(vector_selector=inner):
            yield from _selectors(inner)
        case promql_parser.BinaryExpr(lhs=left, rhs=right):
            yield from _selectors(left)
            yield from _selectors(right)
        case promql_parser.Call(args=arguments):
            for argument in arguments:
                yield from _selectors(argument)
        case promql_parser.AggregateExpr(expr=inner) | promql_parser.ParenExpr(expr=inner):
            yield from _selectors(inner)
        case promql_parser.NumberLiteral():
            return
        case other:
            raise AssertionError(f"not foreseen in a query: {type(other).__name__}")


QUERIES = [
    *((f"panel {panel['title']}", target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((f"alert {rule['alert']}", rule["expr"]) for rule in RULES),
]


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_query_asks_for_what_is_exported(exported: frozenset[str], where: str, query: str) -> None:
    """A renamed metric would leave a panel empty and an alert silent for ever."""
    names = set(_selectors(promql_parser.parse(query)))
    assert names
    assert names <= exported | OF_PROMETHEUS, where


def test_every_metric_is_on_the_dashboard(exported: frozenset[str]) -> None:
    """What is worth exporting is worth a look; only the build's label and the process's own may be left out."""
    shown = {name for _, query in QUERIES for name in _selectors(promql_parser.parse(query))}
    ours = {name for name in exported if name.startswith("training_fsm_")}
    assert ours - shown == {"training_fsm_build_info"}


def test_every_metric_is_in_the_docs(exported: frozenset[str]) -> None:
    """The table in operations.md names each, without the prefix."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    ours = {name.removeprefix("training_fsm_") for name in exported if name.startswith("training_fsm_")}
    assert [name for name in sorted(ours) if f"`{name}`" not in page and f"`{name}{{" not in page] == []


def test_panels_do_not_overlap() -> None:
    """Each has its place in the grid of 24 columns, an id of its own and a word about itself."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert [panel["title"] for panel in PANELS if not panel["description"]] == []


def test_alerts_say_what_to_do() -> None:
    """An alert without a next step is noise."""
    assert [rule["alert"] for rule in RULES if not rule["annotations"].get("what_to_do")] == []
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_prometheus_and_grafana_find_each_other() -> None:
    """The scraped port is the image's, the rules are beside the configuration, the source is the dashboard's."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert [name for name in prometheus["rule_files"] if not (DEPLOY / "prometheus" / name).exists()] == []
    (job,) = prometheus["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert set(found["names"]) <= compose["services"].keys()
    assert str(found["port"]) == compose["x-role"]["environment"]["TRAINING_FSM_HTTP_PORT"]
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    boards = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/training-fsm.yml").read_text(encoding="utf-8"))
    mounted = {line.split(":")[1] for line in compose["services"]["grafana"]["volumes"]}
    assert boards["providers"][0]["options"]["path"] in mounted

"""The Grafana dashboard asks for nothing that a scrape does not have."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT
from support.scripted import END
from support.served import Server

DASHBOARD = ROOT / "docs" / "grafana" / "pangu-coder2.json"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
OF_THE_SCRAPE = {"job", "instance"}  # labels that Prometheus adds


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Metric]:
    """Sample name -> its family, of a server that answered, and refused while it was loading."""
    server = Server(tmp_path_factory.mktemp("artifact"), lambda _: [*b"ab", END])
    assert server.complete().status_code == 503
    server.engine.load(server.backend)
    assert server.complete().status_code == 200
    families = list(text_string_to_metric_families(server.client.get("/metrics").text))
    server.engine.close()
    return {family.name + suffix: family for family in families for suffix in SUFFIXES[family.type]}


def expressions(dashboard: Any) -> Iterator[tuple[str, str]]:
    """Each query of the panels with its legend."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:vllm:|pangu_|process_)\w+", expression))


def test_every_metric_of_the_dashboard_is_exported(dashboard: Any, scraped: Mapping[str, Metric]) -> None:
    names = {name for expression, _ in expressions(dashboard) for name in names_in(expression)}
    assert len(names) > 20
    assert sorted(names - scraped.keys()) == []


def test_every_label_of_the_dashboard_is_exported(dashboard: Any, scraped: Mapping[str, Metric]) -> None:
    for expression, legend in expressions(dashboard):
        used = {
            label.strip()
            for group in re.findall(r"\b(?:by|on) \((.*?)\)", expression)
            for label in group.split(",")
        }
        used |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)) | set(re.findall(r"{{(\w+)}}", legend))
        families = [scraped[name] for name in names_in(expression)]
        known = {label for family in families for sample in family.samples for label in sample.labels}
        # A family whose labels are those of events, or of a GPU, has no sample without.
        assert used <= known | OF_THE_SCRAPE or not all(family.samples for family in families), expression


def test_variables_choose_the_source_and_the_model(dashboard: Any) -> None:
    source, model = dashboard["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert model["definition"] == "label_values(vllm:num_requests_running, model_name)"
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    for expression, _ in expressions(dashboard):
        assert 'model_name=~"$model_name"' in expression
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers)

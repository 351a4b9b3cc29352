"""Alerts and dashboard are held against the metrics that the worker really exports."""

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from worker.events import EventListener
from worker.service import Service
from worker.settings import load_settings
from worker.telemetry import metrics as known
from worker.telemetry.metrics import Gauges, Metrics
from worker.telemetry.status import WorkerPhase

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
ENDINGS = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
    "info": ("_info",),
}
FROM_PROMETHEUS = {"job", "instance", "le"}
VALUES = {
    "status": set(known.STATUSES),
    "reason": {*known.REASONS, *known.REPLY_REFUSALS},
    "queue": {"requests", *known.OWN_QUEUES},
    "result": set(known.TOKEN_RESULTS),
    "connection": set(known.CONNECTIONS),
    "partition": {str(number) for number in range(1, 65)},
    "code": {str(status) for status in range(100, 600)} | {"none", "other"},
}
METRIC = re.compile(r"\b((?:ott|process|python)_\w+)")
MATCHED = re.compile(r"(\w+)\{([^}]*)\}")
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")


@pytest.fixture
async def exported() -> dict[str, set[str]]:
    """The labels of each series that `/metrics` shows."""
    settings = load_settings(
        mc_client_id="id",
        mc_client_secret="s",
        mc_auth_url="http://localhost:1",
        mc_rest_url="http://localhost:1",
    )
    service = Service(settings, EventListener())
    metrics = Metrics()
    metrics.call_ended(201, 0.1)
    metrics.routed(1)
    metrics.registry.register(Gauges(service, WorkerPhase()))
    series = {
        family.name + ending: _labels(family)
        for family in metrics.registry.collect()
        for ending in ENDINGS[family.type]
    }
    await service.marketing_cloud.__aexit__()
    return series


def _labels(family: Metric) -> set[str]:
    return set(getattr(family, "_labelnames", ())) | {name for s in family.samples for name in s.labels}


def alert_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def expressions() -> dict[str, str]:
    """Every expression of alerts and dashboard, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in alert_rules()}
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']}, {target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        if "definition" in variable:
            found[f"variable {variable['name']}"] = variable["definition"]
    return found


@pytest.mark.parametrize("place", expressions())
def test_an_expression_names_only_series_and_labels_that_are_exported(place, exported):
    expression = expressions()[place]
    named = set(METRIC.findall(expression))
    assert named
    assert named <= set(exported)
    labels = set().union(*(exported[name] for name in named)) | FROM_PROMETHEUS
    for group in GROUPED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels
    for name, matchers in MATCHED.findall(expression):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in exported[name] | FROM_PROMETHEUS
            assert value == "$job" or set(value.split("|")) <= VALUES[label]


def test_no_label_can_take_any_value(exported):
    own = {label for name, labels in exported.items() if name.startswith("ott_") for label in labels}
    assert own <= {*VALUES, "platform", "le", "version", "python"}


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_has_a_runbook(rule):
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    runbook = (DEPLOY / "docs" / "alerts.md").read_text()
    assert rule["annotations"]["runbook"] == f"deploy/docs/alerts.md#{rule['alert'].lower()}"
    assert f"## {rule['alert']}\n" in runbook


def test_promtool_accepts_configuration_alerts_and_their_tests():
    check = subprocess.run(
        [DEPLOY / "prometheus" / "check"], capture_output=True, text=True, check=False, timeout=120
    )
    if shutil.which("promtool") is None:
        warnings.warn(
            "promtool is not installed: the alerts' own tests did not run (deploy/docs/monitoring.md)",
            stacklevel=1,
        )
        assert check.returncode == 3
        assert "promtool" in check.stderr
    else:
        assert check.returncode == 0, check.stderr

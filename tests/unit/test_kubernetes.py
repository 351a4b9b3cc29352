"""The manifests: valid for Kubernetes, true to the worker's settings, and as locked up as they claim."""

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from worker.broker.topology import Topology

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAY = MANIFESTS / "overlays" / "production"
PREFIX = "ott.registration"
OPERATORS = ("rabbitmq.com", "monitoring.coreos.com", "keda.sh")
PATCHES = ("kustomization.yaml", "dead-letter-keys.yaml")

sys.path.insert(0, str(ROOT / "deploy" / "lib"))
from definitions import DEAD_LETTERS, JOURNAL, USERS, definitions  # noqa: E402 - a script's module

Document = dict[str, Any]
FILES = {
    path: [document for document in yaml.safe_load_all(path.read_text()) if document]
    for path in sorted(MANIFESTS.rglob("*.yaml"))
    if path.name not in PATCHES
}


def all_of(kind: str, folder: str = "") -> list[Document]:
    """Every resource of a kind, or those of one folder."""
    return [
        document
        for path, documents in FILES.items()
        for document in documents
        if document["kind"] == kind and path.parent.name.startswith(folder)
    ]


def the(kind: str, folder: str = "base") -> Document:
    (document,) = all_of(kind, folder)
    return document


def specs(kind: str) -> list[Document]:
    return [document["spec"] for document in all_of(kind)]


def check(document: Document) -> None:
    """Against the schema of Kubernetes; offline, none of an operator's is at hand. Raises."""
    if document["apiVersion"].partition("/")[0] not in OPERATORS:
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_manifest_is_valid(path):
    assert FILES[path]
    for document in FILES[path]:
        check(document)


def test_the_overlay_as_kubectl_builds_it_is_valid():
    if shutil.which("kubectl") is None:
        warnings.warn("kubectl is not installed: the overlay was not built", stacklevel=1)
        return
    done = subprocess.run(["kubectl", "kustomize", OVERLAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for document in yaml.safe_load_all(done.stdout):
        check(document)


@pytest.mark.parametrize("folder", ["base", "console"])
def test_the_pod_is_restricted_and_its_secrets_come_as_files(folder):
    pod = the("Deployment", folder)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert the("ServiceAccount", folder)["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for entry in container["env"]:
        assert entry["name"].endswith("_FILE")
        assert entry["value"].startswith("/run/secrets/")


def test_an_update_brings_a_standby_up_before_it_ends_a_worker():
    spec = the("Deployment")["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_topology_is_the_one_that_the_worker_declares():
    expected = definitions(Topology(PREFIX), "ott", dict.fromkeys(USERS, ""))
    queues = {q["name"]: q["arguments"] | {"x-queue-type": q["type"]} for q in specs("Queue")}
    assert queues == {queue["name"]: queue["arguments"] for queue in expected["queues"]}
    assert {queue["deletionPolicy"] for queue in specs("Queue")} == {"retain"}
    assert [(e["name"], e["type"]) for e in specs("Exchange")] == [
        (exchange["name"], exchange["type"]) for exchange in expected["exchanges"]
    ]
    assert [(b["source"], b["destination"], b["routingKey"]) for b in specs("Binding")] == [
        (b["source"], b["destination"], b["routing_key"]) for b in expected["bindings"]
    ]
    assert [(p["pattern"], p["definition"]) for p in specs("Policy")] == [
        (policy["pattern"], policy["definition"]) for policy in expected["policies"]
    ]


def test_users_may_do_what_the_definitions_let_them():
    expected = definitions(Topology(PREFIX), "ott", dict.fromkeys(USERS, ""))
    scaler = "ott-scaler"  # of the example, and of Kubernetes alone
    rights = {
        entry["user"]: {right: entry[right] for right in ("configure", "write", "read")}
        for entry in expected["permissions"]
        if entry["user"] != "ott-provisioner"
    } | {scaler: dict.fromkeys(("configure", "write", "read"), "^$")}
    assert {p["userReference"]["name"]: p["permissions"] for p in specs("Permission")} == rights
    limits = {user["name"]: user["limits"] for user in expected["users"]} | {scaler: {}}
    limits.pop("ott-provisioner")
    assert {
        d["metadata"]["name"]: {f"max-{what}": most for what, most in d["spec"].get("limits", {}).items()}
        for d in all_of("User")
    } == limits
    topics = {entry["user"]: entry["write"] for entry in expected["topic_permissions"]}
    assert {p["userReference"]["name"]: p["permissions"]["write"] for p in specs("TopicPermission")} == topics


def test_the_prometheus_rule_holds_the_alerts():
    rule = ROOT / "deploy" / "prometheus" / "rule"
    made = subprocess.run([rule], capture_output=True, text=True, check=True).stdout
    assert made == (MANIFESTS / "base" / "prometheus-rule.yaml").read_text(), "made anew by prometheus/rule"


def test_rabbitmq_is_named_by_one_tested_version_in_full():
    places = ("deploy/kubernetes/rabbitmq/cluster.yaml", "docker-compose.yml", "deploy/lib/brokers.py")
    (version,) = {
        v for place in places for v in re.findall(r"rabbitmq:(\d+\.[\w.]+)", (ROOT / place).read_text())
    }
    assert re.fullmatch(r"4\.3\.\d+", version)


def test_wherever_we_ship_limits_the_journal_is_kept_as_long_as_dead_letters():
    shipped = ("docker-compose.yml", "deploy/systemd/ott-worker.service")
    shipped += ("deploy/kubernetes/base/kustomization.yaml",)
    texts = [(ROOT / each).read_text() for each in shipped]
    ages = [age for text in texts for age in re.findall(r"OTT_JOURNAL_MAX_AGE[:=] ?(\w+)", text)]
    assert len(ages) == len(shipped)
    (age,) = {*ages, JOURNAL["max-age"]}
    assert age == f"{DEAD_LETTERS['message-ttl'] // 86_400_000}D"

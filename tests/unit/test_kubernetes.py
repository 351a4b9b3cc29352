"""The manifests: valid for Kubernetes, true to the worker's settings, and as locked up as they claim."""

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from worker.broker.compatibility import seconds_of
from worker.broker.topology import Topology
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAY = MANIFESTS / "overlays" / "production"
PATCH = "dead-letter-keys.yaml"
PREFIX = "ott.registration"
CONSOLE = "ott-console"
OPERATORS = ("rabbitmq.com", "monitoring.coreos.com", "keda.sh")

sys.path.insert(0, str(ROOT / "deploy" / "lib"))
from definitions import DEAD_LETTERS, JOURNAL, USERS, definitions  # noqa: E402 - a script's module

Document = dict[str, Any]


def files() -> list[Path]:
    return sorted(
        path for path in MANIFESTS.rglob("*.yaml") if path.name not in ("kustomization.yaml", PATCH)
    )


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def all_of(kind: str) -> list[Document]:
    """Every resource of a kind, patches left out."""
    return [
        d for path in files() if OVERLAY not in path.parents for d in documents(path) if d["kind"] == kind
    ]


def the(kind: str, folder: str = "base") -> Document:
    """The only resource of a kind, whether of the workers, of their broker, or of the console."""
    if folder != "base":
        paths = [path for path in files() if path.parent.name == folder]
        (document,) = [d for path in paths for d in documents(path) if d["kind"] == kind]
        return document
    (document,) = [d for d in all_of(kind) if d["metadata"]["name"] != CONSOLE]
    return document


def rendered() -> Iterator[Document]:
    """What `kubectl apply -k` sends for the overlay, where kubectl is installed."""
    if shutil.which("kubectl") is None:
        warnings.warn(
            "kubectl is not installed: the overlay was not built, its parts alone are checked", stacklevel=1
        )
        return
    done = subprocess.run(["kubectl", "kustomize", OVERLAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield from yaml.safe_load_all(done.stdout)


def check(document: Document) -> None:
    """Against the schema of Kubernetes; offline, none of an operator's is at hand. Raises."""
    if document["apiVersion"].partition("/")[0] not in OPERATORS:
        kubernetes_validate.validate(document, "1.37", strict=True)
    elif document["kind"] != "RabbitmqCluster" and "rabbitmq.com" in document["apiVersion"]:
        cluster = the("RabbitmqCluster")["metadata"]["name"]
        assert document["spec"]["rabbitmqClusterReference"] == {"name": cluster}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_manifest_is_valid(path: Path) -> None:
    assert documents(path)
    for document in documents(path):
        check(document)


def test_the_overlay_as_kubectl_builds_it_is_valid() -> None:
    built = [document["kind"] for document in rendered() if check(document) is None]
    assert not built or {"Deployment", "RabbitmqCluster", "NetworkPolicy", "Namespace"} <= set(built)


def test_every_setting_in_the_manifests_is_one_of_the_workers() -> None:
    text = "".join(path.read_text() for path in MANIFESTS.rglob("*.yaml"))
    named = set(re.findall(r"\bOTT_[A-Z_]+", text))
    settings = {f"OTT_{name.upper()}" for name in Settings.model_fields}
    assert named
    assert {
        name for name in named if name not in settings and name.removesuffix("_FILE") not in settings
    } == set()


def container(folder: str = "base") -> Document:
    (only,) = the("Deployment", folder)["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("folder", ["base", "console"])
def test_the_pod_is_restricted(folder: str) -> None:
    pod = the("Deployment", folder)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert the("ServiceAccount", folder)["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(folder)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (namespace,) = documents(OVERLAY / "namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_secrets_come_as_files_only() -> None:
    for entry in container()["env"] + container("console")["env"]:
        assert entry["name"].endswith("_FILE")
        assert entry["value"].startswith("/run/secrets/")
    assert all("secretKeyRef" not in path.read_text() for path in files())


def test_an_update_brings_a_standby_up_before_it_ends_a_worker() -> None:
    spec = the("Deployment")["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert the("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_topology_is_the_one_that_the_worker_declares() -> None:
    names = Topology(PREFIX)
    expected = definitions(names, "ott", dict.fromkeys(USERS, ""))
    queues = {
        d["spec"]["name"]: d["spec"]["arguments"] | {"x-queue-type": d["spec"]["type"]}
        for d in all_of("Queue")
    }
    assert queues == {queue["name"]: queue["arguments"] for queue in expected["queues"]}
    assert {d["spec"]["deletionPolicy"] for d in all_of("Queue")} == {"retain"}
    assert {d["spec"]["name"]: d["spec"]["type"] for d in all_of("Exchange")} == {
        exchange["name"]: exchange["type"] for exchange in expected["exchanges"]
    }
    assert [
        (d["spec"]["source"], d["spec"]["destination"], d["spec"]["routingKey"]) for d in all_of("Binding")
    ] == [(b["source"], b["destination"], b["routing_key"]) for b in expected["bindings"]]
    assert [(d["spec"]["pattern"], d["spec"]["definition"]) for d in all_of("Policy")] == [
        (policy["pattern"], policy["definition"]) for policy in expected["policies"]
    ]


def test_users_may_do_what_the_definitions_let_them() -> None:
    expected = definitions(Topology(PREFIX), "ott", dict.fromkeys(USERS, ""))
    scaler = "ott-scaler"  # of the example, and of Kubernetes alone
    rights = {
        entry["user"]: {right: entry[right] for right in ("configure", "write", "read")}
        for entry in expected["permissions"]
        if entry["user"] != "ott-provisioner"
    } | {scaler: dict.fromkeys(("configure", "write", "read"), "^$")}
    assert {
        d["spec"]["userReference"]["name"]: d["spec"]["permissions"] for d in all_of("Permission")
    } == rights
    limits = {user["name"]: user["limits"] for user in expected["users"]} | {scaler: {}}
    limits.pop("ott-provisioner")
    assert {
        d["metadata"]["name"]: {f"max-{what}": most for what, most in d["spec"].get("limits", {}).items()}
        for d in all_of("User")
    } == limits
    topics = {entry["user"]: entry["write"] for entry in expected["topic_permissions"]}
    assert {
        d["spec"]["userReference"]["name"]: d["spec"]["permissions"]["write"]
        for d in all_of("TopicPermission")
    } == topics


def test_the_prometheus_rule_holds_the_alerts() -> None:
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert the("PrometheusRule")["spec"] == alerts, "deploy/prometheus/rule makes it anew"

    rule = ROOT / "deploy" / "prometheus" / "rule"
    made = subprocess.run([rule], capture_output=True, text=True, check=True).stdout
    assert made == (MANIFESTS / "base" / "prometheus-rule.yaml").read_text()

    linked = subprocess.run(
        [rule, "https://git.example.com/ott/"], capture_output=True, text=True, check=True
    )
    for group in yaml.safe_load(linked.stdout)["spec"]["groups"]:
        for alert in group["rules"]:
            page = f"https://git.example.com/ott/deploy/docs/alerts.md#{alert['alert'].lower()}"
            assert alert["annotations"]["runbook_url"] == page


def test_rabbitmq_is_named_by_one_tested_version_in_full() -> None:
    places = ("deploy/kubernetes/rabbitmq/cluster.yaml", "docker-compose.yml", "deploy/lib/brokers.py")
    named = {v for place in places for v in re.findall(r"rabbitmq:(\d+\.[\w.]+)", (ROOT / place).read_text())}
    (version,) = named
    assert re.fullmatch(r"4\.3\.\d+", version)


def test_wherever_we_ship_limits_the_journal_is_kept_as_long_as_dead_letters() -> None:
    policies = {policy["spec"]["name"]: policy["spec"]["definition"] for policy in all_of("Policy")}
    (journal,) = (q["spec"] for q in all_of("Queue") if q["spec"]["name"] == f"{PREFIX}.journal")
    shipped = (
        "docker-compose.yml",
        "deploy/systemd/ott-worker.service",
        "deploy/kubernetes/base/kustomization.yaml",
    )
    ages = [
        JOURNAL["max-age"],
        policies[f"limits of {PREFIX}.journal"]["max-age"],
        journal["arguments"]["x-max-age"],
        *(
            age
            for each in shipped
            for age in re.findall(r"OTT_JOURNAL_MAX_AGE[:=] ?(\w+)", (ROOT / each).read_text())
        ),
    ]
    ttl = DEAD_LETTERS["message-ttl"]
    assert policies[f"limits of {PREFIX}.dead"]["message-ttl"] == ttl
    assert len(ages) == 3 + len(shipped)
    assert {seconds_of(age) * 1000 for age in ages} == {ttl}

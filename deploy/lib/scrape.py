"""Let a real Prometheus scrape a worker, and hold its alerts against what it found: `scrape.py URL`."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ALERTS = Path(__file__).parents[1] / "prometheus" / "alerts.yml"
WAIT_TIMEOUT = 60.0  # seconds
CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{alerts}]
scrape_configs: [{{job_name: ott-worker, static_configs: [{{targets: ["{target}"]}}]}}]
"""


def scrape(url: str) -> str:
    """Return what was found, in one line; raises RuntimeError with one that says what is wrong."""
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("prometheus is not installed: apt-get install prometheus")
    with tempfile.TemporaryDirectory(prefix="ott-prometheus-") as folder:
        configuration = Path(folder) / "prometheus.yml"
        target = urllib.parse.urlsplit(url).netloc
        configuration.write_text(CONFIGURATION.format(alerts=ALERTS, target=target))
        address = f"127.0.0.1:{_free_port()}"
        with open(Path(folder) / "log", "wb") as log:
            process = subprocess.Popen(
                [
                    program,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                return _look(f"http://{address}/api/v1", url)
            finally:
                process.terminate()
                process.wait()


def _look(api: str, url: str) -> str:
    deadline = time.monotonic() + WAIT_TIMEOUT
    while time.monotonic() < deadline:
        try:
            up = _value(api, "up")
            series = _value(api, 'count({__name__=~"ott_.+"})')
            (group,) = _get(api, "rules")["groups"]
        except (urllib.error.URLError, ConnectionError, ValueError):
            up = series = None
        if up == 1 and series and all(rule["health"] == "ok" for rule in group["rules"]):
            alerts = len(group["rules"])
            return f"Prometheus finds {url} up, {series:.0f} series of ours and {alerts} alerts in order"
        time.sleep(0.2)
    raise RuntimeError(f"Prometheus does not find {url} up, or cannot evaluate the alerts")


def _value(api: str, expression: str) -> float | None:
    result = _get(api, "query?" + urllib.parse.urlencode({"query": expression}))["result"]
    return float(result[0]["value"][1]) if result else None


def _get(api: str, what: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{api}/{what}", timeout=5) as response:  # noqa: S310
        data: dict[str, Any] = json.load(response)["data"]
        return data


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


if __name__ == "__main__":
    try:
        print(scrape(sys.argv[1]))
    except RuntimeError as error:
        sys.exit(f"scrape: {error}")

"""Write the pages of deploy/docs that are made from the code; with `--check` only compare them."""

import asyncio
import sys
from pathlib import Path

from prometheus_client.metrics_core import Metric
from pydantic import SecretStr

from worker import errors
from worker.events import EventListener
from worker.service import Service
from worker.settings import Settings, load_settings, variable
from worker.telemetry.metrics import Gauges, Metrics
from worker.telemetry.status import WorkerPhase

DOCS = Path(__file__).parents[1] / "docs"
MADE = "<!-- Made from the code by deploy/fix. -->"


def pages() -> dict[str, str]:
    """Each page by its file name."""
    return {"settings.md": _settings(), "metrics.md": _metrics(), "exit-codes.md": _exit_codes()}


def outdated() -> list[str]:
    """The pages that differ from the code."""
    return [
        name
        for name, text in pages().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text("utf-8") != text
    ]


def _page(title: str, text: str, head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([MADE, "", f"# {title}", "", text, "", head, "|" + "---|" * columns, *rows, ""])


def _settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, bool):
            default = str(default).lower()
        shown = "" if default is None else f"`{default}`"
        rows.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    text = (
        "Environment variables, each also as `NAME_FILE` (a file that holds the value), or a `.env` file.\n"
        "Files are read again when they change. A wrong value ends the start with one line and exit code 2;\n"
        "a variable `OTT_…` that is not in this table is named in one warning."
    )
    return _page("Settings", text, "| variable | default | |", rows)


def _metrics() -> str:
    rows = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | "
        f"{', '.join(f'`{name}`' for name in _labels(family))} | {family.documentation} |"
        for family in sorted(asyncio.run(_families()), key=lambda family: family.name)
        if family.name.startswith("ott_")
    ]
    text = (
        "`GET /metrics` on `OTT_ADMIN_HOST:OTT_ADMIN_PORT`, besides `process_*` and `python_*`. Every label\n"
        "has a bounded set of values."
    )
    return _page("Metrics", text, "| metric | type | labels | |", rows)


async def _families() -> list[Metric]:
    local = "http://localhost:1"
    credentials = {"mc_client_id": "-", "mc_client_secret": "-"}
    settings = load_settings(**credentials, mc_auth_url=local, mc_rest_url=local)
    service, metrics = Service(settings, EventListener()), Metrics()
    metrics.call_ended(201, 0.1)
    metrics.registry.register(Gauges(service, WorkerPhase()))
    try:
        return list(metrics.registry.collect())
    finally:
        await service.marketing_cloud.__aexit__()


def _labels(family: Metric) -> list[str]:
    found = {name: None for sample in family.samples for name in sample.labels if name != "le"}
    return list(found or dict.fromkeys(getattr(family, "_labelnames", ())))


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} | {_kinds(code)} |" for code, meaning in _MEANING.items()]
    text = "Of every command. An error is one line on standard error."
    return _page("Exit codes", text, "| code | | errors |", rows)


def _kinds(code: int) -> str:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return ", ".join(f"`{kind.__name__}`" for kind in kinds if getattr(kind, "exit_code", None) == code)


_MEANING = {
    0: "Success",
    1: "It ran, and something was not registered or not replayed",
    2: "Wrong usage or settings",
    3: "RabbitMQ or Marketing Cloud cannot be reached",
    130: "Interrupted",
}

if __name__ == "__main__":
    if "--check" not in sys.argv:
        for name, text in pages().items():
            (DOCS / name).write_text(text, "utf-8")
    elif outdated():
        sys.exit(f"out of date, run deploy/fix: {', '.join(outdated())}")

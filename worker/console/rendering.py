"""Rendering pages from templates, or as JSON (contract §11)."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from aiohttp import web
from markupsafe import Markup

from worker.broker.situation import advice
from worker.console.forms import attributes_of, text_of
from worker.contract.platforms import FLAG_FIELDS, PLATFORMS, SECRET_FIELDS
from worker.contract.settlement import brief
from worker.contract.timestamps import how_long, microseconds
from worker.contract.words import REASONS, STATUSES
from worker.release import version
from worker.settings import Settings

SESSION: web.RequestKey[str] = web.RequestKey("session", str)
"""The name that the user entered at login."""


class Page(NamedTuple):
    """A page: its path, its template (and method of Pages), whether it shows dead letters, its name in the
    menu, and its key after g. Menu and routes have the order of PAGES."""

    path: str
    template: str
    shows_letters: bool = False
    name: str = ""
    key: str = ""


PAGES = (
    Page("/", "overview", True, "Overview", "o"),
    Page("/dead-letters", "dead_letters", True, "Dead letters", "d"),
    Page(r"/dead-letters/{letter:[\s\S]+}", "letter", True),
    Page("/journal", "journal", False, "Journal", "j"),
    Page("/audit", "audit", False, "Audit", "a"),
    Page("/runs/{number}", "run"),
    Page(r"/resources/{platform}/{resource:[\s\S]*}", "resource", True),
)
_LINK = re.compile(r'\b(href|src|action|formaction|hx-get|hx-post)="/(?!/)')


def local_path(path: str, settings: Settings) -> str:
    """The path without the prefix of OTT_CONSOLE_URL, which a proxy may have left in it."""
    base = urlsplit(settings.console_url or "").path
    if not base or not f"{path}/".startswith(f"{base}/"):
        return path
    return path.removeprefix(base) or "/"


def wants_json(request: web.Request) -> bool:
    """Whether the client accepts JSON and not HTML."""
    accept = request.headers.get("Accept", "")
    return "application/json" in accept and "text/html" not in accept


class Renderer:
    """The templates and their common values."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base = quote(urlsplit(settings.console_url or "").path)
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("worker.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "ago": _ago,
            "brief": brief,
            "moment": _moment,
            "number": _number,
            "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
            "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            "text": text_of,
            "sentence": lambda text: f"{text[:1].upper()}{text[1:].rstrip('.')}.",
        }
        self._environment.globals |= {
            "advice": advice,
            "attributes_of": attributes_of,
            "flags": FLAG_FIELDS,
            "menu": [page for page in PAGES if page.name],
            "platforms": PLATFORMS,
            "prefix": settings.prefix,
            "read_only": settings.console_read_only,
            "reasons": REASONS,
            "resource_path": _resource_path,
            "secrets": SECRET_FIELDS,
            "statuses": STATUSES,
            "version": version(),
        }
        for name in self._environment.list_templates():
            self._environment.get_template(name)  # compile at the start, not at the first request

    def answer(
        self,
        request: web.Request,
        template: str,
        document: Mapping[str, Any],
        *,
        status: int = 200,
        **values: Any,
    ) -> web.Response:
        """The document as JSON or as a page, as `doc`. `values` are further values for the template."""
        if wants_json(request):
            kind = "application/json"
            text = json.dumps(document, ensure_ascii=False, default=datetime.isoformat) + "\n"
        else:
            kind = "text/html"
            text = self._environment.get_template(f"{template}.html").render(
                doc=document,
                path=local_path(request.path, self._settings),
                url=local_path(request.path_qs, self._settings),
                query=request.query,
                can_log_out=bool(self._settings.console_password) and SESSION in request,
                **values,
            )
            if self._base:
                text = _LINK.sub(rf'\1="{self._base}/', text)
        return web.Response(
            # Ids come from AMQP properties and may hold bytes that are not UTF-8.
            body=text.encode(errors="replace"),
            content_type=kind,
            charset="utf-8",
            status=status,
            headers={"Vary": "Accept"},
        )


def _resource_path(platform: str, id_: str, account: str | None = None) -> str:
    """The path of a resource's page."""
    query = {"account": account} if account else {}
    if id_ in (".", ".."):  # a browser removes these from a path
        query["id"], id_ = id_, ""
    path = f"/resources/{quote(platform, safe='')}/{quote(id_, safe='')}"
    return f"{path}?{urlencode(query)}" if query else path


def _moment(value: object) -> datetime | None:
    """A time, from a datetime, microseconds since the epoch, or a record's text; None for other values."""
    if isinstance(value, str):
        value = microseconds(value)
    if isinstance(value, int):
        value = datetime.fromtimestamp(value / 1_000_000, UTC)
    return value if isinstance(value, datetime) else None


def _ago(value: object) -> Markup:
    """How long ago, with the time itself as a tooltip."""
    moment = _moment(value)
    if moment is None:
        return Markup("-")
    iso = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{} ago</time>').format(
        moment.isoformat(), iso, how_long(moment, datetime.now(UTC))
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"

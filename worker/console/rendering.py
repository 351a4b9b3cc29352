"""Pages out of templates, or the same as JSON (contract §11)."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from aiohttp import web
from markupsafe import Markup

from worker.console.session import SESSION
from worker.contract.settlement import brief
from worker.contract.timestamps import how_long, microseconds
from worker.release import version
from worker.settings import Settings


class Page(NamedTuple):
    """A page: where it is, its template and the method of Pages that has the same name, whether it shows the
    dead letters, its name in the menu, and the key after g that leads there. The order is that of the menu
    and of the routes."""

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
CHART_WIDTH, CHART_HEIGHT = 600, 100
STACK = ("registered", "superseded", "rejected", "failed")  # from the bottom up
LEAST_HEIGHT = 1.5  # one failure among thousands must be seen
_LINK = re.compile(r'\b(href|src|action|formaction|hx-get|hx-post)="/(?!/)')


def local_path(path: str, settings: Settings) -> str:
    """The path on this console of one that a proxy may have passed on with its own path before it."""
    base = urlsplit(settings.console_url or "").path
    if not base or not f"{path}/".startswith(f"{base}/"):
        return path
    return path.removeprefix(base) or "/"


def wants_json(request: web.Request) -> bool:
    """Whether the caller accepts JSON and says nothing of HTML."""
    accept = request.headers.get("Accept", "")
    return "application/json" in accept and "text/html" not in accept


def see(path: str) -> web.Response:
    """Lead the browser on to a page."""
    return web.Response(status=303, headers={"Location": path})


class Renderer:
    """The templates, with everything that all of them need."""

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
            "number": _number,
            "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
            "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            "resource": _resource_path,
            "query": _query,
            "seconds": _seconds,
            "sentence": lambda text: f"{text[:1].upper()}{text[1:].rstrip('.')}.",
        }
        self._environment.globals |= {
            "menu": [page for page in PAGES if page.name],
            "prefix": settings.prefix,
            "read_only": settings.console_read_only,
            "version": version(),
            "chart_width": CHART_WIDTH,
            "chart_height": CHART_HEIGHT,
        }
        for name in self._environment.list_templates():
            self._environment.get_template(name)  # compiled now, so that nobody waits for it

    def page(self, request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """A page. `values` are what its template needs besides what all of them know."""
        text = self._environment.get_template(f"{template}.html").render(
            path=local_path(request.path, self._settings),
            url=local_path(request.path_qs, self._settings),
            can_log_out=bool(self._settings.console_password) and request.get(SESSION) is not None,
            **values,
        )
        if self._base:
            text = _LINK.sub(rf'\1="{self._base}/', text)
        return web.Response(body=_encoded(text), content_type="text/html", charset="utf-8", status=status)

    def answer(
        self, request: web.Request, template: str, document: Mapping[str, Any], **values: Any
    ) -> web.Response:
        """The document for those that want JSON, else a page, which is given it as `doc`."""
        if wants_json(request):
            text = json.dumps(document, ensure_ascii=False, default=_plain) + "\n"
            response = web.Response(body=_encoded(text), content_type="application/json", charset="utf-8")
        else:
            response = self.page(request, template, doc=document, **values)
        response.headers["Vary"] = "Accept"
        return response


def _encoded(text: str) -> bytes:
    """Ids come from AMQP properties and may hold bytes that are not UTF-8."""
    return text.encode(errors="replace")


def _resource_path(resource: tuple[str, str]) -> str:
    """The page of a page or channel. A browser takes `.` and `..` out of a path."""
    platform, id_ = (quote(each, safe="") for each in resource)
    return f"/resources/{platform}/?id={id_}" if id_ in (".", "..") else f"/resources/{platform}/{id_}"


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def moment_of(value: object) -> datetime | None:
    """A moment: as it is, in microseconds since the epoch, or as a record's text; None where it is none."""
    if isinstance(value, str):
        value = microseconds(value)
    if isinstance(value, int):
        value = datetime.fromtimestamp(value / 1_000_000, UTC)
    return value if isinstance(value, datetime) else None


def _ago(value: object) -> Markup:
    """How long ago, with the time itself beside it for whoever points at it."""
    moment = moment_of(value)
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


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.0f} min"


def _query(given: Mapping[str, str], **changes: object) -> str:
    """The query of a URL: what is given, with changes."""
    names = {**given, **{name: str(value) for name, value in changes.items()}}
    return f"?{urlencode(names)}" if names else ""


class Chart(NamedTuple):
    """Bars of minutes, in numbers that an SVG template draws. `summary` is what a screen reader says; `top`
    is the number at the upper edge. A bar is its left edge, what it says in words, and its parts: status,
    upper edge, height."""

    bars: Sequence[tuple[float, str, Sequence[tuple[str, float, float]]]]
    bar_width: float
    top: int
    totals: Mapping[str, int]
    summary: str


def chart_of(minutes: Sequence[tuple[datetime, Mapping[str, int]]]) -> Chart:
    """The chart of these minutes, the oldest first."""
    top = max((sum(counts.values()) for _, counts in minutes), default=0) or 1
    step = CHART_WIDTH / max(1, len(minutes))
    bars = []
    for number, (at, counts) in enumerate(minutes):
        parts, y = [], float(CHART_HEIGHT)
        for status in STACK:
            if count := counts.get(status, 0):
                height = max(LEAST_HEIGHT, count / top * CHART_HEIGHT)
                y -= height
                parts.append((status, round(y, 2), round(height, 2)))
        if parts:
            bars.append((round(number * step, 2), f"{at:%H:%M} UTC: {_in_words(counts)}", parts))
    totals = {status: sum(counts.get(status, 0) for _, counts in minutes) for status in STACK}
    words = f"Requests of the last {len(minutes)} minutes: {_in_words(totals) or 'none'}"
    return Chart(bars, round(step * 0.8, 2), top, totals, f"{words}; at most {top} a minute")


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in STACK if counts.get(status))

"""The tables and plots of README.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OURS = "ott-worker"
COLOURS = ("#1f6f8b", "#99a8b2", "#e07a5f", "#3d5a80", "#81b29a", "#f2cc8f", "#6d597a", "#b56576", "#355070")


def write(results: dict[str, Any]) -> None:
    """Put what was measured into README.md and the plots beside it."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text(results)}\n{END}{after}")
    if "latency" in results:
        (HERE / "throughput.svg").write_text(_throughput(results["latency"]))
    if "stages" in results:
        (HERE / "stages.svg").write_text(_stages(results["stages"]))


def text(results: dict[str, Any]) -> str:
    """All tables, in Markdown."""
    parts = [f"Measured {results['date']} on {results['machine']}. {results['versions']}."]
    for name, make in _TABLES.items():
        if name in results:
            parts.append(make(results[name]))
    return "\n\n".join(parts)


def _compare(table: dict[str, Any]) -> str:
    rows = [
        (
            f"**{name}**" if name == OURS else name,
            _spread(row["cpu"], "{:.0f}"),
            _spread(row["cpu_ratio"], "{:.2f}"),
            _spread(row["rate"], "{:.0f}"),
            _spread(row["rate_ratio"], "{:.2f}"),
            f"{row['memory']:.0f}",
            f"{row['first']:.1f}",
        )
        for name, row in table.items()
    ]
    head = (
        "",
        "CPU µs a request",
        "worker ÷ this, pair by pair",
        "requests/s",
        "worker ÷ this",
        "peak MB",
        "s to first reply",
    )
    return "### The same work, side by side\n\nMedian (lowest to highest).\n\n" + _table(head, rows)


def _latency(table: dict[str, Any]) -> str:
    rows = [
        (
            f"{ms} ms",
            f"{r['rate']:.0f}",
            f"{r['limit']:.0f}",
            f"{r['rate'] / r['limit']:.1%}",
            f"{r['cpu']:.0f}",
        )
        for ms, r in table.items()
    ]
    return (
        "### Upstream latency\n\nPrefetch 200; the limit is min(prefetch ÷ latency, one core ÷ CPU per "
        "request at 0 ms).\n\n"
        + _table(("upstream takes", "requests/s", "limit", "reached", "CPU µs"), rows)
        + "\n\n![Throughput over latency](throughput.svg)"
    )


def _slots(table: dict[str, Any]) -> str:
    reached = [(name, f"{share:.1%}") for name, share in table["reached"].items()]
    spent = [(what, f"{ms:.1f}") for what, ms in table["milliseconds"].items()]
    total = sum(table["milliseconds"].values())
    return (
        "### Where a slot's time goes\n\nAt 200 ms, of prefetch ÷ latency. A slot is taken until the broker "
        "has heard the acknowledgement, so the waits for the confirm and for the next delivery count. Bare "
        "loops end at the same place.\n\n"
        + _table(("", "reached"), reached)
        + f"\n\nOne turn of one slot of the worker, {total:.1f} ms:\n\n"
        + _table(("", "ms"), spent)
    )


def _resources(table: dict[str, Any]) -> str:
    rows = [(f"{int(n):,}", f"{r['rate']:.0f}", f"{r['cpu']:.0f}") for n, r in table.items()]
    return "### Resources\n\nRequests for one resource go one at a time.\n\n" + _table(
        ("resources", "requests/s", "CPU µs"), rows
    )


def _bodies(table: dict[str, Any]) -> str:
    rows = [
        (f"{int(n) // 1000} kB", f"{r['rate']:.0f}", f"{r['cpu']:.0f}", f"{r['memory']:.0f}")
        for n, r in table.items()
    ]
    return "### Bodies\n\n" + _table(("body", "requests/s", "CPU µs", "peak MB"), rows)


def _backlog(table: dict[str, Any]) -> str:
    rows = [
        (f"{int(n):,}", f"{r['rate']:.0f}", f"{r['cpu']:.0f}", f"{r['memory']:.1f}") for n, r in table.items()
    ]
    return "### Backlog\n\n" + _table(("waiting", "requests/s", "CPU µs", "peak MB"), rows)


def _added(table: dict[str, Any]) -> str:
    rows = [
        (where, f"{table[key]['p50'] * 1000:.1f}", f"{table[key]['p99'] * 1000:.1f}")
        for key, where in (
            ("inside", "in the worker, from arrival to the reply's writing"),
            ("outside", "from publishing the request to receiving the reply, broker included"),
        )
    ]
    return (
        f"### Added latency\n\nAt {table['rate']:.0f} requests/s, half of what it does at "
        f"{table['latency'] * 1000:.0f} ms or 500; the upstream's own time is taken off.\n\n"
        + _table(("", "p50 ms", "p99 ms"), rows)
    )


def _start(table: dict[str, Any]) -> str:
    seconds = _spread(table["first"], "{:.2f}")
    return f"### Start\n\n{seconds} s from the start of the program to the first reply."


def _stage_table(table: dict[str, Any]) -> str:
    rows = [
        (name, f"{share * table['cpu']:.0f}", f"{share:.0%}")
        for name, share in table["shares"].items()
        if share >= 0.005
    ]
    return (
        f"### Where the time goes\n\nOf {table['cpu']:.0f} µs a request (the sampling profiler's own cost "
        "included).\n\n"
        + _table(("stage", "µs", "share"), rows)
        + "\n\n![Cost of a request by stage](stages.svg)"
    )


_TABLES = {
    "compare": _compare,
    "latency": _latency,
    "slots": _slots,
    "resources": _resources,
    "bodies": _bodies,
    "backlog": _backlog,
    "added": _added,
    "start": _start,
    "stages": _stage_table,
}


def _spread(value: dict[str, float], shape: str) -> str:
    median, low, high = (shape.format(value[k]) for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _throughput(table: dict[str, Any]) -> str:
    """Bars: what was reached, before what the limit allows."""
    top = max(row["limit"] for row in table.values())
    parts = []
    for number, (ms, row) in enumerate(table.items()):
        x = 70 + number * 130
        for key, colour, shift in (("limit", "#d5dde2", 0), ("rate", COLOURS[0], 14)):
            height = 200 * row[key] / top
            parts.append(
                f'<rect x="{x + shift}" y="{230 - height:.1f}" width="{70 - 2 * shift}" '
                f'height="{height:.1f}" fill="{colour}"/>'
            )
        parts.append(
            _label(x + 35, 222 - 200 * row["limit"] / top, f"{row['rate']:.0f} of {row['limit']:.0f}")
        )
        parts.append(_label(x + 35, 248, f"{ms} ms"))
    parts.append(
        _label(300, 270, "requests a second: reached (dark) of the limit (light), by upstream latency")
    )
    return _svg(600, 280, parts)


def _stages(table: dict[str, Any]) -> str:
    parts = []
    rows = [(name, share) for name, share in table["shares"].items() if share >= 0.005]
    for number, (name, share) in enumerate(rows):
        y, width = 16 + number * 24, 320 * share / rows[0][1]
        parts.append(
            f'<rect x="240" y="{y}" width="{width:.1f}" height="16" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        parts.append(_label(232, y + 12, name, "end"))
        parts.append(_label(246 + width, y + 12, f"{share * table['cpu']:.0f} µs", "start"))
    return _svg(640, 30 + 24 * len(rows), parts)


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{text}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )

"""The tables of README.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OURS = "ott-worker"


def write(results: dict[str, Any]) -> None:
    """Put what was measured into README.md."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text(results)}\n{END}{after}")


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
        "request at 0 ms).\n\n" + _table(("upstream takes", "requests/s", "limit", "reached", "CPU µs"), rows)
    )


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


def _stage_table(table: dict[str, Any]) -> str:
    rows = [
        (name, f"{share * table['cpu']:.0f}", f"{share:.0%}")
        for name, share in table["shares"].items()
        if share >= 0.005
    ]
    return (
        f"### Where the time goes\n\nOf {table['cpu']:.0f} µs a request (the sampling profiler's own cost "
        "included).\n\n" + _table(("stage", "µs", "share"), rows)
    )


_TABLES = {
    "compare": _compare,
    "latency": _latency,
    "added": _added,
    "stages": _stage_table,
}


def _spread(value: dict[str, float], shape: str) -> str:
    median, low, high = (shape.format(value[k]) for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])

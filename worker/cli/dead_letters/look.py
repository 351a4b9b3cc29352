"""`ott-worker dead-letters list` and `show`, which change nothing; and the filters of all dead-letter
commands."""

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from worker.cli import output
from worker.cli.output import Column, Table, text_of, time_of
from worker.cli.terminal import Json, Resource, Say, known, letters
from worker.contract.platforms import PLATFORMS
from worker.contract.selection import AmbiguousId, Selection
from worker.contract.settlement import brief
from worker.contract.timestamps import moment
from worker.contract.words import REASONS
from worker.dead_letters.letter import BY_ERROR, Letter, causes_of, few
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.view import as_text, view
from worker.errors import UsageError
from worker.settings import load_settings

# Those of contract §5, the broker's own, and that of a letter without a reason.
LETTERS_REASONS = sorted((*REASONS, "delivery_limit", "expired", "maxlen", "unknown"))
NEXT = {
    **dict.fromkeys(("oversize", "expired", "maxlen"), "discard {}"),
    **dict.fromkeys(("invalid", "rejected"), "replay {} --set FIELD=VALUE"),
}


def _error(row: Any) -> str:
    return brief(row["error"]) or "-"


LETTER_COLUMNS = (
    Column("LETTER", text_of("letter")),
    Column("DIED (UTC)", time_of("deadAt"), rank=4),
    Column("REASON", text_of("reason"), rank=1),
    Column("ERROR", _error, least=24),
    Column("RESOURCE", text_of("resourceId"), rank=2),
    Column("PLATFORM", text_of("ottPlatformName"), rank=6),
    Column("TRIES", text_of("attempts"), rank=7),
    Column("REQUEST", text_of("id"), rank=8),
    Column("USER", text_of("userId"), rank=9),
)
GROUP_COLUMNS = (
    Column("COUNT", text_of("count")),
    Column("REASON", text_of("reason"), rank=1),
    Column("ERROR", _error, least=24),
    Column("FIRST (UTC)", time_of("first"), rank=3),
    Column("LAST (UTC)", time_of("last"), rank=2),
)


def _select(
    bare_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LETTER]...", help="Letter ids, or request ids that only one letter has."),
    ] = None,
    reason: Annotated[list[str] | None, typer.Option(help=f"{', '.join(LETTERS_REASONS)}.")] = None,
    error: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="The error contains this.")] = None,
    platform: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(PLATFORMS)}.")] = None,
    resource: Resource = None,
    user: Annotated[list[str] | None, typer.Option(help="The RabbitMQ user that published it.")] = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="As a bare id.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Dead at or after this time (UTC), or 2h, 3d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Dead at or before this time (UTC).")] = None,
) -> Selection:
    return Selection(
        reason=known("--reason", reason, LETTERS_REASONS),
        platform=known("--platform", platform, PLATFORMS),
        resource=frozenset(resource or ()),
        user=frozenset(user or ()),
        error=frozenset(error or ()),
        id=frozenset([*(bare_ids or ()), *(id_ or ())]),
        since=moment(since, "--since"),
        until=moment(until, "--until"),
    )


def filtered(command: Callable[..., int]) -> Callable[..., int]:
    """Add the filters as options to a command, which gets them as its argument `selection`."""
    filters = inspect.signature(_select).parameters
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "selection"]

    @functools.wraps(command)
    def with_selection(**options: Any) -> int:
        selection = _select(**{name: options.pop(name, None) for name in filters})
        try:
            return command(selection=selection, **options)
        except AmbiguousId as ambiguous:
            list_letters(bare_ids=ambiguous.keys, as_json=options.get("as_json", False))
            raise

    # Required arguments go first.
    parameters = sorted([*filters.values(), *own], key=lambda each: each.default is not each.empty)
    with_selection.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=int)
    with_selection.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_selection


@filtered
def list_letters(
    selection: Selection,
    by: Annotated[Literal["error"] | None, typer.Option(help="Group by reason and error.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the oldest N.")] = None,
    as_json: Json = False,
) -> int:
    """List dead letters, oldest first. Changes nothing.

    Example: ott-worker dead-letters list --reason exhausted --since 2h"""

    async def look() -> tuple[list[dict[str, Any]], int]:
        async with open_dead_letters(load_settings(), Say()) as queue:
            return await queue.read(selection, Letter.shown, limit), await queue.depth()

    found, total = asyncio.run(look())
    rows = causes_of(found, BY_ERROR) if by else found
    if as_json:
        for row in rows:
            output.json_line(row)
    elif rows:
        Table(GROUP_COLUMNS if by else LETTER_COLUMNS, rows, output.width()).print()
        reasons = Counter(letter["reason"] for letter in found)
        counts = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
        is_cut = len(found) == limit and limit < total
        output.line(f"{'The first ' if is_cut else ''}{letters(len(found))}: {counts}")
    else:
        output.line("No dead letter matches." if total else "No dead letters.")
    return 0


@filtered
def show(
    selection: Selection,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print all values, secrets too.")] = False,
    as_json: Json = False,
) -> int:
    """Show dead letters with properties, headers and body. Changes nothing.

    Of fields that may hold a secret, only type and length are shown.

    Example: ott-worker dead-letters show a1f2c0a52d0b14a5"""
    if selection.is_everything:
        raise UsageError("show needs the id of a dead letter, or a filter: see ott-worker dead-letters list")
    from worker.broker.situation import advice  # noqa: PLC0415 # `list` does not need it

    async def look() -> tuple[list[Letter], frozenset[str]]:
        async with open_dead_letters(load_settings(), say) as queue:
            return await queue.find(selection, lambda letter: letter)

    say = Say()
    found, missing = asyncio.run(look())
    tell_missing(say, missing, found)
    for number, letter in enumerate(found):
        document = view(letter, reveal=reveal)
        if as_json:
            output.json_line(document)
            continue
        for line in (*[""][: bool(number)], *as_text(document)):
            output.line(line)
        reason = letter.facts["reason"]
        output.line(f"next: {advice(reason)}")
        output.line(f"  ott-worker dead-letters {NEXT.get(reason, 'replay {}').format(letter.key)}")
    return 0 if found and not missing else 1


def tell_missing(say: Say, missing: frozenset[str], found: list[Any]) -> None:
    """Report ids without a letter, or that no letter matches."""
    if missing or not found:
        say(f"no dead letter matches {few(missing)}".rstrip())

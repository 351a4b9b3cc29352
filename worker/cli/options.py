"""Options that several commands share, and the filters of the dead-letter commands."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any

import typer

from worker.contract.platforms import PLATFORMS
from worker.contract.timestamps import moment
from worker.contract.words import REASONS
from worker.dead_letters.facts import AmbiguousId, Selection
from worker.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

Resource = Annotated[
    list[str] | None, typer.Option(help=f"{' or '.join(each.id_field for each in PLATFORMS.values())}.")
]

# Those of contract §5, the broker's own, and the word for a letter that names none.
LETTERS_REASONS = sorted((*REASONS, "delivery_limit", "expired", "maxlen", "unknown"))


def known(option: str, given: Iterable[str] | None, words: Collection[str]) -> frozenset[str]:
    """The words that were given. Raises UsageError where one is not among those known."""
    if not set(words).issuperset(given := frozenset(given or ())):
        which = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise UsageError(f"{option} must be {which}")
    return given


def _select(
    bare_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LETTER]...", help="Ids of letters; or of requests that one letter bears."),
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(
            help="invalid, rejected, exhausted, forbidden, oversize, or the broker's delivery_limit, expired."
        ),
    ] = None,
    error: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="The error contains this.")] = None,
    platform: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(PLATFORMS)}.")] = None,
    resource: Resource = None,
    user: Annotated[list[str] | None, typer.Option(help="The RabbitMQ user that published it.")] = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="As a bare id.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Died at this time (UTC) or later; or a while ago: 2h, 3d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Died at this time (UTC) or before.")] = None,
) -> Selection:
    return Selection(
        reasons=known("--reason", reason, LETTERS_REASONS),
        platforms=known("--platform", platform, PLATFORMS),
        resources=frozenset(resource or ()),
        users=frozenset(user or ()),
        errors=frozenset(error or ()),
        ids=frozenset([*(bare_ids or ()), *(id_ or ())]),
        since=moment(since, "--since"),
        until=moment(until, "--until"),
    )


def filtered(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the filters as options; it takes the `selection` that they make."""
    filters = inspect.signature(_select).parameters
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "selection"]
    required = [each for each in own if each.default is each.empty]
    optional = [each for each in own if each.default is not each.empty]

    @functools.wraps(command)
    def with_selection(**given: Any) -> int:
        chosen = {name: given.pop(name) for name in filters}
        try:
            return command(selection=_select(**chosen), **given)
        except AmbiguousId as ambiguous:
            from worker.cli.dead_letters.look import print_letters  # noqa: PLC0415 # it imports this module

            print_letters(
                Selection(ids=frozenset({ambiguous.request_id})), as_json=given.get("as_json", False)
            )
            raise

    parameters = [*required, *filters.values(), *optional]
    with_selection.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=int)
    with_selection.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_selection


def require_filter(selection: Selection, command: str, *, everything: bool) -> None:
    """Raise UsageError where a command that changes the queue names no letters."""
    if selection.is_everything and not everything:
        raise UsageError(f"{command} wants a filter, or --all for every dead letter")

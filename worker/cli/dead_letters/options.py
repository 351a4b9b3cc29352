"""Options that the commands share, and the selection that they make."""

from typing import Annotated, get_args

import typer

from worker.contract.platforms import PLATFORMS
from worker.contract.words import Reason
from worker.dead_letters.selection import Selection, moment
from worker.errors import UsageError

Reasons = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        help="invalid, rejected, exhausted, forbidden, oversize, or the broker's delivery_limit, expired.",
    ),
]
Platforms = Annotated[list[str] | None, typer.Option("--platform", help="messenger or line.")]
Resources = Annotated[list[str] | None, typer.Option("--resource", help="pageId or channelId.")]
BareIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of requests.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="The request's id.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Died at this time (UTC) or later; or a while ago: 2h, 3d.")
]
Until = Annotated[str | None, typer.Option("--until", help="Died at this time (UTC) or before.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

# Those of contract §5, the broker's own, and the word for a letter that names none.
REASONS = frozenset({*get_args(Reason), "delivery_limit", "expired", "maxlen", "unknown"})


def select(
    reasons: list[str] | None,
    platforms: list[str] | None,
    resources: list[str] | None,
    ids: list[str] | None,
    since: str | None,
    until: str | None,
) -> Selection:
    """The letters that the options name. Raises UsageError."""
    if not REASONS.issuperset(reasons or ()):
        raise UsageError(f"--reason must be one of {', '.join(sorted(REASONS))}")
    if not PLATFORMS.keys() >= set(platforms or ()):
        raise UsageError(f"--platform must be {' or '.join(PLATFORMS)}")
    return Selection(
        reasons=frozenset(reasons or ()),
        platforms=frozenset(platforms or ()),
        resources=frozenset(resources or ()),
        ids=frozenset(ids or ()),
        since=moment(since, "--since"),
        until=moment(until, "--until"),
    )


def require_filter(selection: Selection, command: str, *, everything: bool) -> None:
    """Raise UsageError where a command that changes the queue names no letters."""
    if selection.is_everything and not everything:
        raise UsageError(f"{command} wants a filter, or --all for every dead letter")

"""New values for a dead letter's request before it is replayed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from worker.contract.json_body import MalformedBody, parse_object, to_json
from worker.contract.platforms import ATTRIBUTES, ENDPOINT_URL, FIELDS, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS
from worker.contract.registration import Rejection, validate
from worker.dead_letters.letter import Letter
from worker.errors import UsageError, WorkerError

# Fields that several resources may share. Ids, names, tokens and secrets belong to one.
_COMMON_FIELDS = frozenset({PLATFORM_NAME, ENDPOINT_URL}) | FLAG_FIELDS
_FLAGS: Mapping[str, bool | int] = {"true": True, "false": False, "0": 0, "1": 1}


class Unfit(WorkerError):
    """Why a letter cannot be replayed: it stays in the queue."""


class Patched(NamedTuple):
    """A valid request."""

    body: bytes
    platform: str
    resource_id: str


@dataclass(frozen=True, slots=True)
class Patch:
    """New values of fields, by the names that the request gives them."""

    fields: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fields)

    @property
    def of_one_resource(self) -> list[str]:
        """The fields whose value belongs to one resource. Setting one for several damages all but one."""
        return [name for name in self.fields if name not in _COMMON_FIELDS]

    def apply(self, body: bytes, max_bytes: int) -> Patched:
        """The patched request. Raises Unfit with what is wrong with it, in the words of contract §3."""
        try:
            document = parse_object(body)
        except MalformedBody as problem:
            raise Unfit(str(problem)) from None
        attributes = document.get(ATTRIBUTES)
        document[ATTRIBUTES] = dict(attributes) if isinstance(attributes, dict) else {}
        for name, value in self.fields.items():
            (document if name == PLATFORM_NAME else document[ATTRIBUTES])[name] = value
        platform = PLATFORMS.get(str(document.get(PLATFORM_NAME)))
        if platform and (strangers := self.fields.keys() - {PLATFORM_NAME, *platform.fields}):
            raise Unfit(f"{platform.name} has no {', '.join(sorted(strangers))}")
        parsed = validate(document)
        if isinstance(parsed, Rejection):
            raise Unfit("; ".join(error.message for error in parsed.errors))
        patched = to_json(document)
        if len(patched) > max_bytes:
            raise Unfit(f"The body is larger than {max_bytes} bytes")
        return Patched(patched, parsed.platform, parsed.resource_id)


@dataclass(frozen=True, slots=True)
class Patches:
    """A patch for each letter: here the same one for all. `names` are the ids by which patches are told
    apart."""

    same: Patch = field(default_factory=Patch)

    @property
    def names(self) -> frozenset[str]:
        return frozenset()

    @property
    def of_one_resource(self) -> Sequence[str]:
        """The fields that would get one value in all letters, although it belongs to one resource."""
        return self.same.of_one_resource

    def of(self, letter: Letter) -> Patch | None:
        """The letter's patch, None to replay it unchanged. Raises Unfit."""
        return self.same or None


def parse(assignments: Iterable[str]) -> Patch:
    """Read `FIELD=VALUE` and `FIELD=@FILE`. Raises UsageError, which never holds a value."""
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or (name not in FIELDS and name != PLATFORM_NAME):
            known = ", ".join([PLATFORM_NAME, *sorted(FIELDS)])
            raise UsageError(f"--set must be FIELD=VALUE with a field of the request: {known}")
        if value == "-":
            raise UsageError(f"--set {name}=@/dev/stdin reads a value from standard input")
        if value.startswith("@"):
            value = _read(name, value[1:])
        fields[name] = flag_of(f"--set {name}", value) if name in FLAG_FIELDS else value
    return Patch(fields)


def _read(name: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--set {name}=@{path}: the file cannot be read: {why}") from None
    return text.rstrip("\r\n")


def flag_of(name: str, text: str) -> bool | int:
    """A flag as somebody typed it. Raises UsageError."""
    if text not in _FLAGS:
        raise UsageError(f"{name} must be true, false, 0 or 1")
    return _FLAGS[text]

"""New values for a dead letter's request before it is replayed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from worker.contract.json_body import MalformedBody, parse_object, to_json
from worker.contract.platforms import ATTRIBUTES, ENDPOINT_URL, FIELDS, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS
from worker.contract.registration import Rejection, validate
from worker.dead_letters.letter import Letter
from worker.errors import UsageError

# Fields that several resources may share. Ids, names, tokens and secrets belong to one.
_COMMON_FIELDS = frozenset({PLATFORM_NAME, ENDPOINT_URL}) | FLAG_FIELDS
_FLAGS: Mapping[str, bool | int] = {"true": True, "false": False, "0": 0, "1": 1}


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

    def apply(self, body: bytes, max_bytes: int) -> "Patched | InvalidPatch":
        """The patched request, or what is wrong with it, in the words of contract §3."""
        try:
            document = parse_object(body)
        except MalformedBody as problem:
            return InvalidPatch((str(problem),))
        attributes = document.get(ATTRIBUTES)
        document[ATTRIBUTES] = dict(attributes) if isinstance(attributes, dict) else {}
        for name, value in self.fields.items():
            (document if name == PLATFORM_NAME else document[ATTRIBUTES])[name] = value
        platform = PLATFORMS.get(str(document.get(PLATFORM_NAME)))
        if platform and (strangers := self.fields.keys() - {PLATFORM_NAME, *platform.fields}):
            return InvalidPatch((f"{platform.name} has no {', '.join(sorted(strangers))}",))
        parsed = validate(document)
        if isinstance(parsed, Rejection):
            return InvalidPatch(tuple(error.message for error in parsed.errors))
        patched = to_json(document)
        if len(patched) > max_bytes:
            return InvalidPatch((f"The body is larger than {max_bytes} bytes",))
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

    def of(self, letter: Letter) -> "Patch | InvalidPatch | None":
        """The letter's patch, None to replay it unchanged, or InvalidPatch to leave it in the queue."""
        return self.same or None


@dataclass(frozen=True, slots=True)
class Patched:
    """A valid request."""

    body: bytes
    platform: str
    resource_id: str


@dataclass(frozen=True, slots=True)
class InvalidPatch:
    """The problems that remain in a patched request."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.problems)


def parse(assignments: Iterable[str], read_stdin: Callable[[str], str]) -> Patch:
    """Read `FIELD=VALUE`, `FIELD=@FILE` and `FIELD=-` (standard input, read for that field). Raises
    UsageError, which never holds a value."""
    fields: dict[str, Any] = {}
    from_stdin = None
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or (name not in FIELDS and name != PLATFORM_NAME):
            known = ", ".join([PLATFORM_NAME, *sorted(FIELDS)])
            raise UsageError(f"--set must be FIELD=VALUE with a field of the request: {known}")
        if value == "-":
            if from_stdin is not None:
                raise UsageError(f"--set {name}=-: standard input is read for {from_stdin} already")
            from_stdin, value = name, _text(name, "-", "standard input", read_stdin)
        elif value.startswith("@"):
            value = _text(name, value, "the file", partial(_file, value[1:]))
        fields[name] = flag_of(f"--set {name}", value) if name in FLAG_FIELDS else value
    return Patch(fields)


def _text(name: str, given: str, source: str, read: Callable[[str], str]) -> str:
    try:
        return read(name).removeprefix("\ufeff").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--set {name}={given}: {source} cannot be read: {why}") from None


def _file(path: str, _: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def flag_of(name: str, text: str) -> bool | int:
    """A flag as somebody typed it. Raises UsageError."""
    if text not in _FLAGS:
        raise UsageError(f"{name} must be true, false, 0 or 1")
    return _FLAGS[text]

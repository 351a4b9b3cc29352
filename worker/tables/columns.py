"""Which attribute each column of a table holds (contract §12)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.contract.platforms import ATTRIBUTES, FIELDS, PLATFORM_NAME
from worker.errors import UsageError
from worker.tables.cells import clean, plain
from worker.tables.damage import ACCOUNT

_PREFIX = f"{plain(ATTRIBUTES)}."
_KNOWN: Mapping[str, str] = {
    **{plain(name): name for name in (PLATFORM_NAME, *FIELDS, ACCOUNT)},
    "mid": ACCOUNT,
}


@dataclass(frozen=True, slots=True)
class Columns:
    """A parsed header. `names` are what the columns hold, in their order: an attribute, `accountId`, one of
    the names that the caller knows, or the header's own words where `known` lacks it. Empty names are columns
    without a header."""

    header: tuple[str, ...]
    names: tuple[str, ...]
    known: frozenset[str]

    @property
    def unknown(self) -> list[str]:
        """The unknown columns, as the header writes them."""
        return [name for name in self.names if name and name not in self.known]

    @property
    def headers(self) -> dict[str, str]:
        """What the header calls each known column."""
        pairs = zip(self.names, self.header, strict=True)
        return {name: clean(cell) for name, cell in pairs if name in self.known}


def known_in(cells: Sequence[str]) -> int:
    """How many cells are names of attributes. This tells a header from a title or from data."""
    return sum(_without_prefix(cell) in _KNOWN for cell in cells)


def columns_of(header: Sequence[str], also: Collection[str] = ()) -> Columns:
    """Match a header; `also` names columns that are known besides. Raises UsageError where two columns hold
    the same."""
    others = {plain(name): name for name in also}
    width = max((number for number, cell in enumerate(header, 1) if clean(cell)), default=0)
    names = []
    for cell in header[:width]:
        key = _without_prefix(cell)
        names.append(others.get(key) or _KNOWN.get(key) or clean(cell))
    known = frozenset(_KNOWN.values()) | frozenset(others.values())
    for name in known.intersection(names):
        if names.count(name) > 1:
            raise UsageError(f"{_same(name, header, names)}: keep one of them")
    return Columns(tuple(header[:width]), tuple(names), known)


def _same(name: str, header: Sequence[str], names: Sequence[str]) -> str:
    cells = dict.fromkeys(clean(cell) for cell, held in zip(header, names, strict=False) if held == name)
    written = list(cells)
    if len(written) == 1:
        return f"the column {written[0]} is there twice"
    return f"the columns {' and '.join(written)} are both {name}"


def _without_prefix(cell: str) -> str:
    return plain(cell).removeprefix(_PREFIX)

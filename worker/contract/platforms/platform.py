"""A platform, as its attributes model describes it."""

from dataclasses import dataclass, field

from worker.contract.fields import Attributes, is_flag, is_secret


@dataclass(frozen=True, slots=True)
class Platform:
    """One row of the platform table.

    `id_field` names the attribute that identifies a resource. `fields` lists every attribute as named
    in the body, in the order of the errors; `secrets` are those of them that may never be shown, `flags`
    those of the true/false/0/1 kind. `noun` is what people call a resource, `name_field` holds its name.
    """

    name: str
    attributes: type[Attributes]
    id_field: str
    fields: tuple[str, ...] = field(init=False)
    secrets: frozenset[str] = field(init=False)
    flags: frozenset[str] = field(init=False)

    @property
    def noun(self) -> str:
        return self.id_field.removesuffix("Id")

    @property
    def name_field(self) -> str:
        return f"{self.noun}Name"

    def __post_init__(self) -> None:
        infos = self.attributes.model_fields.values()
        object.__setattr__(self, "fields", tuple(str(info.alias) for info in infos))
        object.__setattr__(self, "secrets", frozenset(str(info.alias) for info in infos if is_secret(info)))
        object.__setattr__(self, "flags", frozenset(str(info.alias) for info in infos if is_flag(info)))

"""The settings: environment variables, `NAME_FILE` files and a `.env` file (contract §7).

Each field `some_name` is the variable `OTT_SOME_NAME`. An empty value counts as not given.
"""

import base64
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.errors import SettingsError

PREFIX = "OTT_"
ENV_FILE = ".env"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _amqp_url(value: SecretStr) -> SecretStr:
    parts = _parts(value.get_secret_value())
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ValueError("must be an amqp:// or amqps:// URL")
    _check_port(parts)
    return value


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # Its own words quote the URL, password and all.
        raise ValueError(
            "must be a URL that can be read: check its host, and escape what is special"
        ) from None


def _check_port(parts: SplitResult) -> None:
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL whose port is a number up to 65535") from None


def _http_url(value: str) -> str:
    parts = _parts(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an https:// URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a plain URL: no user, query or fragment")
    _check_port(parts)
    return value.rstrip("/")


def _not_reserved(value: str) -> str:
    if value.startswith("amq."):
        raise ValueError("must not begin with amq., which RabbitMQ keeps for itself")
    return value


def parse_keys(text: str) -> dict[str, bytes]:
    """Keys by their ids, the newest first, from `ID:KEY` separated by commas or line ends, each key 32
    bytes in base64. Raises ValueError, which says nothing of the keys."""
    keys: dict[str, bytes] = {}
    for entry in filter(None, re.split(r"[,\s]+", text)):
        name, _, encoded = entry.partition(":")
        try:
            key = base64.b64decode(encoded.replace("-", "+").replace("_", "/"), validate=True)
        except ValueError:
            key = b""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name) or len(key) != 32 or name in keys:
            raise ValueError("must be ID:KEY, the newest first, each id once and each KEY 32 bytes in base64")
        keys[name] = key
    return keys


def _sealing_keys(value: SecretStr) -> SecretStr:
    parse_keys(value.get_secret_value())
    return value


def _certificates(path: Path) -> Path:
    """Checked at the start: met at the first connection, a wrong file would be taken for an outage."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        why = "not PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"must be a PEM file of certificates that can be read: {why}") from None
    return path


def _check_key(certificate: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # or OpenSSL asks on the terminal
    except OSError as error:
        why = "it is not, or needs a passphrase" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(
            f"OTT_AMQP_KEY_FILE must be the key of OTT_AMQP_CERT_FILE as a PEM file that can be read: {why}"
        ) from None


def _port_or_off(value: object) -> object:
    return None if value == "" else value


SealingKeys = Annotated[SecretStr, AfterValidator(_sealing_keys)]
AmqpUrl = Annotated[SecretStr, AfterValidator(_amqp_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Prefix = Annotated[
    str,
    # AMQP 0-9-1 allows exchange names of 127 characters, and the longest here is PREFIX.dead.
    StringConstraints(pattern=r"^[A-Za-z0-9._:-]+$", max_length=122),
    AfterValidator(_not_reserved),
]
Subdomain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", max_length=63)]
Certificates = Annotated[Path, AfterValidator(_certificates)]
Age = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[YMDhms]$")]


class Settings(BaseSettings):
    """All settings of one process. Read them with `load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=False,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    amqp_url: AmqpUrl = Field(
        default=SecretStr("amqp://guest:guest@localhost:5672/"),
        description="`amqps://` for TLS",
    )
    amqp_ca_file: Certificates | None = Field(
        default=None, description="CA certificates (PEM) that vouch for the broker"
    )
    amqp_cert_file: Certificates | None = Field(
        default=None, description="client certificate (PEM) for the broker"
    )
    amqp_key_file: Path | None = Field(default=None, description="key of the client certificate (PEM)")
    prefix: Prefix = Field(default="ott.registration", description="names every queue and exchange")
    declare: bool = Field(default=True, description="declare what is missing; `false` only checks")
    mc_subdomain: Subdomain | None = Field(default=None, description="gives both URLs below")
    mc_auth_url: HttpUrl | None = Field(default=None, description="overrides the auth URL")
    mc_rest_url: HttpUrl | None = Field(default=None, description="overrides the REST URL")
    mc_insecure_http: bool = Field(
        default=False, description="accept `http://` beyond loopback: a sandbox in a container"
    )
    mc_ca_file: Certificates | None = Field(
        default=None, description="CA certificates (PEM) that vouch for Marketing Cloud"
    )
    mc_client_id: str | None = Field(default=None, description="required by `run`")
    mc_client_secret: SecretStr | None = Field(default=None, description="required by `run`")
    mc_account_id: str | None = Field(default=None, description="default business unit (MID)")
    prefetch: int = Field(default=200, ge=1, le=65535, description="deliveries in flight")
    rate_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="calls a second; unlimited when empty"
    )
    http_timeout: Seconds = Field(default=30, description="seconds for one whole call")
    retry_attempts: int = Field(default=6, ge=1, description="calls for one request, outages not counted")
    retry_budget: Seconds = Field(default=300, description="seconds for one request, outages not counted")
    retry_base: Seconds = Field(default=0.5, description="seconds; first back-off step")
    gate_after: int = Field(default=5, ge=1, description="failures in a row that mean an outage")
    hold_limit: Annotated[float, Field(gt=0, le=1500)] = Field(
        default=600, description="seconds that a delivery is held before it goes back"
    )
    shutdown_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=25, description="seconds to drain after SIGTERM"
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="larger requests are refused")
    journal: bool = Field(default=True, description="keep a record of settled requests; replays need it")
    journal_max_age: Age = Field(default="30D", description="a number and one of `Y M D h m s`")
    journal_max_bytes: int = Field(default=1_000_000_000, ge=1, le=2**63 - 1, description="bytes")
    dead_letter_keys: SealingKeys | None = Field(
        default=None,
        description="`ID:KEY` to encrypt dead letters with (32 bytes in base64); further ones only decrypt",
    )
    admin_host: str = Field(default="127.0.0.1", description="address of the admin server")
    admin_port: Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_port_or_off)] = (
        Field(
            default=8080,
            description="`/livez`, `/readyz`, `/metrics`; 0 takes a free port, empty turns it off",
        )
    )
    traces: bool = Field(
        default=False, description="trace with OpenTelemetry (the extra `otel`), set by its own variables"
    )
    log_format: Literal["json", "console"] | None = Field(
        default=None, description="`json` or `console`; by default `json` unless a terminal"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`"
    )

    _given_in_code: frozenset[str] = PrivateAttr(default=frozenset())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _EnvironmentAndFiles(settings_cls)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.amqp_cert_file is None) != (self.amqp_key_file is None):
            raise ValueError("OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE must be set together")
        if self.amqp_cert_file and self.amqp_key_file:
            _check_key(self.amqp_cert_file, self.amqp_key_file)
        for name in ("mc_auth_url", "mc_rest_url"):
            url = urlsplit(getattr(self, name) or "")
            if url.scheme == "http" and url.hostname not in LOOPBACK and not self.mc_insecure_http:
                raise ValueError(
                    f"{variable(name)} must be an https:// URL "
                    "(http:// beyond loopback needs OTT_MC_INSECURE_HTTP=true)"
                )
        return self

    @property
    def auth_url(self) -> str | None:
        """The authentication base URL, without a trailing slash."""
        if self.mc_auth_url:
            return self.mc_auth_url
        return self.mc_subdomain and f"https://{self.mc_subdomain}.auth.marketingcloudapis.com"

    @property
    def rest_url(self) -> str | None:
        """The REST base URL, or None: then the token response names it."""
        if self.mc_rest_url:
            return self.mc_rest_url
        return self.mc_subdomain and f"https://{self.mc_subdomain}.rest.marketingcloudapis.com"

    def now(self, field: str) -> str:
        """The value of a text `field` now: its file may have been replaced since the start, so that a
        secret can be rotated without a restart. What was given in code, or whose file cannot be read,
        stays as it is."""
        value = getattr(self, field)
        current = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        if field in self._given_in_code:
            return str(current)
        try:
            path = environment().get(f"{variable(field)}_FILE")
            if not path:
                return str(current)
            return _read_file(path, variable(field)) or str(current)
        except SettingsError:
            return str(current)

    def require_marketing_cloud(self) -> None:
        """Raise SettingsError where what a call to Marketing Cloud needs is missing."""
        if self.auth_url is None:
            raise SettingsError(
                "OTT_MC_SUBDOMAIN must be set: your tenant's subdomain (or set OTT_MC_AUTH_URL)"
            )
        if not self.mc_client_id:
            raise SettingsError("OTT_MC_CLIENT_ID must be set: the client id of your API package")
        if not self.mc_client_secret or not self.mc_client_secret.get_secret_value():
            raise SettingsError(
                "OTT_MC_CLIENT_SECRET must be set: the client secret of your API package "
                "(or OTT_MC_CLIENT_SECRET_FILE)"
            )


class _EnvironmentAndFiles(PydanticBaseSettingsSource):
    """The environment over `.env`, and for each variable a file named by `VARIABLE_FILE`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole mapping comes from __call__

    def __call__(self) -> dict[str, Any]:
        given = environment()
        values: dict[str, Any] = {}
        for field in self.settings_cls.model_fields:
            value = _read(given, variable(field))
            if value is not None:
                values[field] = value
        return values


def environment() -> dict[str, str]:
    """The process's environment, over what `.env` says."""
    try:
        from_file = dotenv_values(ENV_FILE) if Path(ENV_FILE).is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{ENV_FILE} must be a file that can be read: {why}") from None
    # Of a value and its file, the environment's one wins whichever of the two it is.
    below = {k: v for k, v in from_file.items() if v is not None and not _is_named(k, os.environ)}
    return below | dict(os.environ)


def _is_named(name: str, given: Mapping[str, str]) -> bool:
    other = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
    return name in given or bool(given.get(other))


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def _read(given: dict[str, str], name: str) -> str | None:
    value = given.get(name)
    path = "" if name.endswith("_FILE") else given.get(f"{name}_FILE", "")
    if path and value:
        raise SettingsError(f"{name} and {name}_FILE must not both be set: keep one of them")
    if path:
        return _read_file(path, name)
    if value == "" and name != "OTT_ADMIN_PORT":
        return None
    return value


def _read_file(path: str, name: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name}_FILE must be a file that can be read: {why}") from None


def load_settings(**overrides: Any) -> Settings:
    """Read and check all settings. Raises SettingsError: one line, no value of a secret."""
    try:
        settings = Settings(**overrides)
        settings._given_in_code = frozenset(overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    return settings


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{variable(str(first['loc'][0]))} {_must_be(str(first['loc'][0]), first['type'], message)}"


def _must_be(field: str, kind: str, message: str) -> str:
    if message.startswith("must "):
        return message
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return f"must be {_SHAPES.get(field, 'another text')}"
    words = {
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "bool_parsing": "true or false",
        "finite_number": "a finite number",
    }
    if kind in words:
        return f"must be {words[kind]}"
    return "must be " + message.removeprefix("Input should be ")


_SHAPES = {
    "prefix": "letters, digits and . _ : - only, 122 at most",
    "mc_subdomain": "the subdomain alone, such as mc563885gzs27c5t9-63k636ttgm",
    "journal_max_age": "a number and one of Y M D h m s, such as 30D",
}

"""Checks of settings. Each raises ValueError with a text that begins with "must" and never quotes the
value."""

import base64
import ipaddress
import re
import ssl
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from yarl import URL

from worker.settings.sources import variable

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
# Texts for pydantic's errors.
_KINDS = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
}


def split_urls(text: str) -> list[str]:
    """The broker's URLs in order, from a comma-separated list. A comma separates only before a scheme,
    because passwords may contain one."""
    parts = re.split(r"\s*,\s*(?=amqps?://)", text.strip().rstrip(", \t"))
    return [part.strip() for part in parts]


def parse_keys(text: str) -> dict[str, bytes]:
    """Keys by id, newest first, from `ID:KEY` separated by commas or line ends, each key 32 bytes in base64.
    Raises ValueError; its text holds no key."""
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


def parsed_url(text: str, *schemes: str) -> URL:
    """The URL, if it has one of these schemes, a valid port, and an address or valid name as its host. Raises
    ValueError."""
    # The library's error text quotes the URL, password included.
    unreadable = "must be a valid URL: check its host and port, and escape special characters"
    try:
        url = URL(text)
        name = (url.host or "") and (url.raw_host or "")
    except ValueError:
        raise ValueError(unreadable) from None
    if url.scheme not in schemes or not name:
        raise ValueError(f"must be an {' or '.join(f'{each}://' for each in reversed(schemes))} URL")
    if not _is_host(name):
        raise ValueError(unreadable)
    return url


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.removesuffix(".").split(".")
        return len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return True


def tls_context(peer: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """The context for these files. Raises ValueError; its text begins with the variable of the unusable
    file."""
    name, what = f"{peer}_ca_file", "a readable PEM file of certificates"
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            name = f"{peer}_cert_file"
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
            name, what = f"{peer}_key_file", "the certificate's key as a readable PEM file"
            # Without a password, OpenSSL would prompt on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:
        why = "it is not, or needs a passphrase" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"{variable(name)} must be {what}: {why}") from None
    return context


def explain(error: ValidationError) -> str:
    """The first error in one line: the variable and what it must be."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    if not message.startswith("must "):
        message = f"must be {_KINDS.get(first['type']) or message.removeprefix('Input should be ')}"
    return f"{variable(str(first['loc'][0]))} {message}"


def _amqp_urls(value: SecretStr) -> SecretStr:
    for url in split_urls(value.get_secret_value()):
        parsed_url(url, "amqps", "amqp")
    return value


def _http_url(value: str) -> str:
    url = parsed_url(value, "http", "https")
    if url.user or url.password or url.query_string or url.fragment:
        raise ValueError("must be a plain URL: no user, query or fragment")
    for path in ("/v2/token", "/ott/v1"):
        if path in url.path:
            raise ValueError(f"must be the base URL, without {path}: the worker adds the API's paths")
    return value.rstrip("/")


def _shaped(pattern: str, shape: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {shape}")
        return value

    return AfterValidator(check)


def _sealing_keys(value: SecretStr) -> SecretStr:
    parse_keys(value.get_secret_value())
    return value


def _port_or_off(value: object) -> object:
    return None if value == "" else value


def _stripped(value: Any) -> Any:
    return value.strip() or None if isinstance(value, str) else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(_port_or_off)]
AmqpUrls = Annotated[SecretStr, AfterValidator(_amqp_urls)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
AccountId = Annotated[str | None, BeforeValidator(_stripped)]
# RabbitMQ reserves `amq.`. AMQP 0-9-1 allows exchange names of 127 characters; the longest here is
# PREFIX.dead.
Prefix = Annotated[
    str,
    _shaped(
        r"(?!amq\.)[A-Za-z0-9._:-]{1,122}",
        "letters, digits and . _ : - only, 122 at most, not beginning with amq.",
    ),
]
Subdomain = Annotated[
    str,
    _shaped(r"[A-Za-z0-9-]{1,63}", "the subdomain alone, such as mc563885gzs27c5t9-63k636ttgm"),
]
SealingKeys = Annotated[SecretStr, AfterValidator(_sealing_keys)]
Age = Annotated[str, _shaped(r"[1-9][0-9]*[YMDhms]", "a number and one of Y M D h m s, such as 30D")]

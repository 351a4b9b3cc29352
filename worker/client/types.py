"""Types of requests, for editors and type checkers, and of what becomes of them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from worker.contract.reply import Reply

Flag = bool | Literal[0, 1]


class MessengerAttributes(TypedDict):
    """A Facebook page."""

    applicationId: str
    applicationSecret: str
    pageId: str
    pageName: str
    pageAccessToken: str
    endpointUrl: str
    callbackVerifyToken: str
    isActive: Flag


class LineAttributes(TypedDict):
    """A LINE channel."""

    channelId: str
    channelName: str
    channelSecret: str
    customerConnectSecret: NotRequired[str | None]
    endpointUrl: str
    isTransactional: Flag
    isTestChannel: Flag
    isActive: Flag


class MessengerRegistration(TypedDict):
    """The JSON object of the API for a Messenger page."""

    ottPlatformName: Literal["messenger"]
    ottPlatformAttributes: MessengerAttributes


class LineRegistration(TypedDict):
    """The JSON object of the API for a LINE channel."""

    ottPlatformName: Literal["line"]
    ottPlatformAttributes: LineAttributes


Registration = MessengerRegistration | LineRegistration | Mapping[str, Any]


class Options(TypedDict, total=False):
    """What RegistrationClient's methods take besides: the business unit (MID), when what the registration
    says was true, with its time zone (nothing newer is undone, contract §2), and seconds to wait."""

    account_id: str | None
    as_of: datetime | None
    timeout: float | None


class RequestOptions(Options, total=False):
    """The same for one request, and its id: a fresh one where none is given."""

    request_id: str | None


class Outcome(NamedTuple):
    """What became of one of many: its reply, or the error that `register` would have raised."""

    number: int  # in the order in which they were given, from 0
    registration: Registration
    reply: Reply | None
    error: Exception | None

"""Types of requests, for editors and type checkers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict

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


class RequestOptions(TypedDict, total=False):
    """What the clients' methods take besides: the request's id (a fresh one where none is given), the
    business unit (MID), when what the registration says was true, with its time zone (nothing newer is
    undone, contract §2, not even by a copy that was published again and that RabbitMQ enqueues late; give it
    with all requests for a resource, or with none), and seconds to wait."""

    request_id: str | None
    account_id: str | None
    as_of: datetime | None
    timeout: float | None

"""RabbitMQ definitions for one deployment: vhost, users, what each may do, policies, queues and exchanges.

    definitions.py PASSWORDS [--vhost NAME] [--prefix PREFIX] > definitions.json

PASSWORDS is a folder with one file for each user (worker, publisher, operator, provisioner), which holds its
password; what is missing is made up and written there, readable by its owner only. The definitions
hold salted hashes, which RabbitMQ keeps too, and no password. Import them with
`rabbitmqctl import_definitions`; a second import changes nothing but what has changed here.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from worker.broker.topology import Topology
from worker.contract.words import CONTROL_KEY, REQUEST_KEY
from worker.settings import load_settings

USERS = ("worker", "publisher", "operator", "provisioner")
NOTHING = "^$"

# Length and age of what holds secrets, or grows. A dead letter queue that is full turns messages down, so
# that the worker waits instead of losing one; by age they do go, whoever has looked at them.
DEAD_LETTERS = {"max-length": 1_000_000, "max-length-bytes": 2_000_000_000, "message-ttl": 90 * 86_400_000}
JOURNAL = {"max-age": "30D", "max-length-bytes": 1_000_000_000}

Entry = dict[str, Any]


def definitions(names: Topology, vhost: str, passwords: dict[str, str]) -> dict[str, list[Entry]]:
    """The whole document; `passwords` by user. The users' names begin with the vhost's: `ott-worker`."""
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user(f"{vhost}-{user}", passwords[user]) for user in USERS],
        "permissions": [
            {"vhost": vhost, "user": f"{vhost}-{user}"} | rights for user, rights in _rights(names).items()
        ],
        "topic_permissions": [
            {
                "vhost": vhost,
                "user": f"{vhost}-{user}",
                "exchange": names.entry,
                "write": _exactly(*keys),
                "read": NOTHING,
            }
            for user, keys in (("publisher", [REQUEST_KEY]), ("operator", [REQUEST_KEY, CONTROL_KEY]))
        ],
        "policies": [
            _policy(vhost, names.dead, "queues", DEAD_LETTERS),
            _policy(vhost, names.journal, "queues", JOURNAL),
        ],
        "exchanges": [
            _object(vhost, names.dead, {}, type="fanout", internal=False),
            _object(vhost, names.entry, {}, type="topic", internal=False),
        ],
        "queues": [
            _object(vhost, names.dead, names.dead_arguments()),
            _object(vhost, names.replies, names.replies_arguments()),
            _object(vhost, names.journal, names.journal_arguments(load_settings(prefix=names.prefix))),
            _object(vhost, names.requests, names.requests_arguments()),
            _object(vhost, names.status, names.status_arguments()),
            _object(vhost, names.control, names.control_arguments()),
        ],
        "bindings": [
            _binding(vhost, names.dead, names.dead, ""),
            _binding(vhost, names.entry, names.requests, REQUEST_KEY),
            _binding(vhost, names.entry, names.control, CONTROL_KEY),
        ],
    }


def _rights(names: Topology) -> dict[str, Entry]:
    """What each user needs, and nothing else. To look at an object (a passive declare) needs no right."""
    own, jobs = r"amq\.gen-.*", rf"{re.escape(names.prefix)}\.job\..*"
    entry, dead, requests, replies, journal = (
        re.escape(name) for name in (names.entry, names.dead, names.requests, names.replies, names.journal)
    )
    status, control = re.escape(names.status), re.escape(names.control)
    return {
        # With OTT_DECLARE=false. Replies go to queues that requests name: by the default exchange.
        "worker": _right(write=_exactly(r"amq\.default", dead), read=_exactly(requests, journal, control)),
        # An upstream system, and `submit`: requests by the entry exchange, replies in queues of its own.
        "publisher": _right(_exactly(own, jobs), _exactly(entry), _exactly(own, jobs, replies, status)),
        # `dead-letters`, which keeps others out by a queue of that name, `journal`, `status`, `pause`.
        "operator": _right(
            _exactly(rf"{dead}\.lock"), _exactly(entry), _exactly(dead, journal, status, control)
        ),
        # Declares and binds, with OTT_DECLARE=true; to dead-letter from a queue asks for reading that queue.
        "provisioner": _right(
            _exactly(entry, dead, requests, replies, journal, status, control),
            _exactly(dead, requests, control),
            _exactly(entry, dead, requests),
        ),
    }


def _right(configure: str = NOTHING, write: str = NOTHING, read: str = NOTHING) -> Entry:
    return {"configure": configure, "write": write, "read": read}


def _exactly(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


def _user(name: str, password: str) -> Entry:
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": [],
        "limits": {},
    }


def _policy(vhost: str, queue: str, apply_to: str, definition: Entry) -> Entry:
    return {
        "vhost": vhost,
        "name": f"limits of {queue}",
        "pattern": _exactly(re.escape(queue)),
        "apply-to": apply_to,
        "definition": definition,
        "priority": 0,
    }


def _object(vhost: str, name: str, arguments: Entry, **more: object) -> Entry:
    return {
        "vhost": vhost,
        "name": name,
        "durable": True,
        "auto_delete": False,
        "arguments": arguments,
    } | more


def _binding(vhost: str, source: str, queue: str, key: str) -> Entry:
    return {
        "vhost": vhost,
        "source": source,
        "destination": queue,
        "destination_type": "queue",
        "routing_key": key,
        "arguments": {},
    }


def passwords_in(folder: Path) -> dict[str, str]:
    """The users' passwords; those that are missing are made and kept in `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for user in USERS:
        if not (folder / user).exists():
            with open(os.open(folder / user, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
    return {user: (folder / user).read_text().rstrip("\r\n") for user in USERS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("passwords", type=Path, metavar="PASSWORDS")
    parser.add_argument("--vhost", default="ott")
    parser.add_argument("--prefix", default="ott.registration")
    arguments = parser.parse_args()
    document = definitions(Topology(arguments.prefix), arguments.vhost, passwords_in(arguments.passwords))
    json.dump(document, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

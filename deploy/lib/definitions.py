"""RabbitMQ definitions for one deployment: vhost, users, what each may do, policies, queues and exchanges.

    definitions.py PASSWORDS [--vhost NAME] [--prefix PREFIX] [--publisher NAME]... > definitions.json

PASSWORDS is a folder with one file for each user (worker, publisher, operator, observer, provisioner), which
holds its password; what is missing is made up and written there, readable by its owner only. The definitions
hold salted hashes, which RabbitMQ keeps too, and no password. Import them with
`rabbitmqctl import_definitions`; a second import changes nothing but what has changed here.

With `--publisher NAME`, repeatable, each upstream system gets a user of its own instead of the common one
named publisher. Its replies come to queues that no other publisher can read, empty or delete.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.broker.topology import Topology
from worker.contract.words import CONTROL_KEY, REPLAY_KEY, REQUEST_KEY
from worker.settings import load_settings

PUBLISHER = "publisher"
USERS = ("worker", PUBLISHER, "operator", "observer", "provisioner")
NOTHING = "^$"

# Length and age of what holds secrets, or grows. A dead letter queue that is full turns messages down, so
# that the worker waits instead of losing one; by age they do expire, read or not.
DEAD_LETTERS = {"max-length": 1_000_000, "max-length-bytes": 2_000_000_000, "message-ttl": 90 * 86_400_000}
REPLIES = {"max-length": 1_000_000, "max-length-bytes": 2_000_000_000}
PUBLISHERS_LIMITS = {"max-connections": 100, "max-channels": 1_000}
# At least as long as dead letters: a letter that is older than the journal replays with --force only.
JOURNAL = {"max-age": "90D", "max-length-bytes": 1_000_000_000}

Entry = dict[str, Any]


def definitions(
    names: Topology,
    vhost: str,
    passwords: dict[str, str],
    publishers: Sequence[str] = (PUBLISHER,),
    partitions: int = 1,
) -> dict[str, list[Entry]]:
    """The whole document; `passwords` by user. The users' names begin with the vhost's: `ott-worker`. With
    several partitions there are their queues too."""
    users = users_with(publishers)
    journal = load_settings(prefix=names.prefix, journal_max_age=JOURNAL["max-age"])
    rights = _rights(names) | {each: _publisher(names, f"{vhost}-{each}") for each in publishers}
    if publishers == (PUBLISHER,):
        rights[PUBLISHER] = _publisher(names)
    keys: dict[str, list[str]] = {each: [REQUEST_KEY] for each in publishers}
    keys |= {"operator": [REPLAY_KEY, CONTROL_KEY], "worker": []}
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            _user(f"{vhost}-{user}", passwords[user], PUBLISHERS_LIMITS if user in publishers else {})
            for user in users
        ],
        "permissions": [{"vhost": vhost, "user": f"{vhost}-{user}"} | rights[user] for user in users],
        "topic_permissions": [
            {
                "vhost": vhost,
                "user": f"{vhost}-{user}",
                "exchange": names.entry,
                "write": _exactly(*keys[user]) if keys[user] else NOTHING,
                "read": NOTHING,
            }
            for user in users
            if user in keys
        ],
        "policies": [
            _policy(vhost, names.dead, "queues", DEAD_LETTERS),
            _policy(vhost, names.replies, "queues", REPLIES),
            _policy(vhost, names.journal, "queues", JOURNAL),
        ],
        "exchanges": [
            _object(vhost, names.dead, {}, type="fanout", internal=False),
            _object(vhost, names.entry, {}, type="topic", internal=False),
        ],
        "queues": [
            _object(vhost, name, names.arguments(name, journal))
            for name in (
                *(names.dead, names.replies, names.journal, names.requests, names.status, names.control),
                *names.partition_objects(partitions),
            )
        ],
        "bindings": [
            _binding(vhost, names.dead, names.dead, ""),
            _binding(vhost, names.entry, names.requests, REQUEST_KEY),
            _binding(vhost, names.entry, names.requests, REPLAY_KEY),
            _binding(vhost, names.entry, names.control, CONTROL_KEY),
        ],
    }


def users_with(publishers: Sequence[str]) -> list[str]:
    """All users, where these are the publishers."""
    return [each for user in USERS for each in (publishers if user == PUBLISHER else (user,))]


def _rights(names: Topology) -> dict[str, Entry]:
    """What each user needs, and nothing else. From RabbitMQ 4.3 on, to look at an object (a passive declare)
    needs a right on it, whichever: the weakest is to write, which does not allow to publish to a queue."""
    entry, dead, requests, replies, journal, status, control, partition_log = (
        re.escape(name)
        for name in (
            names.entry,
            names.dead,
            names.requests,
            names.replies,
            names.journal,
            names.status,
            names.control,
            names.partition_log,
        )
    )
    requests = rf"{requests}(\.[0-9]+)?"  # its partitions too; only the workers may write into them
    return {
        # With OTT_DECLARE=false. Replies go to queues that requests name: by the default exchange, as does
        # what the worker tells of itself, and what the router puts into partitions.
        "worker": _right(
            write=_exactly(r"amq\.default", dead, entry, replies, status),
            read=_exactly(requests, journal, status, control, partition_log),
        ),
        # `dead-letters`, which keeps others out by two queues, `journal`, `status`, `pause`, the console.
        "operator": _right(
            _exactly(rf"{dead}\.(lock|change)"),
            _exactly(entry, requests),
            _exactly(dead, replies, journal, status, control),
        ),
        # `status` and `journal`: it sees no request, and changes nothing.
        # The exchange of dead letters bears the queue's name: with a right on it, it could forge a letter. So
        # from 4.3 on it does not see how many there are.
        "observer": _right(write=_exactly(replies, requests), read=_exactly(journal, status, control)),
        # Declares and binds, with OTT_DECLARE=true; to dead-letter from a queue asks for reading that queue.
        # It prunes partitions, for which it reads who uses them.
        "provisioner": _right(
            _exactly(entry, dead, requests, replies, journal, status, control, partition_log),
            _exactly(dead, requests, control),
            _exactly(entry, dead, requests, status, partition_log),
        ),
    }


def _publisher(names: Topology, user: str | None = None) -> Entry:
    """An upstream system, and `submit`: requests by the entry exchange, replies in queues of its own. `user`
    is the beginning of those queues' names, where there are other publishers."""
    jobs = re.escape(f"{names.prefix}.job.{user}." if user else f"{names.prefix}.job.") + ".*"
    own = (r"amq\.gen-.*", jobs)
    looks_at = re.escape(names.requests)  # see _rights
    return _right(
        _exactly(*own), _exactly(re.escape(names.entry), looks_at), _exactly(*own, re.escape(names.status))
    )


def _right(configure: str = NOTHING, write: str = NOTHING, read: str = NOTHING) -> Entry:
    return {"configure": configure, "write": write, "read": read}


def _exactly(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


def _user(name: str, password: str, limits: Entry) -> Entry:
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": [],
        "limits": limits,
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


def passwords_in(folder: Path, users: Sequence[str]) -> dict[str, str]:
    """The users' passwords; those that are missing are made and kept in `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for user in users:
        if not (folder / user).exists():
            with open(os.open(folder / user, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
    return {user: (folder / user).read_text().rstrip("\r\n") for user in users}


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text) or text in set(USERS) - {PUBLISHER}:
        raise argparse.ArgumentTypeError("must be letters, digits, _ and -, and no other user's name")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("passwords", type=Path, metavar="PASSWORDS")
    parser.add_argument("--vhost", default="ott")
    parser.add_argument("--prefix", default="ott.registration")
    parser.add_argument("--partitions", type=int, default=1, metavar="N", help="as OTT_PARTITIONS")
    parser.add_argument("--publisher", action="append", type=_name, metavar="NAME", dest="publishers")
    arguments = parser.parse_args()
    publishers = tuple(dict.fromkeys(arguments.publishers or (PUBLISHER,)))
    passwords = passwords_in(arguments.passwords, users_with(publishers))
    names = Topology(arguments.prefix)
    document = definitions(names, arguments.vhost, passwords, publishers, arguments.partitions)
    json.dump(document, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

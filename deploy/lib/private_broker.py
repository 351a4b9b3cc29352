"""A RabbitMQ node of one's own, made from the installed `rabbitmq-server`.

    private_broker.py start DIR [--set KEY=VALUE]...   start it, wait until it answers, print its URL
    private_broker.py stop  DIR                        end it cleanly
    private_broker.py kill  DIR                        end it at once, as a crash does
    private_broker.py flush DIR                        let a kill lose no queue declared just now (see below)
    private_broker.py ctl   DIR ARGUMENT...            run rabbitmqctl on it

It shares nothing with a system-wide RabbitMQ: its data, configuration, cookie and log live in DIR, it
listens on 127.0.0.1 only, on free ports, and it has an epmd (Erlang's port mapper) of its own. Queues and
messages are kept in DIR, and a node that is started again has its old ports. To be rid of it, stop or
kill it and delete DIR. `--set` adds a line to its rabbitmq.conf; without one, the lines of the last
start stay.

RabbitMQ notes down a new quorum queue up to three seconds late. A node that is killed before that comes back
with the queue, but without a leader for it, and every operation on it hangs. `flush` has it noted down.

OTT_TEST_RABBITMQ_ROOT names a file tree that holds another version of RabbitMQ, as debootstrap makes it. Its
scripts then run in that tree, which only root can do.

It runs as the user who starts it. The wrapper around `rabbitmq-server` that Linux packages install
is passed by, because it insists on root and on the system's folders.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

NODE = "broker@localhost"
# As in deploy/rabbitmq/ott.conf, which says why.
MAX_MESSAGE_SIZE = "max_message_size = 16777216"
START_LIMIT = 60.0  # seconds
STOP_LIMIT = 30.0  # seconds, then it is killed
POLL = 0.05  # seconds

# Below every system's range of ephemeral ports: a client that keeps trying the port of a node that is
# down could otherwise be given that very port as its own, and the node could not come back.
PORTS = range(15_000, 32_000)

TREE = os.environ.get("OTT_TEST_RABBITMQ_ROOT", "")
_BEHIND_THE_WRAPPER = Path("/usr/lib/rabbitmq/bin")
_BINARIES = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/opt/homebrew/sbin",
)


class BrokerError(Exception):
    """The node cannot be started or asked; one line that says why."""


def installed() -> Path | None:
    """The folder of RabbitMQ's scripts, or None where `rabbitmq-server` or Erlang is not installed."""
    if TREE:
        return _BEHIND_THE_WRAPPER if Path(f"{TREE}{_BEHIND_THE_WRAPPER}").is_dir() else None
    if shutil.which("erl", path=_path()) is None:
        return None
    if os.access(_BEHIND_THE_WRAPPER / "rabbitmq-server", os.X_OK):
        return _BEHIND_THE_WRAPPER
    found = shutil.which("rabbitmq-server", path=_path())
    return Path(found).parent if found else None


class PrivateBroker:
    """The node whose files are in `folder`; it may be running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._node = _Process(self.folder / "node")
        self._epmd = _Process(self.folder / "epmd")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._ports()['amqp']}/"

    def start(self, settings: Sequence[str] = ()) -> str:
        """Start it where it does not run, and return its URL once it answers. Raises BrokerError."""
        if self._node.runs():
            return self.url
        scripts = installed()
        if scripts is None:
            raise BrokerError(f"rabbitmq-server is not installed{TREE and ' in ' + TREE}")
        self.kill()  # an epmd whose node ended by itself
        self._prepare(settings)
        try:
            epmd = [*self._in_tree(), _epmd(), "-port", str(self._ports()["epmd"])]
            self._epmd.start(epmd, self._environment())
            self._node.start([*self._in_tree(), str(scripts / "rabbitmq-server")], self._environment())
            self._wait_for_an_answer()
        except BaseException:
            self.kill()
            raise
        return self.url

    def stop(self) -> None:
        """End it cleanly, its epmd too."""
        try:
            self._node.end(signal.SIGTERM)
        finally:
            self._epmd.end(signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, its epmd too."""
        try:
            self._node.end(signal.SIGKILL)
        finally:
            self._epmd.end(signal.SIGKILL)

    def ctl(self, arguments: Iterable[str]) -> int:
        """Run `rabbitmqctl` on it and return its exit code. Raises BrokerError."""
        scripts = installed()
        if scripts is None or not self._node.runs():
            raise BrokerError(f"no node runs in {self.folder}")
        return subprocess.run(
            [*self._in_tree(), str(scripts / "rabbitmqctl"), *arguments], env=self._environment(), check=False
        ).returncode

    def flush(self) -> None:
        """Have the queues declared so far noted down. Raises BrokerError."""
        if self.ctl(["--quiet", "eval", "lists:foreach(fun dets:sync/1, dets:all())."]):
            raise BrokerError(f"the node in {self.folder} does not answer rabbitmqctl")

    def _in_tree(self) -> list[str]:
        """The beginning of a command that runs in the other tree, with this folder and the temporary files in
        it. The mounts end with the command."""
        if not TREE:
            return []
        mounts = "".join(
            f'mkdir -p "$0{place}" && mount --bind "{place}" "$0{place}" && '
            for place in (tempfile.gettempdir(), self.folder)
        )
        enter = f'{mounts}mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        return ["unshare", "--mount", "sh", "-c", enter, TREE]

    def _prepare(self, settings: Sequence[str]) -> None:
        for name in ("data", "home", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        ports = self.folder / "ports.json"
        if not ports.exists():
            ports.write_text(json.dumps(dict(zip(("amqp", "dist", "epmd"), _free_ports(3), strict=True))))
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            with open(os.open(cookie, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
                file.write(secrets.token_hex(16))
        plugins = self.folder / "enabled_plugins"
        if not plugins.exists():
            plugins.write_text("[].\n")
        config = self.folder / "rabbitmq.conf"
        if settings or not config.exists():
            lines = [
                f"listeners.tcp.1 = 127.0.0.1:{self._ports()['amqp']}",
                MAX_MESSAGE_SIZE,
                *settings,
            ]
            config.write_text("".join(f"{line}\n" for line in lines))

    def _ports(self) -> dict[str, int]:
        try:
            ports: dict[str, int] = json.loads((self.folder / "ports.json").read_text())
        except FileNotFoundError:
            raise BrokerError(f"no node was ever started in {self.folder}") from None
        return ports

    def _environment(self) -> dict[str, str]:
        # The whole of it: a RABBITMQ_* or ERL_* variable meant for another node must not reach this
        # one. What is named "none" does not exist, so that none of the system's configuration is read.
        ports, loopback = self._ports(), "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": _path(),
            "LANG": "C.UTF-8",
            "ERL_CRASH_DUMP": str(self.folder / "log" / "crash.dump"),
            "HOME": str(self.folder / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_DIST_PORT": str(ports["dist"]),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            # With these two the script becomes the node instead of waiting for it: a kill hits the node.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            # Schedulers that spin for a moment before they sleep halve the start.
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "short",
        }

    def _wait_for_an_answer(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not _answers(self._ports()["amqp"]):
            if not self._node.runs():
                raise BrokerError(f"the private RabbitMQ ended while it started: {self._node.last_words()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"the private RabbitMQ did not answer within {START_LIMIT:.0f} seconds")
            time.sleep(POLL)


class _Process:
    """A process that outlives this one. It holds a lock on `NAME.pid` for as long as it lives, so that its
    number is never taken for another process's, however it ended and whether or not it was reaped."""

    def __init__(self, base: Path) -> None:
        self._pid_file = base.with_suffix(".pid")
        self._output = base.with_suffix(".out")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        with open(self._pid_file, "a+") as pid_file, open(self._output, "wb") as output:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            pid_file.truncate(0)
            # It notes its own number: a signal may end this program right after the start.
            self._child = subprocess.Popen(
                ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._pid_file), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[pid_file.fileno()],
                start_new_session=True,
            )

    def runs(self) -> bool:
        with contextlib.suppress(FileNotFoundError), open(self._pid_file) as pid_file:
            try:
                fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def end(self, how: signal.Signals) -> None:
        """Send the signal and wait until the process is gone; kill it where it takes too long. Raises
        BrokerError where even that does not end it."""
        began = time.monotonic()
        is_sent = False
        while self.runs():
            spent = time.monotonic() - began
            if spent > 2 * STOP_LIMIT:
                raise BrokerError(f"the process that {self._pid_file} names does not end")
            if not is_sent or spent > STOP_LIMIT:
                with contextlib.suppress(ProcessLookupError, ValueError):  # it has not noted its number yet
                    os.kill(int(self._pid_file.read_text()), signal.SIGKILL if spent > STOP_LIMIT else how)
                    is_sent = True
            time.sleep(POLL)
        if self._child:
            self._child.wait()

    def last_words(self) -> str:
        """What it gave as the reason for its end, in one line."""
        lines = self._output.read_text(errors="replace").splitlines()
        errors = [line.partition("[error] ")[2] for line in lines if "[error] " in line]
        return " ".join(" ".join(errors[:3] or lines[-3:]).split())[:300] or "it said nothing"


def _answers(port: int) -> bool:
    """Whether an AMQP broker answers there: it opens its port as the last step of its start."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


def _free_ports(count: int) -> Iterator[int]:
    for port in random.sample(PORTS, k=500):
        if count and _is_free(port):
            count -= 1
            yield port


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *_BINARIES))


def _epmd() -> str:
    """Erlang's port mapper. It is on the path with most packages, and always beside the emulator."""
    found = "epmd" if TREE else shutil.which("epmd", path=_path())
    if found:
        return found
    ask = ["erl", "-noinput", "-eval", "io:format([code:root_dir()]), halt()."]
    root = subprocess.run(ask, env={"PATH": _path()}, capture_output=True, text=True, check=False).stdout
    beside = sorted(Path(root).glob("erts-*/bin/epmd"))
    if not root or not beside:
        raise BrokerError("Erlang's epmd cannot be found")
    return str(beside[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "kill", "flush", "ctl"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path, metavar="DIR")
        if name == "start":
            command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
        if name == "ctl":
            command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    broker = PrivateBroker(arguments.folder)
    try:
        if arguments.command == "start":
            print(broker.start(arguments.settings))
        elif arguments.command == "ctl":
            return broker.ctl(arguments.arguments)
        else:
            getattr(broker, arguments.command)()
    except BrokerError as error:
        print(f"private-broker: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

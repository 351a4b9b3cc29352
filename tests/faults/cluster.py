"""A cluster of three RabbitMQ nodes, each on a host of its own, which tests may kill, freeze and part.

The nodes come from the installed rabbitmq-server, or from a file tree with another version of it that
OTT_TEST_RABBITMQ_ROOT names (its scripts then run in that tree).
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import watchdog
from tests.faults.load import wait_for
from tests.faults.network import HOSTS, Network

SCRIPTS = "/usr/lib/rabbitmq/bin"
TREE = os.environ.get("OTT_TEST_RABBITMQ_ROOT", "")
START_TIMEOUT = 120.0  # seconds
REVIVAL_TIMEOUT = 60.0  # seconds
HEALING_TIMEOUT = 10.0  # seconds, where the nodes stay apart after a partition until they are restarted
# What each of the nodes sees, in one question: each run of rabbitmqctl takes a second of a processor.
SEEN = """
    Running = case erlang:function_exported(rabbit_nodes, list_running, 0) of
        true -> list_running;
        false -> all_running
    end,
    [rpc:call(Node, rabbit_nodes, Running, []) || Node <- [{nodes}]]."""  # the second one is the word of 3.10
TICK = 8  # seconds after which nodes notice that another one is silent; RabbitMQ's default is 60


@dataclass
class ClusterNode:
    """One node; its files are in a folder of its own."""

    number: int
    _network: Network
    _folder: Path
    _cookie: str
    _settings: Sequence[str]

    def __post_init__(self) -> None:
        self.address = self._network.address(self.number)
        self.name = f"rabbit@{self.address}"
        self.url = f"amqp://guest:guest@{self.address}:5672/"
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def runs(self) -> bool:
        return bool(self._processes) and self._processes[-1].poll() is None

    async def start(self) -> None:
        """Start it; `answers` tells when it is there."""
        await asyncio.to_thread(self._start)

    async def answers(self) -> None:
        """Return when it takes AMQP connections."""
        deadline = time.monotonic() + START_TIMEOUT
        while not await asyncio.to_thread(self.takes_connections):
            assert self.runs, f"node {self.number} ended: {self._last_words()}"
            assert time.monotonic() < deadline, f"node {self.number} does not answer"
            await asyncio.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    async def stop(self) -> None:
        """End it in order."""
        await asyncio.to_thread(self.ctl, "stop")
        await wait_for(lambda: not self.runs, f"the end of node {self.number}", START_TIMEOUT)
        self.kill()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on it; what it printed."""
        command = [
            *self._network.enter(self.number),
            *self._in_tree(),
            f"{SCRIPTS}/rabbitmqctl",
            "--longnames",
        ]
        done = subprocess.run(
            [*command, "--quiet", *arguments],
            env=self._environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"rabbitmqctl {arguments[0]} on node {self.number}: {done.stderr[-500:]}"
        return done.stdout.strip()

    async def evaluate(self, expression: str) -> str:
        """Run an Erlang expression on it."""
        return await asyncio.to_thread(self.ctl, "eval", " ".join(expression.split()))

    async def flush(self) -> None:
        """Have queues that were declared just now survive a crash of all nodes."""
        await self.evaluate("lists:foreach(fun dets:sync/1, dets:all()), mnesia:dump_log().")

    def _start(self) -> None:
        for name in ("data", "home", "log"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        cookie = self._folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        (self._folder / "enabled_plugins").write_text("[].\n")
        (self._folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in self._settings))
        self._processes = [self._spawn("epmd"), self._spawn(f"{SCRIPTS}/rabbitmq-server")]

    def _spawn(self, program: str) -> "subprocess.Popen[bytes]":
        with open(self._folder / f"{Path(program).name}.out", "ab") as output:
            return subprocess.Popen(
                [*self._network.enter(self.number), *self._in_tree(), program],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _in_tree(self) -> list[str]:
        """What a command begins with that runs in the other version's file tree, with this folder in it."""
        if not TREE:
            return []
        place = f"{TREE}{self._folder}"
        Path(place).mkdir(parents=True, exist_ok=True)
        mounts = f'mount --bind "{self._folder}" "{place}" && mount -t proc proc "{TREE}/proc"'
        enter = f'{mounts} && exec chroot "{TREE}" "$@"'
        return ["unshare", "--mount", "sh", "-c", enter, "sh"]

    def _environment(self) -> dict[str, str]:
        # The whole of it: a variable meant for another node must not reach this one.
        folder = self._folder
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            watchdog.MARK: os.environ.get(watchdog.MARK, ""),
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "ERL_CRASH_DUMP": str(folder / "log" / "crash.dump"),
            "ERL_EPMD_PORT": "4369",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_DIST_PORT": "25672",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "none",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel net_ticktime {TICK}",
        }

    def takes_connections(self) -> bool:
        """Whether an AMQP client can connect now."""
        try:
            with socket.create_connection((self.address, 5672), timeout=1) as connection:
                connection.settimeout(1)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # each has a session of its own

    def _last_words(self) -> str:
        return (self._folder / "rabbitmq-server.out").read_text(errors="replace")[-800:]


class Cluster:
    """Three nodes that have joined. `handling` is RabbitMQ's cluster_partition_handling."""

    def __init__(self, network: Network, handling: str = "pause_minority") -> None:
        self.network = network
        self.stays_apart = handling == "ignore"
        # From 4.3 on a minority keeps its clients. A reader that is connected there hears nothing meanwhile.
        self.keeps_clients = self.stays_apart or _knows("consumer_disconnected_timeout")
        self._folder = Path(tempfile.mkdtemp(prefix="ott-cluster-"))
        cookie = secrets.token_hex(16)
        names = [f"rabbit@{network.address(host)}" for host in HOSTS]
        settings = [
            "listeners.tcp.1 = 0.0.0.0:5672",
            "loopback_users = none",
            # From 4.3 on, the former has no effect, and the latter is how long a queue waits for consumers of
            # a node that vanished: as in deploy/rabbitmq/ott.conf.
            "consumer_disconnected_timeout = 10000"
            if _knows("consumer_disconnected_timeout")
            else f"cluster_partition_handling = {handling}",
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{n} = {name}" for n, name in enumerate(names, 1)),
        ]
        self.nodes = {
            host: ClusterNode(host, network, self._folder / str(host), cookie, settings) for host in HOSTS
        }

    async def __aenter__(self) -> Self:
        try:
            # In RabbitMQ 4 the first node waits until it has heard of the others. Before, it founds a cluster
            # that they join, and two that start together may found one each.
            for node in self.nodes.values():
                await node.start()
                if not TREE:
                    await node.answers()
            await self.whole()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes.values()]

    @property
    def running(self) -> list[ClusterNode]:
        return [node for node in self.nodes.values() if node.runs]

    async def whole(self, timeout: float = START_TIMEOUT) -> None:
        """Return when all three run, see each other and take connections."""
        deadline = time.monotonic() + timeout
        while not await self._is_whole():
            assert time.monotonic() < deadline, "the cluster did not come together"
            await asyncio.sleep(0.3)

    async def _is_whole(self) -> bool:
        nodes = self.nodes.values()
        if not all([await asyncio.to_thread(node.takes_connections) for node in nodes]):
            return False
        with contextlib.suppress(AssertionError):
            names = ", ".join(f"'{node.name}'" for node in nodes)
            seen = await self.nodes[HOSTS[0]].evaluate(SEEN.format(nodes=names))
            return seen.count("rabbit@") == len(HOSTS) ** 2
        return False

    async def leader(self, queue: str) -> ClusterNode:
        """The node that leads a quorum queue or a stream."""
        resource = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
        ask = f"""
            {{ok, Q}} = rabbit_amqqueue:lookup({resource}),
            case amqqueue:get_pid(Q) of
                {{Name, Node}} -> {{ok, _, {{_, Leader}}}} = ra:members({{Name, Node}}, 5000), Leader;
                Pid -> node(Pid)
            end."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            for node in self.running:
                with contextlib.suppress(AssertionError):
                    found = re.search(r"rabbit@[0-9.]+", await node.evaluate(ask))
                    leader = next((n for n in self.nodes.values() if found and n.name == found[0]), None)
                    if leader is not None and leader.runs:
                        return leader
            assert time.monotonic() < deadline, f"{queue} has no leader"
            await asyncio.sleep(0.3)

    async def transfer(self, queue: str, to: ClusterNode) -> None:
        """Let another node lead a quorum queue."""
        leader = await self.leader(queue)
        member = f'binary_to_atom(<<"%2F_{queue}">>)'
        await leader.evaluate(
            f"ra:transfer_leadership({{{member}, '{leader.name}'}}, {{{member}, '{to.name}'}})."
        )

    async def revive(self) -> None:
        """Undo everything: heal the network, wake what is frozen, start what does not run."""
        await asyncio.to_thread(self.network.heal)
        for node in self.nodes.values():
            node.thaw()
            if not node.runs:
                node.kill()
                await node.start()
        try:
            await self.whole(HEALING_TIMEOUT if self.stays_apart else REVIVAL_TIMEOUT)
        except AssertionError:
            await self._restart_who_is_apart()

    async def _restart_who_is_apart(self) -> None:
        """As an operator does. A node that lost sight of the others twice in a short time may stay apart."""
        for _ in HOSTS:
            sights = {host: await self._sees(node) for host, node in self.nodes.items()}
            apart = self.nodes[min(sights, key=lambda host: sights[host])]
            apart.kill()
            await apart.start()
            with contextlib.suppress(AssertionError):
                await self.whole(REVIVAL_TIMEOUT)
                return
        await self.whole()

    async def _sees(self, node: ClusterNode) -> int:
        """How many running nodes it knows of; none if it does not take connections."""
        if await asyncio.to_thread(node.takes_connections):
            with contextlib.suppress(AssertionError):
                return (await node.evaluate(SEEN.format(nodes=f"'{node.name}'"))).count("rabbit@")
        return 0


def _knows(setting: str) -> bool:
    """Whether RabbitMQ has such a setting."""
    schemas = Path(f"{TREE}/usr/lib/rabbitmq/lib").glob("*/plugins/rabbit-*/priv/schema/rabbit.schema")
    return any(setting in schema.read_text() for schema in schemas)

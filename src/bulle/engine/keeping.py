"""Asking the home's keeper, which is started when nobody answers; and its own entry.

See :mod:`bulle.network.keeper`. It is forked by the spawner, which forks it anew where it is killed; where there is no spawner, the next one who asks
starts another.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.model.run_plan import RunPlan
from bulle.monitor.state import current_state
from bulle.network import protocol
from bulle.network.devices import inside
from bulle.network.protocol import Answer, Register, Request
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.records.events import container_attributes
from bulle.spawner import client
from bulle.spawner.leash import Leash

ENTRY = "keeper"
IDLE_SETTING = "BULLE_KEEPER_IDLE_S"
_ATTEMPTS = 5
_START_PATIENCE_S, _START_AGAIN_S = 60.0, 2.0


def ask(home: Path, request: Request) -> Answer:
    """The keeper's answer. Raises the BulleError that it tells, or one where no keeper could be had."""
    for _ in range(_ATTEMPTS):
        with closing(protocol.connect(home) or _start(home)) as connection:
            answer = protocol.ask(connection, request)
        if answer is not None:
            return answer  # else it ended, because it was idle or killed
    raise BulleError("the network could not be made", "its keeper ends before it answers", f"see {home}/run/spawner.log")


def tell(home: Path, request: Request, patience_s: float = protocol.PATIENCE_S) -> bool:
    """Ask the keeper if there is one, and whether there was: where nothing runs there is nothing to change."""
    connection = protocol.connect(home)
    if connection is None:
        return False
    with closing(connection):
        connection.settimeout(patience_s)
        return protocol.ask(connection, request) is not None


def _start(home: Path) -> socket.socket:
    lock = os.open(home / "run" / "keeper.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (connection := protocol.connect(home)) is not None:
            return connection
        deadline = time.monotonic() + _START_PATIENCE_S
        asked_s = 0.0
        while time.monotonic() < deadline:
            if time.monotonic() > asked_s + _START_AGAIN_S:  # one may have been killed, or have ended idle while this process waited for its turn
                client.submit(home, ENTRY, [str(home)], local=main)
                asked_s = time.monotonic()
            if (connection := protocol.connect(home)) is not None:
                return connection
            time.sleep(0.001)
    finally:
        os.close(lock)
    raise BulleError("the network could not be made", "its keeper does not start", f"see {home}/run/spawner.log")


def main(argv: Sequence[str], _descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``keeper``: the first of ``argv`` is the home."""
    from bulle.engine.balancing import standing_of
    from bulle.isolation.namespaces import NamespaceDriver
    from bulle.network.keeper import IDLE_S, Keeper

    NamespaceDriver.close_shell()
    home = Path(argv[0])
    try:
        idle_s = float(os.environ.get(IDLE_SETTING) or IDLE_S)
    except ValueError:
        idle_s = IDLE_S
    Keeper(home, lambda: running(home), standing_of, idle_s).serve()
    if leash is not None:
        leash.release()
    return 0


def running(home: Path) -> Iterator[Register]:
    """What a keeper has to know of every container that runs and has a network of its own."""
    with closing(Database(home)) as database:
        records = ContainerRecords(database).all()
    for record in records:
        if record.plan.network.mode == "own" and (state := current_state(record.plan.state_host_path)).status == "running":
            yield registration(record.plan, state.pid, record.name)


def register(home: Path, plan: RunPlan, pid: int) -> Callable[[], Sequence[str]]:
    """Have a container that is being started given its interfaces, ports and names; what is returned waits until it has them, and returns notes."""
    request = registration(plan, pid)
    connection = protocol.connect(home) or _start(home)
    protocol.send(connection, request)

    def wait() -> Sequence[str]:
        with connection:
            answer = protocol.receive(connection)
        return (answer or ask(home, request)).notes  # it ended before it answered

    return wait


def with_changed_network(home: Path, plan: RunPlan) -> RunPlan:
    """The plan of a container that is started again, with what commands changed of its networks and ports meanwhile."""
    if plan.network.mode != "own":
        return plan
    with closing(Database(home)) as database:
        return msgspec.structs.replace(plan, network=ContainerRecords(database).find(plan.container_id).plan.network)


def registration(plan: RunPlan, pid: int, name: str = "") -> Register:
    """What the keeper is told of a container whose first process is ``pid``."""
    if not name:
        name = (container_attributes(plan.state_host_path) or {}).get("name", "")
    is_checked = plan.lifecycle.health is not None
    return Register(plan.container_id, name, pid, plan.state_host_path, plan.network, is_checked, listens=plan.guest is None)


@contextmanager
def standing_in_shared_network(plan: RunPlan) -> Iterator[None]:
    """For a plan that shares another container's network: have this process stand in it meanwhile. Raises Conflict where that does not run."""
    if plan.network.mode != "container":
        yield
        return
    directory = f"{os.path.dirname(plan.state_host_path)}/{plan.network.container_id}"
    state = current_state(directory)
    if state.status != "running":
        raise Conflict("cannot join the network of a container that does not run", plan.network.container_id[:12], "start that one first")
    there = os.open(f"/proc/{state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(there):
            yield
    finally:
        os.close(there)

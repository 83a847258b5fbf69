"""Bringing a guest up: file server, hypervisor, agent, and the steps until the container's root stands; and how it ended, if it did.

Called by the shepherd, inside its sandbox. Deadlines count the hypervisor's processor time, so that a busy host makes a start slow and never fail.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bulle.errors import BulleError
from bulle.isolation import identity
from bulle.isolation.microvm import arrival, cable, checkpoint, disks, file_server, guest, refusals, sandbox
from bulle.isolation.microvm import template as templates
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.cable import Cable
from bulle.isolation.microvm.checkpoint import Beginning
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.initial_ramdisk import LATER
from bulle.isolation.microvm.machine import Machine, SharedDirectory
from bulle.isolation.microvm.qemu import arguments
from bulle.isolation.microvm.setup import Setup
from bulle.isolation.microvm.template import Known, Template
from bulle.linux import kernel_log, process
from bulle.model.run_plan import RunPlan

_BOOT_PROCESSOR_NS = 120 * 10**9
_BOOT_WALL_S = 600.0
_IDLE_WALL_S, _WORK_NS = 30.0, 6 * 10**9  # a guest that starts works all the time: one that wants less in so long hangs
_LOOK_MS = 200
_LAST_WORDS_S = 2.0
_CONSOLE_BYTES = 65536
_MOST_BYTES = 4 << 20
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")
_MOST_CALLS = 10


@dataclass
class Booted:
    """A hypervisor and the agent in its guest. ``console`` is read for what the guest's kernel says when it dies, ``interfaces`` are the plan's, as
    the guest calls them. ``is_prepared``: :func:`guest.common_steps` are done; ``files`` are contents of the container's that are known."""

    pid: int
    agent: Agent
    console: int
    output: int
    control: Control
    helpers: list[int] = field(default_factory=list)
    said: bytearray = field(default_factory=bytearray)
    status: int | None = None
    trace: int = -1
    trace_to: int = -1
    interfaces: tuple[str, ...] = ()
    is_prepared: bool = False
    files: dict[str, bytes | None] = field(default_factory=dict)

    def carry_trace(self) -> None:
        """Pass on what QEMU said of its processor since, or drop it until there is somebody to tell. It waits meanwhile, but not for ever."""
        data = memoryview(os.read(self.trace, _CONSOLE_BYTES))
        with suppress(OSError):
            while data and self.trace_to >= 0 and select.select([], [self.trace_to], [], 1.0)[1]:
                with suppress(BlockingIOError):
                    data = data[os.write(self.trace_to, data) :]

    def has_ended(self) -> bool:
        """Whether the hypervisor is gone; reaps it, and whatever else ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.pid:
                self.status = status
        return self.status is not None

    def listen_to_console(self) -> None:
        """Keep the end of what the guest's kernel printed."""
        with suppress(OSError):
            while data := os.read(self.console, _CONSOLE_BYTES):
                self.said += data
                del self.said[:-_CONSOLE_BYTES]

    def refused_calls(self) -> tuple[str, ...]:
        """System calls that a filter did not let pass, as the guest's kernel printed on the console, each once."""
        self.listen_to_console()
        lines = self.said.decode(errors="replace").splitlines()
        return tuple(dict.fromkeys(one.call for one in kernel_log.refusals(0, lambda _pid, _uid: True, lines)))[:_MOST_CALLS]

    def cause_of_end(self) -> str:
        """Why there is no guest any more, in a sentence's part."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.005)  # its line is closed a moment before it can be reaped
        self.listen_to_console()
        if panic := _PANIC.search(self.said):
            return f"the guest's kernel panicked: {panic[1].decode(errors='replace')}"
        if self.status is not None and os.WIFSIGNALED(self.status):
            return f"the hypervisor was killed by {signal.Signals(os.WTERMSIG(self.status)).name}"
        if self.status:
            with suppress(OSError):
                text = os.pread(self.output, 4096, 0).decode(errors="replace").strip().splitlines()
                if text:
                    return f"the hypervisor ended: {text[-1][:300]}"
            return f"the hypervisor ended with exit code {os.waitstatus_to_exitcode(self.status)}"
        return "the guest switched itself off"

    def kill(self) -> None:
        """End everything at once."""
        for pid in (self.pid, *self.helpers):
            with suppress(ProcessLookupError, PermissionError):  # the file server is root in here, and ends with the shepherd
                os.kill(pid, signal.SIGKILL)

    def power_off(self, *, quickly: bool, patience_s: float) -> None:
        """End the guest; unless ``quickly``, after it has written everything."""
        if not quickly and not self.has_ended():
            with suppress(BulleError, OSError, EOFError):
                self.agent.power_off()
                deadline = time.monotonic() + patience_s
                while not self.has_ended() and time.monotonic() < deadline:
                    _exchange(self, 20)
        self.kill()


def start(plan: RunPlan, setup: Setup, cables: Sequence[Cable], *, has_volumes: bool) -> Booted:
    """A guest whose container root stands. Raises BulleError; then nothing of it is left once this process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    console, printed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    trace, traced = os.pipe2(os.O_CLOEXEC) if setup.traced else (-1, -1)
    if setup.traced:
        os.fchmod(traced, 0o622)  # the hypervisor, who is somebody else, opens it by name
    helpers, shares = [], []
    if has_volumes:
        pid, connection = file_server.start(setup)
        helpers.append(pid)
        shares.append(SharedDirectory("volumes", connection.detach()))
    commands, commanded = socket.socketpair()
    machine = Machine(
        architecture=setup.architecture,
        accelerator=setup.accelerator,
        kernel=setup.kernel_fd,
        initial_ramdisk=setup.initial_ramdisk_fd,
        memory_bytes=setup.memory_bytes,
        processors=setup.processors,
        disks=setup.disks,
        networks=cable.networks(plan, cables),
        shares=tuple(shares),
        agent=theirs.fileno(),
        console=printed,
        log=traced,
        log_items="in_asm",
        host_tsc_khz=setup.host_tsc_khz,
        small=setup.small,
        control=commanded.fileno(),
        memory=setup.template.memory if setup.template is not None else -1,
        memory_shared=setup.template is not None and setup.template.known is None,
        incoming=setup.beginning is not None or setup.begun_with is not None,
    )
    pid = sandbox.start_hypervisor(setup.program, arguments(machine, setup.program)[1:], machine.descriptors, setup.output_fd)
    theirs.close()
    os.close(printed)
    commanded.detach()
    kept = {setup.template.memory} if setup.template is not None else set()
    if setup.template is not None and setup.template.known is None and setup.template.fresh:
        kept.add(setup.scratch)
    for descriptor in {*machine.descriptors} - {machine.agent, printed} - kept:
        os.close(descriptor)
    agent = Agent(ours) if setup.beginning is None else Agent.continued(ours, setup.beginning.kept.agent)
    booted = Booted(pid, agent, console, setup.output_fd, Control(commands), helpers, trace=trace)
    try:
        if setup.beginning is not None:
            _go_on(plan, setup, booted, setup.beginning, cables)
        else:
            _boot(plan, setup, booted, cables, has_volumes)
    except BaseException:
        booted.kill()
        raise
    return booted


def _go_on(plan: RunPlan, setup: Setup, booted: Booted, beginning: Beginning, cables: Sequence[Cable]) -> None:
    """Begin with what was kept of a machine; what ran in it runs on, but for commands whose clients are not here."""
    if setup.arrives:
        kept = arrival.Arrival(booted.control, setup.listener, setup.scratch_node).wait()
        beginning = Beginning(-1, kept)
        booted.agent = Agent.continued(booted.agent.line, kept.agent)
    else:
        try:
            booted.control.read_state(beginning.state, with_memory=True)
            booted.control.go_on()
        except BulleError as error:
            raise checkpoint.damaged(booted.cause_of_end() if booted.has_ended() else str(error)) from error
        os.close(beginning.state)
    booted.interfaces = beginning.kept.interfaces
    for session in booted.agent.sessions:
        if session.number != beginning.kept.first:
            session.close()
    machine_id = os.urandom(16).hex() if beginning.kept.container_id != plan.container_id and not setup.arrives else ""
    macs = [one.mac for one in cables]
    _do(booted, checkpoint.renewal(plan, setup.files, beginning.kept, macs, time.time_ns(), os.urandom(64), machine_id, moved=setup.arrives))


def _boot(plan: RunPlan, setup: Setup, booted: Booted, cables: Sequence[Cable], has_volumes: bool) -> None:
    template, begun = setup.template, setup.begun_with
    if template is not None and begun is not None:
        _restore(booted, begun, template.memory)
    wait(booted, lambda: booted.agent.hello is not None, starting=True)
    known = begun.known if begun is not None else None
    is_whole = template is not None and begun is template
    interfaces = _interfaces(plan, booted, cables, known)
    found_as = tuple(one.found_as for one in interfaces)
    booted.interfaces = tuple(one.name for one in interfaces)
    if known is None:
        _do(booted, guest.machine_steps(plan, emulated=setup.accelerator == "tcg"))
        if template is not None and setup.generic is not None:
            _keep(setup.generic, setup, booted.control, Known({}, found_as), template.memory)
    if not is_whole and setup.disks_later:
        _do(booted, [("modules", LATER)])
    nodes = known.disks if known is not None and is_whole else _find_disks(setup, booted)
    layers = tuple((nodes[disks.index_serial(number)], nodes[disks.tar_serial(number)]) for number in range(setup.layer_count))
    found = guest.Disks(layers, nodes[disks.SCRATCH_SERIAL])
    root = guest.root_steps(plan, found)
    is_fresh = booted.is_prepared = template is not None and template.fresh
    if not is_whole:
        _do(booted, [*guest.layer_steps(found), *(root if is_fresh else [])])
        if is_fresh:
            _prepare(booted, plan, setup.files)
    elif known is not None:
        booted.files = known.files
    if template is not None and not is_whole:
        _keep(template, setup, booted.control, Known(nodes, found_as, booted.files), template.memory)
    _do(booted, [
        *([] if is_fresh else root),
        *guest.own_steps(plan, setup.files, volumes=has_volumes, clock_ns=time.time_ns(), entropy=os.urandom(64)),
        *guest.network_steps(interfaces, asks_host=plan.network.mode == "own"),
    ])  # fmt: skip


def _restore(booted: Booted, begun: Template, memory: int) -> None:
    booted.agent.greet(again=False)
    templates.fill(begun, memory)
    try:
        booted.control.read_state(begun.state, with_memory=False)
        wait(booted, lambda: booted.agent.hello is not None, starting=True)
    except BulleError as error:
        templates.forget(begun)
        raise BulleError("the machine could not begin from its template", f"{error}", "start it again: it boots then") from error


def _prepare(booted: Booted, plan: RunPlan, files: guest.Files) -> None:
    """All of a container's root that does not depend on its names and its command: its files for /etc are empty, and get their contents later."""
    _do(booted, [*(("write", f"/files/{name}", "", "create") for name in files.contents), *guest.warming_steps(plan)])
    prepared = booted.agent.prepare(guest.common_steps(plan, files))
    wait(booted, lambda: prepared.final, starting=True)
    if prepared.error:
        raise refusals.explain_preparation(prepared)
    booted.files = {path: read(booted, path) for path in identity.LOOKED_AT}


def _keep(template: Template, setup: Setup, control: Control, known: Known, memory: int) -> None:
    """Make this machine a template on its way; where that fails it is none, and goes on."""
    try:
        control.write_state(template.state, with_memory=False)
        try:
            templates.finish(template, known, memory, setup.scratch)
        finally:
            control.go_on()
    except BulleError as error:
        templates.give_up(template)
        with suppress(OSError):  # there may be no space for a word either
            os.write(setup.output_fd, f"no template: {error}\n".encode())
    finally:
        for descriptor in (*template.descriptors, *([setup.scratch] if template.fresh else [])):
            os.close(descriptor)


def _do(booted: Booted, steps: Sequence[guest.Step]) -> None:
    """Have the agent do them all, in this order. Raises BulleError for the first that failed."""
    pending = [(step, booted.agent.step(*step)) for step in steps]
    wait(booted, lambda: all(reply.final for _step, reply in pending), starting=True)
    for step, reply in pending:
        if reply.error:
            what = " ".join(step[:3])
            raise BulleError("the guest could not be set up", f"{what}: {os.strerror(reply.error)}", "use another guest kernel (--kernel)")


def wait(booted: Booted, ready: Callable[[], bool], *, starting: bool = False) -> None:
    """Exchange words with the agent until it is so. Raises BulleError where the guest ends first, or has had its time."""
    worked_s, worked_ns = time.monotonic(), 0
    deadline_s = worked_s + _BOOT_WALL_S
    booted.agent.flush()
    while not ready():
        try:
            _exchange(booted, _LOOK_MS)
        except EOFError:
            raise BulleError("the machine ended before the command ran", booted.cause_of_end(), "see `bulle why` and `bulle doctor`") from None
        except OSError as error:
            raise BulleError("the machine ended before the command ran", booted.cause_of_end() or str(error), "see `bulle doctor`") from error
        if booted.has_ended() and not ready():
            raise BulleError("the machine ended before the command ran", booted.cause_of_end(), "see `bulle doctor`")
        now_s, wanted_ns = time.monotonic(), process.wanted_processor_ns(booted.pid) if starting else None
        if wanted_ns is None or wanted_ns - worked_ns >= _WORK_NS:
            worked_ns, worked_s = wanted_ns or 0, now_s
        hangs = now_s > min(deadline_s, worked_s + _IDLE_WALL_S)
        if starting and (hangs or process.processor_ns(booted.pid) > _BOOT_PROCESSOR_NS):
            booted.listen_to_console()
            last = booted.said.decode(errors="replace").strip().splitlines()
            raise BulleError("the guest does not start", last[-1][:200] if last else "its agent says nothing", "use another guest kernel")


def read(booted: Booted, path: str, *, own_root: bool = False, most: int = _MOST_BYTES) -> bytes | None:
    """The content of a file in the guest, below the container's root or the agent's own; None where there is none."""
    reply = booted.agent.read(path, most, own_root=own_root)
    wait(booted, lambda: reply.final)
    return bytes(reply.content) if not reply.error else None


def guest_kills(booted: Booted) -> int:
    """How many processes the guest's kernel killed because memory was used up."""
    with suppress(BulleError):
        for line in (read(booted, "/proc/vmstat", own_root=True) or b"").splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
    return 0


def listing(booted: Booted, path: str) -> list[str]:
    """The names in a directory of the agent's own root."""
    reply = booted.agent.list(path, own_root=True)
    wait(booted, lambda: reply.final)
    return [] if reply.error else [os.fsdecode(name) for name in bytes(reply.content).split(b"\0") if name]


def _exchange(booted: Booted, patience_ms: int) -> None:
    poll = select.poll()
    poll.register(booted.agent.fileno(), select.POLLIN | (select.POLLOUT if booted.agent.wants_to_write else 0))
    poll.register(booted.console, select.POLLIN)
    if booted.trace >= 0:
        poll.register(booted.trace, select.POLLIN)
    for descriptor, events in poll.poll(patience_ms):
        if descriptor == booted.console:
            booted.listen_to_console()
            continue
        if descriptor == booted.trace:
            booted.carry_trace()
            continue
        if events & select.POLLOUT:
            booted.agent.flush()
        if events & ~select.POLLOUT and not booted.agent.receive():
            raise EOFError


def readable(agent: Agent) -> bool:
    """Whether more of what the guest said waits."""
    return bool(select.select([agent], [], [], 0)[0])


def _interfaces(plan: RunPlan, booted: Booted, cables: Sequence[Cable], restored: Known | None) -> list[guest.Interface]:
    """The guest's interfaces by their hardware addresses: its kernel numbers them in an order of its own. One that was restored has the addresses of
    its template's, in the same order as the plan's."""
    if plan.network.mode not in ("own", "user"):
        return []
    macs = (cable.USER_MAC,) if plan.network.mode == "user" else tuple(one.mac for one in cables)
    names: dict[str, str] = {}
    if restored is not None:
        names = dict(zip(macs, restored.interfaces, strict=True))
    else:
        for name in listing(booted, "/sys/class/net"):
            address = read(booted, f"/sys/class/net/{name}/address", own_root=True)
            names[(address or b"").decode(errors="replace").strip()] = name
    if plan.network.mode == "user":
        return [guest.Interface(names.get(macs[0], "eth0"), "eth0", ("10.0.2.15/24",), ("10.0.2.2",))]
    found = []
    for attachment, mac in zip(plan.network.attachments, macs, strict=True):
        if mac not in names:
            raise BulleError(f"the guest has no interface for network {attachment.network}", "its kernel lacks virtio_net", "use another kernel")
        told = mac if restored is not None else ""
        found.append(guest.Interface(names[mac], attachment.interface, attachment.addresses, attachment.gateways, attachment.mtu, told))
    return found


def _find_disks(setup: Setup, booted: Booted) -> dict[str, str]:
    """The device node of each disk, by its serial."""

    def look(path: str) -> bytes:
        content = read(booted, path, own_root=True, most=4096)
        if content is None:
            raise FileNotFoundError(path)
        return content

    return disks.find((disk.serial for disk in setup.disks), lambda path: listing(booted, path), look)

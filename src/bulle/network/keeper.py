"""The keeper: one process per home that makes the network of every container that starts, holds its ports and answers its names.

It is asked over ``run/keeper.sock`` (:mod:`bulle.network.protocol`), one request after the other, so that nothing it does can race. It watches the
first process of every container, and takes away what the kernel does not take by itself when that ends. Killed at any moment it loses nothing: the
next one learns from the containers' state what runs, and makes everything that is not in the kernel anew. When nothing has run for a while it
removes bridges and rules, and ends.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import msgspec

from bulle.errors import BulleError, NotFound, to_parts
from bulle.linux import process
from bulle.linux.nftables import Watcher
from bulle.model.network import Attachment, Egress, Standing
from bulle.model.run_plan import Network
from bulle.network import devices, host_settings, protocol
from bulle.network.dns import NameServer, View
from bulle.network.firewalls import Firewalls
from bulle.network.loop import Loop
from bulle.network.members import RANKS, Ground, Member, as_before, published_ports
from bulle.network.naming import table_name
from bulle.network.protocol import Answer, Connect, Disconnect, Forget, Publish, Reconsider, Register, Rename, Request, Retract
from bulle.network.resolvers import HostResolvers
from bulle.network.rules import Rules
from bulle.network.sharing import SharedPorts
from bulle.network.succession import succeed
from bulle.records.database import Database
from bulle.records.networks import NetworkRecord, NetworkRecords

IDLE_S = 30.0
_SETTLED_AFTER_S, _LOOKS_EVERY_S = 0.2, 60.0
LOCK_NAME = "keeper.lock"
_FIRST_LOOK_S, _LAST_LOOK_S = 0.005, 1.0  # whether a replica without a health check listens
_AGAIN_S, _AGAIN_AT_MOST_S = 0.1, 20.0

Standings = Callable[[Register], Standing]


class Keeper:
    """See the module. ``running`` yields a :class:`Register` for every container of the home that runs, ``standing`` is what is known of one."""

    def __init__(self, home: Path, running: Callable[[], Iterable[Register]], standing: Standings, idle_s: float = IDLE_S) -> None:
        self._home = home
        self._running = running
        self._standing = standing
        self._idle_s = idle_s
        self._loop = Loop()
        self._rules = Rules(table_name(home))
        self._rules.later = self._loop.later
        self._ground = Ground(self._rules, self._loop, SharedPorts(self._rules, self._loop), self._holder)
        self._firewalls = Firewalls(table_name(home))
        self._notes: list[str] = []
        """What whoever starts the next container is to be told."""
        self._emptied_at_s = 0.0
        self._behind = self._taking_over = False
        """Rules are only remembered while taking over: those of the keeper before stand until all of them are."""
        self._names = NameServer(self._loop, HostResolvers())
        self._names.on_allowed = self._rules.allow
        self._members: dict[str, Member] = {}
        self._networks: dict[str, NetworkRecord] = {}
        self._listener: socket.socket | None = None

    def serve(self) -> None:
        """Be the home's keeper until it is not needed; returns at once where another is."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two sockets for each container, and those who ask and are relayed
        lock = os.open(self._home / "run" / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one that ends has it until everything is gone
            if (other := protocol.connect(self._home)) is not None:
                other.close()
                return
            succeed(lock)
            self._take_over()
            self._listen()
            self._loop.run()
            self._end()
        finally:
            os.close(lock)

    def _listen(self) -> None:
        path = self._home / "run" / protocol.SOCKET_NAME
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{protocol.SOCKET_NAME}")
        finally:
            os.close(directory)
        listener.listen(512)
        self._listener = listener
        self._loop.watch(listener.fileno(), lambda _events: self._accept(listener))
        asleep, awake = socket.socketpair()
        for end in (asleep, awake):
            end.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(awake.fileno())
        self._loop.watch(asleep.fileno(), lambda _events: self._told_to_end(asleep, awake))
        watcher = self._rules.watcher()
        self._loop.watch(watcher.fileno(), lambda _events: self._tables_changed(watcher))
        self._loop.later(_LOOKS_EVERY_S, self._admit_again)
        self._rest_if_idle()
        for member in self._members.values():
            self._reconsider(member)  # who has something to tell and found nobody has written it down before

    def _tables_changed(self, watcher: Watcher) -> None:
        """Put back what is ours; other firewalls may have been started or made anew, and are told of us once they are done."""
        if self._rules.was_touched(watcher):
            self._rules.restore()
        if self._rules.others_changed():
            self._loop.later(_SETTLED_AFTER_S, self._admit)

    def _admit_again(self) -> None:
        """Rules of the old iptables change without anybody being told."""
        self._admit()
        self._loop.later(_LOOKS_EVERY_S, self._admit_again)

    def _admit(self) -> None:
        self._notes += self._firewalls.admit([record.device for record in self._networks.values()])

    def _told_to_end(self, asleep: socket.socket, _awake: socket.socket) -> None:
        with suppress(OSError):
            asleep.recv(64)
        self._loop.ended = True

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _address = listener.accept()
            connection.setblocking(False)
            self._loop.watch(connection.fileno(), lambda _events: self._hear(connection))

    def _hear(self, connection: socket.socket) -> None:
        self._loop.forget(connection.fileno())
        with closing(connection):
            try:
                data = connection.recv(protocol.LONGEST)
            except OSError:
                return
            if not data:
                return
            try:
                answer = self._answer(protocol.requests.decode(data))
            except BulleError as error:
                answer = Answer(error=to_parts(error))
            except (OSError, msgspec.DecodeError) as error:
                answer = Answer(error=to_parts(BulleError("the network could not be made", str(error), "see `bulle doctor`")))
            with suppress(OSError):
                connection.send(msgspec.json.encode(answer))

    def _answer(self, request: Request) -> Answer:
        for ended in self._ended():
            self._drop(ended)  # what it held is free for whoever asks now
        if isinstance(request, Register):
            return self._register(request)
        if isinstance(request, Forget):
            self._networks.pop(request.network_id, None)
            self._rules.remove_network(request.network_id)
            self._names.forget_network(request.network_id)
            devices.remove_bridge(request.device)
            return Answer()
        member = self._members.get(request.container_id)
        if isinstance(request, Reconsider):
            return self._reconsider(member) if member is not None else Answer()
        if member is None:
            raise NotFound("the container has no network that could be changed", "it does not run", "start it first")
        if isinstance(request, Rename):
            member.name = request.name
            self._ground.shared.refresh(member)
        elif isinstance(request, Connect):
            self._connect(member, request.attachment)
        elif isinstance(request, Disconnect):
            self._disconnect(member, request.network_id)
        elif isinstance(request, Publish):
            member.publish_new(request.ports, self._ground)
        elif isinstance(request, Retract):
            member.retract(request.ports, self._ground)
            member.wants(request.left)
        self._describe(member)
        return Answer(member.ports)

    def _reconsider(self, member: Member) -> Answer:
        """Take it into the balance or out of it, as its directory says."""
        standing = self._standing_of(member)
        if standing != member.standing:
            member.standing = standing
            self._ground.shared.refresh(member)
            self._describe(member)
        return Answer(member.ports, standing=standing)

    def _standing_of(self, member: Member) -> Standing:
        standing = self._standing(member.request)
        if standing != "ready" or member.request.checked or member.looks_ready():
            return standing
        self._loop.later(max(_FIRST_LOOK_S, min(_LAST_LOOK_S, (self._loop.now() - member.since_s) / 10)), lambda: self._look_again(member))
        return "unready"

    def _look_again(self, member: Member) -> None:
        """Whether it listens by now, unless that is known."""
        if self._members.get(member.container_id) is member and member.standing == "unready":
            self._reconsider(member)

    def _ended(self) -> list[Member]:
        """Who has ended, although the loop has not come to it yet."""
        poll, members = select.poll(), {member.pidfd: member for member in self._members.values()}
        for pidfd in members:
            poll.register(pidfd, select.POLLIN)
        return [members[pidfd] for pidfd, _events in poll.poll(0)]

    def _register(self, request: Register, *, again: bool = False) -> Answer:
        """Everything of one container. ``again``: its interfaces stand already, and it had these ports before."""
        if (old := self._members.get(request.container_id)) is not None:
            self._drop(old)
        network = request.network
        with ExitStack() as undo:
            member = Member(request)
            undo.callback(self._drop, member)
            self._members[member.container_id] = member
            ends = devices.host_ends(member.namespace_fd) if again else {}
            has_route = [False, False]
            for attachment in network.attachments:
                self._bring_up(attachment)
                first = devices.first_routes(has_route, attachment)
                if attachment.interface in ends:
                    member.links[attachment.network_id] = ends.pop(attachment.interface)
                    continue
                veth = member.links[attachment.network_id] = devices.new_host_end(attachment)
                devices.attach(attachment, member.namespace_fd, veth, default_route=first)
            for interface in ends:
                devices.detach(interface, member.namespace_fd)  # taken off a network while nobody was there to do it
            member.standing = self._standing_of(member)
            self._rules.add_member(member.container_id, member.rule_links(), network.egress)
            for mapping in as_before(network.ports, published_ports(request.directory)) if again else network.ports:
                with suppress(*(BulleError,) if again else ()):  # a port that was lost meanwhile costs it that port alone
                    member.publish(mapping, self._ground)
            if not network.serves_names:  # else the port that its server needs would be ours
                datagrams, listener = devices.name_server_sockets(member.namespace_fd, network.name_server)
                self._names.add(member.container_id, self._view(network), datagrams, listener)
            undo.pop_all()
        self._loop.watch(member.pidfd, lambda _events: self._drop(member))
        self._describe(member)
        notes, self._notes = tuple(dict.fromkeys(self._notes)), []
        return Answer(member.ports, notes)

    def _bring_up(self, attachment: Attachment) -> None:
        """The network's name, bridge and rules."""
        self._names.set_network(attachment.network_id, attachment.network)
        if attachment.driver != "bridge":
            return
        record = self._networks.get(attachment.network_id)
        if record is None:
            with closing(Database(self._home)) as database:
                record = NetworkRecords(database).find(attachment.network_id)
        elif devices.exists(record.device):
            return
        config = record.config
        # The host's own address on an internal network too: names and health checks come from there, but no route leads out.
        addresses = tuple(f"{gateway}/{subnet.partition('/')[2]}" for gateway, subnet in zip(config.gateways, config.subnets, strict=True))
        if not devices.exists(record.device):
            devices.check_free(record.name, config.subnets)
        if not self._networks:
            if not self._taking_over:
                self._rules.open()
            host_settings.prepare_host()
        has_six = any(":" in subnet for subnet in config.subnets)
        if devices.make_bridge(record.device, config.mtu, f"network {record.name} of {self._home}"):
            host_settings.open_bridge(record.device, ipv6=has_six)  # before it has addresses, of which it could have none without
            devices.give_addresses(record.device, addresses)
        if has_six:
            host_settings.prepare_host(ipv6=True)
        self._rules.add_network(record.id, record.device, config.subnets, config.gateways, config.internal)
        self._networks[record.id] = record
        if not self._taking_over:
            self._admit()

    def _connect(self, member: Member, attachment: Attachment) -> None:
        if attachment.network_id in member.links:
            return  # done already, by a keeper that took over amid it
        self._bring_up(attachment)
        has_route = [False, False]
        for standing in member.network.attachments:
            devices.first_routes(has_route, standing)
        before = member.network.attachments
        veth = member.links[attachment.network_id] = devices.new_host_end(attachment)
        self._move(member, (*before, attachment))  # the rules hold before the container can send
        try:
            devices.attach(attachment, member.namespace_fd, veth, default_route=devices.first_routes(has_route, attachment))
        except BaseException:
            del member.links[attachment.network_id]
            self._move(member, before)
            raise

    def _disconnect(self, member: Member, network_id: str) -> None:
        attachments = member.network.attachments
        for attachment in attachments:
            if attachment.network_id == network_id:
                devices.detach(attachment.interface, member.namespace_fd)
        member.links.pop(network_id, None)
        left = tuple(one for one in attachments if one.network_id != network_id)
        devices.lead_further(left, member.namespace_fd)
        self._move(member, left)

    def _move(self, member: Member, attachments: tuple[Attachment, ...]) -> None:
        """The container is on these networks now: so are its rules, names and ports."""
        with member.moving(self._ground):
            member.network = msgspec.structs.replace(member.network, attachments=attachments)
            self._rules.change_member(member.container_id, member.rule_links(), member.network.egress)
        self._names.change(member.container_id, self._view(member.network))

    def _view(self, network: Network) -> View:
        networks = tuple(attachment.network_id for attachment in network.attachments)
        # A question that is passed on leaves the machine with whatever stands in it, and internal networks lead nowhere.
        leads_further = any(attachment.gateways or attachment.driver != "bridge" for attachment in network.attachments)
        return View(networks, network.search, network.dns, network.egress if leads_further else Egress("none"))

    def _describe(self, member: Member) -> None:
        """Tell the others its names, and who looks at it its ports."""
        self._names.set_names(member.container_id, member.names(), member.name or member.container_id[:12], RANKS[member.standing])
        member.write_ports()

    def _holder(self, protocol_name: str, port: int) -> str:
        """The name of the container that publishes a port."""
        for member in self._members.values():
            if any(one.host_port == port and one.protocol == protocol_name for one in member.ports):
                return member.name or member.container_id[:12]
        return ""

    def _drop(self, member: Member) -> None:
        """Take away what a container had and the kernel does not take by itself."""
        if self._members.get(member.container_id) is member:
            del self._members[member.container_id]
            self._names.forget_names(member.container_id)
            self._names.remove(member.container_id)
            member.retract(member.ports, self._ground)
            self._rules.remove_member(member.container_id)
        self._loop.forget(member.pidfd)
        member.close()
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        if not self._members:
            self._emptied_at_s = time.monotonic()
            self._loop.later(self._idle_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._members and not self._behind and time.monotonic() >= self._emptied_at_s + self._idle_s:
            self._loop.ended = True

    def _end(self) -> None:
        """Who asks from now on finds nobody, and starts another keeper, which waits for the lock."""
        assert self._listener is not None
        (self._home / "run" / protocol.SOCKET_NAME).unlink(missing_ok=True)
        self._listener.close()
        if self._members:
            return  # told to end: what runs keeps its network, without names
        standing = {record.device for record in self._networks.values()}
        with suppress(BulleError), closing(Database(self._home)) as database:  # what a keeper before this one made; the home may be gone by now
            standing |= {record.device for record in NetworkRecords(database).all() if record.config.driver == "bridge"}
        self._firewalls.withdraw(sorted(standing))
        self._rules.close()
        for device in standing:
            devices.remove_bridge(device)

    def _take_over(self) -> None:
        """Make anew, for what runs, what another keeper had. Where that fails it is tried again for a while; then a container goes on without."""
        self._taking_over = True
        self._catch_up(_AGAIN_S)
        self._taking_over = False
        if self._networks:
            self._rules.open()  # in the place of what stood, with everybody in it
            self._admit()

    def _catch_up(self, delay_s: float) -> None:
        self._behind = False
        for request in self._running():
            if request.container_id not in self._members and process.start_ticks(request.pid):
                try:
                    self._register(request, again=True)
                except (OSError, BulleError):
                    self._behind = delay_s < _AGAIN_AT_MOST_S
        if self._behind:
            self._loop.later(delay_s, lambda: self._catch_up(2 * delay_s))
        else:
            self._rest_if_idle()

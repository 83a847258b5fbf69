"""What packets of our networks may do: which rules should stand, and that they do stand. ``ruleset.nft`` beside this module says what they mean.

The keeper calls it, and is its only caller: one object per home, whose memory is the truth. A change is one transaction of elements; where it does
not fit what stands (somebody flushed the table), all of it is made anew from memory, also in one transaction, so that no moment is without rules.
What connection tracking knows is not in the table: connections that stand outlive that; those that must not are forgotten one by one.
It neither makes devices nor asks for names.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from bulle.errors import BulleError, Conflict
from bulle.linux import connection_tracking, nftables
from bulle.model.network import Egress, PublishedPort
from bulle.network import ruleset
from bulle.network.egress import is_listed, is_name, is_private
from bulle.network.ruleset import Balance, Elements, Link, Replica

_MOST_NAMED = 4096  # addresses remembered for the names of one container: what a name server answers must not fill the kernel's memory

Thing = TypeVar("Thing")

__all__ = ["Balance", "Link", "Replica", "Rules"]


class _Member:
    """A container as it is in the rules."""

    def __init__(self, links: Sequence[Link], elements: Elements, list_name: str, egress: Egress) -> None:
        self.addresses = [address for link in links for address in link.addresses]
        self.elements = elements
        self.list_name = list_name  # empty unless its mode is "allow"
        self.egress = egress
        self.named: dict[tuple[str, int], float] = {}  # address and port (0: all) of allowed names, and until when (CLOCK_MONOTONIC)


class Rules:
    """The tables called ``table`` of this network namespace. Errors of every change: Unavailable without nftables, BulleError with nft's words.

    Before :meth:`open` what is added is only remembered.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self._devices: dict[str, str] = {}
        self._networks: dict[str, Elements] = {}
        self._members: dict[str, _Member] = {}
        self._published: dict[str, Elements] = {}
        self._balanced: dict[str, Balance] = {}
        self._watcher: nftables.Watcher | None = None
        self._stands = False
        self._touched = False
        self._others_changed = False
        self._clean: set[str] = set()  # addresses of which nothing is remembered that a list would not allow
        self._stale_datagrams: set[tuple[str, int]] = set()  # a container's address; and the port of the host that leads there now, or 0
        self.later: Callable[[float, Callable[[], None]], None] | None = None
        """Who calls something in a moment (:meth:`Loop.later`): what takes longer and need not be at once. Without it all is done at once."""

    # What stands

    def open(self) -> None:
        """Make the tables from what was added, whatever stood there; connections go on."""
        self._run(self._whole())
        self._stands = True

    def close(self) -> None:
        """Remove the tables; what was added is remembered."""
        self._stands = False
        self._run(ruleset.removal(self.table))

    def restore(self) -> None:
        """Put back what somebody took away or changed."""
        self.open()

    def watcher(self) -> nftables.Watcher:
        """A socket that can be read when tables of this machine were changed: ask :meth:`was_touched` then, and close it in the end."""
        if self._watcher is None or self._watcher.fileno() < 0:
            self._watcher = nftables.Watcher()
        return self._watcher

    def was_touched(self, watcher: nftables.Watcher) -> bool:
        """Read what the watcher knows: whether somebody else changed our tables, so that :meth:`restore` is due."""
        self._look(watcher)
        touched, self._touched = self._touched, False
        return touched and self._stands

    def others_changed(self) -> bool:
        """Whether, since it was asked last, tables of others were seen to change: other firewalls may have to be told again."""
        changed, self._others_changed = self._others_changed, False
        return changed

    def describe(self) -> str:
        """The rules that stand, as nft prints them."""
        return "\n".join(self._run(f"list table {family} {self.table}\n") for family in ("bridge", "inet"))

    # What should stand

    def add_network(self, network_id: str, device: str, subnets: Sequence[str], gateways: Sequence[str], internal: bool) -> None:
        """A bridge and its subnets (CIDRs); of one that is known, what differs is changed. The gateways are this host, and as closed as that."""
        before = self._networks.get(network_id, {})
        new = ruleset.network_elements(device, subnets, internal)
        self._change(self._networks, network_id, new, ruleset.difference(self.table, before, new))
        self._devices[network_id] = device

    def remove_network(self, network_id: str) -> None:
        """Forget a bridge; harmless where unknown."""
        before = self._networks.get(network_id, {})
        self._change(self._networks, network_id, None, ruleset.difference(self.table, before, {}))
        self._devices.pop(network_id, None)

    def add_member(self, container_id: str, links: Sequence[Link], egress: Egress) -> None:
        """A container: what its interfaces may send, and where it may go. Its networks were added before."""
        before = self._members.get(container_id)
        list_name = ruleset.list_name_of(container_id) if egress.mode == "allow" else ""
        elements = ruleset.member_elements([(self._devices[link.network_id], link) for link in links], egress, list_name)
        new = _Member(links, elements, list_name, egress)
        if before is not None and before.egress == egress:
            new.named = before.named
        self._change(self._members, container_id, new, self._member_change(before, new))
        if list_name and self._stands and (before is None or before.egress != egress):
            self._forget_unlisted(new, all_of_them=before is not None)

    def change_member(self, container_id: str, links: Sequence[Link], egress: Egress) -> None:
        """Other interfaces, or another way out, of a container that is known."""
        self.add_member(container_id, links, egress)

    def remove_member(self, container_id: str) -> None:
        """Forget a container; harmless where unknown."""
        before = self._members.get(container_id)
        self._change(self._members, container_id, None, self._member_change(before, None))
        self._clean.difference_update(before.addresses if before else ())

    def publish(self, container_id: str, ports: Sequence[tuple[PublishedPort, str]]) -> None:
        """Lead ports of the host to an address of the container. What only a relay can do (::1, or another family than the target's) is no rule."""
        before = self._published.get(container_id, {})
        wanted = ruleset.port_elements(ports)
        for other_id, others in self._published.items():
            if other_id != container_id and (taken := wanted.keys() & others.keys()):
                raise Conflict(f"port {ruleset.port_text(min(taken))} is published by another container", other_id)
        new = before | wanted
        self._change(self._published, container_id, new, ruleset.difference(self.table, before, new))
        self._forget_datagrams([(target, port.host_port) for port, target in ports if port.protocol == "udp"])

    def retract(self, container_id: str, ports: Sequence[tuple[PublishedPort, str]]) -> None:
        """Lead them there no longer; harmless where unknown."""
        before = self._published.get(container_id, {})
        gone = ruleset.port_elements(ports)
        new = {key: value for key, value in before.items() if key not in gone}
        self._change(self._published, container_id, new or None, ruleset.difference(self.table, before, new))
        self._forget_datagrams([(target, 0) for port, target in ports if port.protocol == "udp"])

    def balance(self, standing: Sequence[Balance], gone: Sequence[Balance] = ()) -> None:
        """Lead shared ports of the host to these replicas, and others no longer: all at once. Connections that stand go on where they are."""
        before = dict(self._balanced)
        commands, sharing = "", ruleset.sharing_elements(self._balanced.values())
        for one in gone:
            if (old := self._balanced.pop(ruleset.balance_name(one), None)) is not None:
                commands += ruleset.balance_removal(self.table, old)
        for one in standing:
            name = ruleset.balance_name(one)
            if (old := self._balanced.get(name)) != one:
                self._balanced[name] = one
                commands += ruleset.balance_text(self.table, one)
                commands += "" if old is not None else ruleset.added(self.table, ruleset.balance_elements(one))
        commands += ruleset.difference(self.table, sharing, ruleset.sharing_elements(self._balanced.values()))
        if not self._stands or not commands:
            return
        try:
            self._run_or_rebuild(commands)
        except BaseException:
            self._balanced = before
            raise

    def forget_datagrams(self, ports: Sequence[PublishedPort], target: str = "") -> None:
        """Lead those who sent to shared ports before anew: to any of these ports, or (with ``target``) to one replica of them, which has left."""
        udp = [port for port in ports if port.protocol == "udp"]
        self._forget_datagrams([(target, 0)] if target and udp else [(port.host_address, port.host_port) for port in udp])

    def allow(self, container_id: str, addresses: Sequence[str], ports: Sequence[int], lifetime_s: int) -> None:
        """Let a container reach addresses of an allowed name for so long (no ports: all). Private ones stay closed: only a CIDR opens those."""
        member = self._members.get(container_id)
        if member is None or not any(is_name(destination.target) for destination in member.egress.destinations):
            return
        now = time.monotonic()
        until = now + max(1, lifetime_s)
        fresh = {(address, port): until for address in addresses if not is_private(address) for port in ports or (0,)}
        kept = {key: end for key, end in member.named.items() if end > now and key not in fresh}
        for key in sorted(kept, key=kept.__getitem__)[: max(0, len(kept) + len(fresh) - _MOST_NAMED)]:
            del kept[key]  # it ends in the kernel by itself
        member.named = kept | fresh
        if fresh and self._stands:
            self._run_or_rebuild(self._named(member, fresh, renewed=True))

    # What connection tracking remembers

    def _forget_unlisted(self, member: _Member, *, all_of_them: bool) -> None:
        """Cut what a list does not allow: connections of before, or of who had the address, by which two could agree. See egress_listed."""
        for address in member.addresses:
            if all_of_them or address not in self._clean:
                with suppress(OSError):
                    connection_tracking.forget_from(address, lambda found: not is_listed(member.egress, found.target, found.port))
                self._clean.add(address)

    def _forget_datagrams(self, stale: Sequence[tuple[str, int]]) -> None:
        """Who sent to a port before would be led where it was led then, for as long as it goes on. It takes some ms, shared by many ports."""
        if not stale or not self._stands:
            return
        waiting = bool(self._stale_datagrams)
        self._stale_datagrams.update(stale)
        if self.later is None:
            self._forget_stale()
        elif not waiting:
            self.later(0.01, self._forget_stale)

    def _forget_stale(self) -> None:
        stale, self._stale_datagrams = self._stale_datagrams, set()
        for family, colon in ((socket.AF_INET, False), (socket.AF_INET6, True)):
            ports = {port for address, port in stale if port and (":" in address) == colon}
            targets = {address for address, port in stale if not port and (":" in address) == colon}
            if ports or targets:
                with suppress(OSError):
                    connection_tracking.forget_datagrams(family, ports, targets)

    # How it gets there

    def _change(self, memory: dict[str, Thing], key: str, value: Thing | None, commands: str) -> None:
        """Remember it and have it stand, or neither."""
        before = memory.pop(key, None)
        if value is not None:
            memory[key] = value
        if not self._stands or not commands:
            return
        try:
            self._run_or_rebuild(commands)
        except BaseException:
            memory.pop(key, None)
            if before is not None:
                memory[key] = before
            raise

    def _run_or_rebuild(self, commands: str) -> None:
        """A change; where it does not fit what stands, all of it from memory."""
        try:
            self._run(commands)
        except BulleError:
            self._run(self._whole())

    def _run(self, commands: str) -> str:
        if self._watcher is not None and self._watcher.fileno() >= 0 and not nftables.uses_library():
            # What the program nft changes cannot be told from what others change, but for the moment.
            self._look(self._watcher)
            try:
                return self._given(commands)
            finally:
                self._watcher.changed()
        return self._given(commands)

    def _given(self, commands: str) -> str:
        try:
            return nftables.run(commands)
        except nftables.RulesRefused as refused:
            reason = (str(refused).splitlines() or ["nft does not say why"])[0]
            mend = "see whether `nft list ruleset` works as root: nftables 1.0.6 or later, and nf_tables in the kernel with nat and fib"
            raise BulleError(f"the rules of the networks ({self.table}) could not be changed", reason, mend) from refused

    def _look(self, watcher: nftables.Watcher) -> None:
        changed = watcher.changed()
        self._touched = self._touched or changed is None or self.table in changed
        self._others_changed = self._others_changed or changed is None or bool(changed - {self.table})

    def _member_change(self, before: _Member | None, after: _Member | None) -> str:
        """Commands from one state of a container to the next."""
        old_elements = before.elements if before else {}
        new_elements = after.elements if after else {}
        old_list = before.list_name if before else ""
        made = removed = ""
        if after and after.list_name and (before is None or before.egress != after.egress):
            made = ruleset.list_text(self.table, after.list_name, after.egress.destinations)
        if before and old_list and not (after and after.list_name):
            removed = ruleset.list_removal(self.table, old_list, before.egress.destinations)
        others = any(member.egress.mode != "all" for member in self._members.values() if member is not before)
        was, will_be = (others or (one is not None and one.egress.mode != "all") for one in (before, after))
        limits = ruleset.limits(self.table, stand=will_be) if was != will_be else ""
        return made + ruleset.difference(self.table, old_elements, new_elements) + removed + limits

    def _named(self, member: _Member, named: Mapping[tuple[str, int], float], *, renewed: bool) -> str:
        """Commands that put addresses of names into a container's sets for the rest of their time, also where they stand already."""
        now = time.monotonic()
        plain: Elements = {}
        timed: Elements = {}
        for (address, port), until in named.items():
            name, key = ruleset.named_set(member.list_name, address, port), f"{address} . {port}" if port else address
            left_s = max(1, round(until - now))
            plain["inet", name, key] = ""
            timed["inet", name, f"{key} timeout {left_s}s"] = ""
        # The kernel does not lengthen the time of one that is there.
        again = ruleset.added(self.table, timed) + ruleset.difference(self.table, plain, {}) if renewed else ""
        return again + ruleset.added(self.table, timed)

    def _whole(self) -> str:
        """Everything, in place of what stands."""
        elements: Elements = {}
        for known in (*self._networks.values(), *(member.elements for member in self._members.values()), *self._published.values()):
            elements |= known
        lists = ""
        for balance in self._balanced.values():
            lists += ruleset.balance_text(self.table, balance)
            elements |= ruleset.balance_elements(balance)
        elements |= ruleset.sharing_elements(self._balanced.values())
        now = time.monotonic()
        for member in self._members.values():
            if member.list_name:
                lists += ruleset.list_text(self.table, member.list_name, member.egress.destinations)
                lists += self._named(member, {key: until for key, until in member.named.items() if until > now}, renewed=False)
        limited = any(member.egress.mode != "all" for member in self._members.values())
        limits = ruleset.limits(self.table, stand=True) if limited else ""
        return ruleset.static_text(self.table) + lists + ruleset.added(self.table, elements) + limits

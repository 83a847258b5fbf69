"""Other firewalls of the machine: what ufw, firewalld and Docker must be told so that they let our bridges pass, and what else stands in the way.

In nftables a packet passes when every table lets it pass, so an accept of ours is none of theirs. Each is told by its own means, and only this:
Docker by its chain for such rules (``DOCKER-USER``), firewalld by a zone at run time, ufw by ``ufw route``. What passes is still for our own table to
decide. Rules that an administrator wrote are never touched; :meth:`Firewalls.obstacles` names those that will not let us pass. Called by the keeper
when a bridge is made and when others changed tables (Docker was started, firewalld reloaded); costs some questions to nftables where nobody is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bulle.linux import nftables

_ANY_BRIDGE = "bulle+"  # a prefix, as iptables and ufw write it; our bridges have no other in common
_SEARCH_PATH = ":/usr/local/sbin:/usr/sbin:/sbin"
_LONGEST_S = 20
_FAMILIES = (("ip", "iptables"), ("ip6", "ip6tables"))
_UFW_COMMENT = "networks of Bulle"
_UFW_RULES = (["in", "on", _ANY_BRIDGE], ["out", "on", _ANY_BRIDGE])


class Firewalls:
    """What one home, known by the name of its table, has told the other firewalls; all methods can be repeated."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._zoned: set[str] = set()  # bridges that we put into firewalld's zone

    def admit(self, devices: Sequence[str]) -> list[str]:
        """Have every firewall that is active now let these bridges pass. Returns a sentence for each that did not."""
        problems = []
        if devices:
            for family, program in _FAMILIES:
                problems += self._admit_docker(family, program)
            problems += self._admit_firewalld(devices)
            problems += self._admit_ufw()
        return problems

    def withdraw(self, devices: Sequence[str] = ()) -> list[str]:
        """Take back what was told, also by a keeper before this one of these bridges. Returns a sentence for each that did not obey."""
        problems = []
        for family, program in _FAMILIES:
            for command in _docker_commands(family, program):
                problems += _failure(f"{program} did not take back our rules", *_replace(command, self.table, []))
        there = _listed("list table inet firewalld")
        for device in sorted({device for device in devices if f'"{device}"' in there} | self._zoned):
            _run(["firewall-cmd", "--zone=trusted", f"--remove-interface={device}"])  # it, or the bridge, may be gone
        self._zoned.clear()
        if _ufw_has_ours() and not self._others():
            for words in _UFW_RULES:
                problems += _failure("ufw did not take back our rule", *_run(["ufw", "--force", "route", "delete", "allow", *words]))
        return problems

    def obstacles(self) -> list[str]:
        """What of others drops what our bridges forward, as sentences with what an administrator can do."""
        found = []
        chains = _listed("list chains")
        for family, table, chain in re.findall(r"^table (\w+) (\S+) \{\n((?:\t.*\n|\n)*)\}", chains, re.MULTILINE):
            for name, hook in re.findall(r"^\tchain (\S+) \{\n\t\ttype filter hook forward ([^\n]*)", chain, re.MULTILINE):
                if family in ("ip", "ip6", "inet") and not table.startswith("bulle_") and _closed(family, table, name, "policy drop" in hook):
                    found.append(_sentence(family, table, name))
        for family, program in _FAMILIES:
            if command := _legacy(family, program):
                forward = _run([command, "-w", "-S", "FORWARD"])[1]
                if "-P FORWARD DROP" in forward and not _admitted(_run([command, "-w", "-S"])[1]):
                    found.append(_sentence(family, "filter", "FORWARD"))
        return found

    def _others(self) -> bool:
        """Whether another home has networks now."""
        tables = re.findall(r"^table inet (bulle_\S+)$", _listed("list tables"), re.MULTILINE)
        return any(table != self.table for table in tables)

    def _admit_docker(self, family: str, program: str) -> list[str]:
        problems = []
        for command in _docker_commands(family, program):
            there = _run([command, "-w", "-S"])[1]
            # Whatever goes into one of Docker's networks is for Docker's rules to decide.
            bridges = sorted(set(re.findall(r"-o (\S+) -j DOCKER$", there, re.MULTILINE)))
            rules = [["-i", _ANY_BRIDGE, "-o", bridge, "-j", "RETURN"] for bridge in bridges]
            rules += [["-i", _ANY_BRIDGE, "-j", "ACCEPT"], ["-o", _ANY_BRIDGE, "-j", "ACCEPT"]]
            problems += _failure(f"Docker lets no network of ours pass ({command}, chain DOCKER-USER)", *_replace(command, self.table, rules, there))
        return problems

    def _admit_firewalld(self, devices: Sequence[str]) -> list[str]:
        there = _listed("list table inet firewalld")
        if not there and not _firewalld_by_iptables():
            self._zoned.clear()
            return []
        problems = []
        for device in devices:
            if there and f'"{device}"' in there:
                continue
            code, output = _run(["firewall-cmd", "--zone=trusted", f"--add-interface={device}"])
            if code == 0:
                self._zoned.add(device)
            problems += _failure(f"firewalld did not take {device} into its zone 'trusted'", code, output)
        return problems

    def _admit_ufw(self) -> list[str]:
        if not _ufw_is_active() or _ufw_admits():
            return []
        problems = []
        for words in _UFW_RULES:
            problems += _failure("ufw did not take our rule", *_run(["ufw", "route", "allow", *words, "comment", _UFW_COMMENT]))
        return problems


def _docker_commands(family: str, program: str) -> list[str]:
    """The iptables by which Docker's chain is to be reached: that of nftables, the old one, or none."""
    found = []
    if _listed(f"list chain {family} filter DOCKER-USER") and (command := _program(f"{program}-nft") or _program(program)):
        found.append(command)
    if (command := _legacy(family, program)) and _run([command, "-w", "-S", "DOCKER-USER"])[0] == 0:
        found.append(command)
    return found


def _legacy(family: str, program: str) -> str:
    """The old iptables, where it is in use: asking it would otherwise bring its tables into being."""
    try:
        names = Path(f"/proc/net/{family}_tables_names").read_text().split()
    except OSError:
        return ""
    return (_program(f"{program}-legacy") or _program(program)) if "filter" in names else ""


def _replace(command: str, mark: str, rules: list[list[str]], there: str | None = None) -> tuple[int, str]:
    """Have exactly these rules of ours, known by the comment, at the head of Docker's chain."""
    listed = _run([command, "-w", "-S", "DOCKER-USER"])[1] if there is None else there
    marked = ["-m", "comment", "--comment", mark]
    ours = [line.split()[2:] for line in listed.replace('"', "").splitlines() if line.startswith("-A DOCKER-USER ") and f"--comment {mark} " in line]
    wanted = [[*words[:-2], *marked, *words[-2:]] for words in rules]
    if ours == wanted:
        return 0, ""
    for number, words in enumerate(wanted, 1):  # the new before the old go, so that nothing is cut
        code, output = _run([command, "-w", "-I", "DOCKER-USER", str(number), *words])
        if code:
            return code, output
    for words in ours:
        # The first of those that are alike would be the new one: they are deleted by their place.
        lines = _run([command, "-w", "-S", "DOCKER-USER"])[1].replace('"', "").splitlines()
        places = [number for number, line in enumerate(line for line in lines if line.startswith("-A ")) if line.split()[2:] == words]
        _run([command, "-w", "-D", "DOCKER-USER", str(places[-1] + 1)])
    return 0, ""


def _firewalld_by_iptables() -> bool:
    """Whether a firewalld runs that uses iptables still."""
    try:
        process = int(Path("/run/firewalld.pid").read_text())
        return b"firewalld" in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def _ufw_chains() -> str:
    """ufw's rules for what is forwarded, as iptables prints them; empty where it is not active."""
    by_nftables = _listed("list chain ip filter ufw-user-forward")
    command = (_program("iptables-nft") or _program("iptables")) if by_nftables else _legacy("ip", "iptables")
    return _run([command, "-w", "-S", "ufw-user-forward"])[1] if command else ""


def _ufw_is_active() -> bool:
    return bool(_program("ufw")) and "-N ufw-user-forward" in _ufw_chains()


def _ufw_admits() -> bool:
    return _admitted(_ufw_chains())


def _ufw_has_ours() -> bool:
    """Whether ufw has a rule of ours: an administrator's own like it is left alone."""
    try:
        return _UFW_COMMENT.encode().hex() in Path("/etc/ufw/user.rules").read_text()
    except OSError:
        return False


def _admitted(rules: str) -> bool:
    """Whether rules, as iptables prints them, let our bridges pass."""
    return all(re.search(rf"^-A (DOCKER-USER|ufw6?-user-forward) -{way} bulle\+ .*ACCEPT$", rules, re.MULTILINE) for way in "io")


def _closed(family: str, table: str, name: str, by_policy: bool) -> bool:
    """Whether a chain of somebody else drops what is forwarded, and says nothing of our bridges."""
    if table == "firewalld":
        return '"bulle' not in _listed("list table inet firewalld")
    rules = _listed(f"list chain {family} {table} {name}")
    if not by_policy and not re.search(r"^\t\t(counter packets \d+ bytes \d+ )?(drop|reject)\b", rules, re.MULTILINE):
        return False
    if table == "filter" and name == "FORWARD" and family in ("ip", "ip6"):
        program = dict(_FAMILIES)[family]
        command = _program(f"{program}-nft") or _program(program)
        return not (command and _admitted(_run([command, "-w", "-S"])[1])) and '"bulle' not in rules
    return '"bulle' not in rules


def _sentence(family: str, table: str, name: str) -> str:
    if table == "firewalld":
        return "firewalld drops what containers send and are sent; let them pass: firewall-cmd --zone=trusted --add-interface=BRIDGE"
    if name == "FORWARD" and table == "filter":
        program = dict(_FAMILIES)[family]
        return (
            f"{program} drops what is forwarded, so what containers send and are sent; let them pass: "
            f"{program} -I FORWARD -i {_ANY_BRIDGE} -j ACCEPT and {program} -I FORWARD -o {_ANY_BRIDGE} -j ACCEPT"
        )
    where = f"{family} {table} {name}"
    return (
        f"the nftables chain {where} drops what is forwarded, so what containers send and are sent; let them pass: "
        f"nft insert rule {where} iifname '\"bulle*\"' accept and nft insert rule {where} oifname '\"bulle*\"' accept"
    )


def _listed(question: str) -> str:
    """What nft prints, empty where there is no such thing."""
    try:
        return nftables.run(f"{question}\n")
    except nftables.RulesRefused:
        return ""


def _program(name: str) -> str:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + _SEARCH_PATH) or ""


def _run(command: list[str]) -> tuple[int, str]:
    """Run another program; its exit code and what it said."""
    environment = os.environ | {"PATH": os.environ.get("PATH", os.defpath) + _SEARCH_PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, stdin=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


def _failure(what: str, code: int, output: str) -> list[str]:
    return [f"{what}: {output.strip().splitlines()[-1] if output.strip() else f'exit code {code}'}"] if code else []

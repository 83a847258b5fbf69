"""A container's host directory as it is made: the writable layer, and the files for its /etc that are not the image's."""

from __future__ import annotations

import os
from pathlib import Path

from bulle.isolation.root_filesystem import identity_files
from bulle.model.run_plan import RunPlan
from bulle.network.devices import NAME_SERVER
from bulle.network.resolver_configuration import host_search, reachable_servers, resolver_text

HYPERVISOR_NAME_SERVER = "10.0.2.3"
"""Where QEMU's own network answers for the host's resolvers."""

HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
"""/etc/hosts of a container without a network, as Docker writes it."""


def make_directory(plan: RunPlan) -> None:
    """The container's host directory: the writable layer's two directories and the files for its /etc."""
    os.mkdir(plan.state_host_path, 0o700)
    make_writable(plan)
    write_identity(plan)


def make_writable(plan: RunPlan) -> None:
    """An empty writable layer, as the plan's level has it."""
    writable = plan.root.writable_host_path
    os.mkdir(writable, 0o755)
    if plan.guest is not None and plan.guest.whole is not None:
        from bulle.isolation.microvm import whole

        whole.make_files(plan)
    elif plan.guest is not None:
        from bulle.isolation.microvm.disks import make_scratch

        make_scratch(f"{writable}/disk", plan.guest.disk_bytes)
    elif plan.root.size_bytes:
        from bulle.isolation import sized_layer

        sized_layer.make(plan)
    else:
        for path in (f"{writable}/upper", f"{writable}/work"):
            os.mkdir(path, 0o755)


def write_identity(plan: RunPlan) -> None:
    """The files for its /etc, in place where they are there already."""
    for path in identity_files(plan) if plan.network.mode != "container" else ():
        _write(path, _identity_text(os.path.basename(path), plan))
    if plan.network.mode == "none":
        _write(f"{plan.state_host_path}/resolv.conf", "")  # for containers that share this one's network


def write_hosts(plan: RunPlan) -> None:
    """Write /etc/hosts anew, for a container whose networks changed: in place, since a running one sees this very file."""
    with open(f"{plan.state_host_path}/hosts", "r+b") as file:
        file.write(hosts_text(plan).encode())
        file.truncate()


def _identity_text(name: str, plan: RunPlan) -> str:
    """What stands in the container's /etc/hostname, hosts or resolv.conf."""
    if name == "hostname":
        return plan.hostname + "\n"
    if plan.network.mode == "host":
        try:
            text = Path(f"/etc/{name}").read_text()
        except OSError:
            text = ""
        return text if name != "hosts" else text + "".join(_extra_lines(plan, "127.0.0.1"))
    if name == "resolv.conf":
        network = plan.network
        if network.mode == "user":
            return resolver_text(network.dns or (HYPERVISOR_NAME_SERVER,), network.search or host_search(), network.dns_options)
        servers = (network.dns or reachable_servers()) if network.serves_names else (network.name_server or NAME_SERVER,)
        return resolver_text(servers, network.search or host_search(), network.dns_options)
    return hosts_text(plan)


def hosts_text(plan: RunPlan) -> str:
    """/etc/hosts as Docker writes it: the container itself on each of its networks, and what was asked for."""
    gateways = [gateway for attachment in plan.network.attachments for gateway in attachment.gateways]
    lines = [HOSTS, *_extra_lines(plan, gateways[0] if gateways else "127.0.0.1")]
    names = "\t".join(dict.fromkeys((plan.hostname, plan.hostname.partition(".")[0])))
    lines += [f"{cidr.partition('/')[0]}\t{names}\n" for attachment in plan.network.attachments for cidr in attachment.addresses]
    return "".join(lines)


def _extra_lines(plan: RunPlan, gateway: str) -> list[str]:
    """What was asked for; ``gateway`` is where the host is."""
    return [f"{gateway if address == 'host-gateway' else address}\t{name}\n" for name, address in plan.network.extra_hosts]


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

"""What becomes of every key of a Compose file: done, done with a note, or refused; one table, that documentation and tests read as well.

:func:`judge` walks over what a project says before anything is changed. A key that is not in the table is a mistake of ours, which a test finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bulle.compose import service_parts as parts
from bulle.compose.model import FileObject, Ipam, Network, Note, Project, Service, Volume
from bulle.errors import InvalidInput


class Verdict(msgspec.Struct, frozen=True):
    """``kind`` is ``done``, ``note`` or ``refused``. ``text`` says what is done instead, or why not; ``values`` are done as they are."""

    kind: str
    text: str = ""
    values: tuple[object, ...] = ()


DONE = Verdict("done")


def _done(keys: str) -> dict[str, Verdict]:
    return dict.fromkeys(keys.split(), DONE)


def _note(text: str, *values: object) -> Verdict:
    return Verdict("note", text, values)


def _refused(text: str, *values: object) -> Verdict:
    return Verdict("refused", text, values)


_LATER = "containers have no such setting here; leave it out"
_WINDOWS = "it is for Windows; leave it out"
_DEVICES = "devices of the host cannot be given to containers; leave it out"
_SWARM = "there is one machine; it means nothing"

SERVICE = _done(
    "name image build pull_policy platform isolation command entrypoint environment working_dir user hostname container_name labels attach profiles "
    "depends_on networks mac_address ports dns dns_search dns_opt extra_hosts volumes volumes_from tmpfs configs secrets healthcheck deploy develop "
    "scale restart init tty stdin_open read_only privileged cap_add cap_drop security_opt ulimits stop_signal stop_grace_period post_start pre_stop "
    "logging log_driver log_opt shm_size cpus cpu_shares cpu_quota cpu_period cpuset mem_limit mem_reservation memswap_limit mem_swappiness "
    "oom_kill_disable oom_score_adj pids_limit autoscale balance drain extensions network_mode expose"
) | {
    "domainname": _note("the host name is HOSTNAME.DOMAINNAME"),
    "annotations": _note("they are kept as labels"),
    "links": _note("an alias is known to all on the networks that both are on"),
    "external_links": _refused("put both on one network, where they know each other by name"),
    "group_add": _refused(_LATER),
    "devices": _refused(_DEVICES),
    "device_cgroup_rules": _refused(_DEVICES),
    "gpus": _refused(_DEVICES),
    "cgroup": _refused("a container sees its own control groups only", "private"),
    "cgroup_parent": _refused("control groups are placed by the engine; leave it out"),
    "ipc": _refused("each container has its own", "private", "shareable", "none"),
    "pid": _refused("each container has its own processes", "private"),
    "uts": _refused("each container has its own host name", "private"),
    "userns_mode": _refused("use host, or leave it out", "host"),
    "runtime": _refused("choose the level with isolation: container, vm or chroot", "runc", "io.containerd.runc.v2"),
    "sysctls": _refused(_LATER),
    "storage_opt": DONE,
    "cpu_count": _refused(_WINDOWS + ", or use cpus"),
    "cpu_percent": _refused(_WINDOWS + ", or use cpus"),
    "cpu_rt_period": _refused("real-time scheduling is not given to control groups; leave it out"),
    "cpu_rt_runtime": _refused("real-time scheduling is not given to control groups; leave it out"),
    "blkio_config": DONE,
    "credential_spec": _refused(_WINDOWS),
    "provider": _refused("services that other programs provide are not started here"),
    "models": _refused("models are not served here; run what serves them as a service"),
    "volume_driver": _refused("volumes are kept by this machine", "local"),
}
PORT = _done("target published host_ip protocol name app_protocol") | {"mode": _note("every port is the host's", "ingress", "host")}
SERVICE_NETWORK = _done("aliases ipv4_address ipv6_address mac_address priority gw_priority") | {
    "link_local_ips": _refused("addresses are given by the network; use ipv4_address or ipv6_address"),
    "driver_opts": _refused("an interface has no options here; say them of the network"),
    "interface_name": _refused("interfaces are called eth0, eth1… in the order of priority"),
}
MOUNT = _done("target source read_only bind volume tmpfs image") | {
    "type": _refused("use bind, volume, tmpfs or image", "bind", "volume", "tmpfs", "image"),
    "consistency": _note("it means nothing on Linux"),
}
BIND = _done("create_host_path recursive") | {
    "propagation": _refused(
        "what a container mounts never reaches the host; use rslave", "private", "rprivate", "slave", "rslave"
    ),
    "selinux": _note("there is no label to change"),
}  # fmt: skip
HEALTH = _done("test disable interval timeout retries start_period start_interval")
DEPLOY = _done("replicas update_config rollback_config resources restart_policy placement") | {
    "mode": _refused("jobs are `bulle compose run`; use replicated or global, which is one replica on one machine", "replicated", "global"),
    "endpoint_mode": _note("the name of a service has the addresses of its replicas, and published ports are balanced", "dnsrr"),
    "labels": _note("labels of the service are kept with the app, not on its containers"),
}
RESTART_POLICY = _done("condition max_attempts") | {
    "delay": _note("the wait grows from 0.1 s to one minute"),
    "window": _note("a run of ten seconds counts as a success"),
}
AMOUNTS = _done("cpus memory pids") | {"devices": _refused(_DEVICES), "generic_resources": _refused("there is nothing of that kind here")}
PLACEMENT = {"constraints": _note(_SWARM), "preferences": _note(_SWARM), "max_replicas_per_node": _note(_SWARM)}
NETWORK = _done("name driver ipam external internal attachable labels enable_ipv6 extensions") | {
    "driver_opts": DONE,
    "enable_ipv4": _refused("every network has IPv4 addresses", True),
}
IPAM = _done("config options") | {"driver": _refused("addresses are given by the engine", "default")}
VOLUME = _done("name driver_opts external labels extensions") | {"driver": _refused("volumes are kept by this machine", "local")}
FILE = _done("name file environment content labels extensions") | {
    "external": _refused("there is no store of secrets and configs; say file, environment or content"),
    "driver": _refused("there is no store of secrets and configs; say file, environment or content"),
    "driver_opts": _refused("there is no store of secrets and configs; say file, environment or content"),
    "template_driver": _refused("files are given to containers as they are", ""),
}

VERDICTS: Mapping[type[msgspec.Struct], Mapping[str, Verdict]] = {
    Service: SERVICE,
    parts.Port: PORT,
    parts.ServiceNetwork: SERVICE_NETWORK,
    parts.ServiceVolume: MOUNT,
    parts.BindOptions: BIND,
    parts.VolumeOptions: _done("nocopy subpath labels"),
    parts.TmpfsOptions: _done("size mode"),
    parts.ImageOptions: _done("subpath"),
    parts.FileReference: _done("source target uid gid mode"),
    parts.Healthcheck: HEALTH,
    parts.Dependency: _done("condition restart required"),
    parts.UpdateConfig: _done("parallelism delay failure_action monitor max_failure_ratio order"),
    parts.DeployRestartPolicy: RESTART_POLICY,
    parts.ResourceAmounts: AMOUNTS,
    parts.Resources: _done("limits reservations"),
    parts.Placement: PLACEMENT,
    parts.Deploy: DEPLOY,
    parts.Autoscale: _done("min max cpu memory"),
    parts.Hook: _done("command user privileged working_dir environment"),
    parts.Ulimit: _done("soft hard"),
    parts.Logging: _done("driver options"),
    Ipam: IPAM,
    Network: NETWORK,
    Volume: VOLUME,
    FileObject: FILE,
}
"""What becomes of each key of each mapping. Keys of ``build`` and ``develop`` are judged by who builds and watches."""
_ELSEWHERE = (parts.Build, parts.Develop)


def judge(project: Project, services: Mapping[str, Service]) -> list[Note]:
    """The notes that these services and what they use are worth. Raises InvalidInput for the first key that is refused."""
    notes: list[Note] = []
    for service in services.values():
        notes += _walk(project, service, ("services", service.name))
    used = {name for service in services.values() for name in service.networks}
    for name in sorted(used & project.networks.keys()):
        if not project.networks[name].external:
            notes += _walk(project, project.networks[name], ("networks", name))
    for volume in project.volumes.items():
        if not volume[1].external:
            notes += _walk(project, volume[1], ("volumes", volume[0]))
    for kind, references in (("secrets", project.secrets), ("configs", project.configs)):
        for name in sorted({one.source for service in services.values() for one in getattr(service, kind)} & references.keys()):
            notes += _walk(project, references[name], (kind, name))
    return notes


def _walk(project: Project, value: Any, path: tuple[str | int, ...]) -> Iterator[Note]:
    if isinstance(value, _ELSEWHERE):
        return
    kind: type[Any] = type(value)
    if kind in VERDICTS:
        verdicts = VERDICTS[kind]
        for name, default in _defaults(kind):
            found = getattr(value, name)
            if found == default:
                continue
            verdict = verdicts[name]
            if verdict.kind != "done" and found not in verdict.values and found:
                if verdict.kind == "refused":
                    raise refused(project, (*path, name), found, verdict.text)
                yield Note(project.place(*path, name), name, verdict.text)
            elif isinstance(found, (msgspec.Struct, tuple, dict)):
                yield from _walk(project, found, (*path, name))
    elif isinstance(value, tuple):
        for number, one in enumerate(value):
            if isinstance(one, msgspec.Struct):
                yield from _walk(project, one, (*path, number))
    elif isinstance(value, dict):
        for name, one in value.items():
            if isinstance(one, msgspec.Struct):
                yield from _walk(project, one, (*path, name))


_known: dict[type, list[tuple[str, object]]] = {}


def _defaults(kind: type) -> list[tuple[str, object]]:
    """Each field of a struct with what it is when the file does not say it."""
    if kind not in _known:
        fields = msgspec.structs.fields(kind)
        _known[kind] = [(one.name, one.default_factory() if callable(one.default_factory) else one.default) for one in fields]
    return _known[kind]


def refused(project: Project, path: tuple[str | int, ...], value: object, why: str) -> InvalidInput:
    """The error for a key, or a value of it, that cannot be done: one sentence with file and line."""
    words = [str(one) for one in path if not isinstance(one, int)]
    shown = f": {value}" if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    return InvalidInput(f"{project.place(*path)}: {'.'.join(words)}{shown} cannot be done", why)


def table() -> Iterator[tuple[str, str, str]]:
    """For documentation: the mapping, the key, and what becomes of it."""
    titles = {
        Service: "service", parts.Port: "port", parts.ServiceNetwork: "network of a service", parts.ServiceVolume: "mount", parts.BindOptions: "bind",
        parts.DeployRestartPolicy: "deploy.restart_policy", parts.ResourceAmounts: "deploy.resources", parts.Placement: "deploy.placement",
        parts.Deploy: "deploy", Ipam: "ipam", Network: "network", Volume: "volume", FileObject: "secret, config",
    }  # fmt: skip
    for kind, title in titles.items():
        for name, verdict in VERDICTS[kind].items():  # type: ignore[index]
            if verdict.kind != "done":
                only = f" (done: {', '.join(str(one).lower() for one in verdict.values if one != '')})" if any(verdict.values) else ""
                yield title, name, ("done with a note: " if verdict.kind == "note" else "refused: ") + verdict.text + only

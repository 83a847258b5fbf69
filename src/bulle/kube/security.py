"""As whom and with which rights a container runs."""

from __future__ import annotations

from bulle.compose.model import Service
from bulle.kube.names import Document
from bulle.kube.translation import Translation

SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
    }
)
"""Those that any cluster since 1.22 allows."""

_NUMBER = "Kubernetes knows users and groups by number: write the number"


def of_container(translation: Translation, service: Service) -> Document:
    """The ``securityContext`` of a service's container."""
    found: Document = {}
    user, _, group = service.user.partition(":")
    for text, key in ((user, "runAsUser"), (group, "runAsGroup")):
        if text.isdigit():
            found[key] = int(text)
        elif text:
            translation.report.refuse(_NUMBER, "services", service.name, "user")
    if service.read_only:
        found["readOnlyRootFilesystem"] = True
    if service.privileged:
        found["privileged"] = True
    capabilities = {
        key: [name.upper().removeprefix("CAP_") for name in names] for key, names in (("add", service.cap_add), ("drop", service.cap_drop)) if names
    }
    if capabilities:
        found["capabilities"] = capabilities
    _options(translation, service, found)
    return {"securityContext": found} if found else {}


def _options(translation: Translation, service: Service, found: Document) -> None:
    report = translation.report
    for number, option in enumerate(service.security_opt):
        path = ("services", service.name, "security_opt", number)
        key, _, value = option.replace("=", ":", 1).partition(":")
        match key, value:
            case "no-new-privileges", "" | "true":
                found["allowPrivilegeEscalation"] = False
            case "no-new-privileges", "false":
                found["allowPrivilegeEscalation"] = True
            case "seccomp", "unconfined":
                found["seccompProfile"] = {"type": "Unconfined"}
            case "apparmor", profile:
                report.note("needs Kubernetes 1.30 or newer", *path)
                named = {"type": "Localhost", "localhostProfile": profile}
                found["appArmorProfile"] = {"type": "Unconfined"} if profile == "unconfined" else named
            case "label", label if label.partition(":")[0] in ("user", "role", "type", "level"):
                part, _, text = label.partition(":")
                found.setdefault("seLinuxOptions", {})[part] = text
            case _:
                report.refuse("a cluster has no such option for a container", *path)


def of_pod(translation: Translation, service: Service, *, has_volumes: bool) -> Document:
    """The ``securityContext`` of a service's pods: Docker's filter of system calls, unless the file says otherwise."""
    found: Document = {}
    if not service.privileged:
        found["seccompProfile"] = {"type": "RuntimeDefault"}
    group = service.user.partition(":")[2]
    if has_volumes and group.isdigit():
        found["fsGroup"] = int(group)
    groups = []
    for name in service.group_add:
        if name.isdigit():
            groups.append(int(name))
        else:
            translation.report.refuse(_NUMBER, "services", service.name, "group_add")
    if groups:
        found["supplementalGroups"] = groups
    if service.sysctls:
        for key in service.sysctls:
            if key not in SAFE_SYSCTLS:
                translation.report.note("the nodes of the cluster have to allow it", "services", service.name, "sysctls", key)
        found["sysctls"] = [{"name": key, "value": value} for key, value in service.sysctls.items()]
    return {"securityContext": found} if found else {}


def namespaces(translation: Translation, service: Service) -> Document:
    """Which of a node's namespaces the pods share."""
    report = translation.report
    found: Document = {}
    if service.network_mode == "host":
        report.note("ports are those of the node", "services", service.name, "network_mode")
        found |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    elif service.network_mode.partition(":")[0] in ("service", "container"):
        report.refuse("pods share no network: let the services speak by their names", "services", service.name, "network_mode")
    for key, said, allowed in (
        ("hostPID", service.pid, ("",)),
        ("hostIPC", service.ipc, ("", "private", "shareable")),
        ("", service.cgroup, ("", "private")),
    ):
        if said == "host" and key:
            found[key] = True
        elif said not in allowed:
            where = {"hostPID": "pid", "hostIPC": "ipc", "": "cgroup"}[key]
            report.refuse("pods share nothing of this kind", "services", service.name, where)
    if service.userns_mode in ("private", "auto"):
        report.note("needs Kubernetes 1.33 or newer", "services", service.name, "userns_mode")
        found["hostUsers"] = False
    elif service.userns_mode not in ("", "host"):
        report.refuse("a cluster knows `host` and `private`", "services", service.name, "userns_mode")
    return found

"""What becomes of each key of a Compose file on Kubernetes: pure data, and the table of docs/kubernetes.md.

A key is *mapped* (where its values are structs of the model, the keys inside have a line of their own), done *with a note*, or *refused*. A
mapped key can still be noted or refused for some of its values; its text says which, and the module that maps it does so. Used by
:mod:`bulle.kube.report`, which looks at every key that a file sets, so that none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from bulle.compose import model
from bulle.compose import service_parts as parts

Verdict = Literal["mapped", "with a note", "refused"]


class Key(msgspec.Struct, frozen=True):
    """``text`` says what becomes of it; for a note or a refusal it is what the user reads. ``said`` is the key where the field has another name."""

    verdict: Verdict
    text: str
    said: str = ""


def _mapped(text: str, said: str = "") -> Key:
    return Key("mapped", text, said)


def _noted(text: str) -> Key:
    return Key("with a note", text)


def _refused(text: str) -> Key:
    return Key("refused", text)


_NODE = "left to the settings of the cluster's nodes"
_ADDRESS = "not kept: the cluster gives pods their addresses"
_HERE = "only says how the app runs on this machine"
_WINDOWS = "is for Windows"

SERVICE = {
    "name": _mapped("the names of the workload and of its Service, made RFC 1123 labels (with a note where that changes them)"),
    "image": _mapped("`image`; refused without one, and for images of this machine such as `deb:`"),
    "build": _noted("the cluster pulls the image: push it first (`bulle compose build`, `bulle compose push`)"),
    "pull_policy": _mapped("`imagePullPolicy`; `daily`, `weekly` and `every_…` become `Always` with a note"),
    "platform": _mapped("`nodeSelector` by `kubernetes.io/os` and `kubernetes.io/arch`; a variant is dropped with a note"),
    "isolation": _mapped("`vm`: `runtimeClassName: kata-qemu`; `container`: nothing to say; `chroot`: a container, with a note"),
    "command": _mapped("`args`"),
    "entrypoint": _mapped("`command`; an empty one without a command is refused"),
    "environment": _mapped("`env`"),
    "working_dir": _mapped("`workingDir`"),
    "user": _mapped("`runAsUser`, `runAsGroup`, and `fsGroup` where there are volumes; names are refused"),
    "group_add": _mapped("`supplementalGroups`; names are refused"),
    "hostname": _mapped("`hostname`; refused where it is no RFC 1123 label"),
    "domainname": _noted("not kept: the domain of pods is the cluster's"),
    "container_name": _mapped("a further Service of this name; pods get their names from the cluster"),
    "labels": _mapped("labels of the pods where Kubernetes allows the value, else annotations; refused where the key can be neither"),
    "annotations": _mapped("annotations of the pods"),
    "attach": _noted(_HERE),
    "profiles": _mapped("services whose profile is not chosen are left out"),
    "depends_on": _mapped("the order of the documents, and the annotation `com.docker.compose.depends_on`"),
    "links": _mapped("a further Service by each alias, with a note: everyone sees it"),
    "external_links": _refused("names a container of another app: give its Service's name to the program instead"),
    "networks": _mapped("a NetworkPolicy for each"),
    "network_mode": _mapped("`none`: a NetworkPolicy that lets nothing through, with a note; `host`: `hostNetwork`, with a note; others are refused"),
    "mac_address": _noted("not kept: the cluster gives pods their addresses"),
    "ports": _mapped("ports of the Service"),
    "expose": _mapped("ports of the Service"),
    "dns": _mapped("`dnsConfig.nameservers`, with a note: they are asked beside the cluster's"),
    "dns_search": _mapped("`dnsConfig.searches`"),
    "dns_opt": _mapped("`dnsConfig.options`"),
    "extra_hosts": _mapped("`hostAliases`; `host-gateway` is refused"),
    "volumes": _mapped("volumes and mounts of the pods"),
    "volumes_from": _refused("pods share no mounts: name the volumes in both services"),
    "tmpfs": _mapped("`emptyDir` of the medium Memory; options other than `size` with a note"),
    "configs": _mapped("a ConfigMap with a hash of the content in its name, mounted"),
    "secrets": _mapped("a Secret with a hash of the content in its name, mounted"),
    "devices": _refused("a pod gets devices from a device plugin of the cluster only"),
    "device_cgroup_rules": _refused("a pod gets devices from a device plugin of the cluster only"),
    "gpus": _mapped("a limit of `nvidia.com/gpu` or `amd.com/gpu`; refused without a number, or with device ids"),
    "healthcheck": _mapped("`readinessProbe`, with a start period `startupProbe` too, with `x-kubernetes-liveness: true` `livenessProbe` too"),
    "deploy": _mapped("replicas, strategy, resources, placement"),
    "develop": _noted(_HERE),
    "scale": _mapped("`replicas`"),
    "restart": _mapped("`always`, `unless-stopped` or nothing: pods that are always restarted; `no`, `on-failure`: a Job"),
    "init": _noted("no process 1 is put before the command: it has to wait for its children itself"),
    "tty": _mapped("`tty`"),
    "stdin_open": _mapped("`stdin`"),
    "read_only": _mapped("`readOnlyRootFilesystem`"),
    "privileged": _mapped("`privileged`"),
    "cap_add": _mapped("`capabilities.add`"),
    "cap_drop": _mapped("`capabilities.drop`"),
    "security_opt": _mapped("`no-new-privileges`, `seccomp=unconfined`, `apparmor=…` (1.30, with a note), `label=…`; others are refused"),
    "cgroup": _mapped("`private`; `host` is refused"),
    "cgroup_parent": _noted(_NODE),
    "ipc": _mapped("`private`, `shareable`: a pod's own; `host`: `hostIPC`; others are refused"),
    "pid": _mapped("`host`: `hostPID`; others are refused"),
    "uts": _refused("a pod has a host name of its own"),
    "userns_mode": _mapped("`host`: as Kubernetes does; `private`, `auto`: `hostUsers: false`, with a note (1.33); others are refused"),
    "runtime": _mapped("`runtimeClassName`, with a note: the cluster must have it"),
    "sysctls": _mapped("`sysctls`; those that a cluster does not allow by itself with a note"),
    "ulimits": _noted(_NODE),
    "stop_signal": _mapped("`lifecycle.stopSignal`, with a note (1.33)"),
    "stop_grace_period": _mapped("`terminationGracePeriodSeconds`"),
    "post_start": _mapped("`lifecycle.postStart`; refused when there are several, or with more than a command"),
    "pre_stop": _mapped("`lifecycle.preStop`; refused when there are several, or with more than a command"),
    "logging": _noted("the cluster keeps what pods write"),
    "log_driver": _noted("the cluster keeps what pods write"),
    "log_opt": _noted("the cluster keeps what pods write"),
    "shm_size": _mapped("`emptyDir` of the medium Memory at `/dev/shm`"),
    "storage_opt": _mapped("`size`: a limit of `ephemeral-storage`; others with a note"),
    "cpus": _mapped("`limits.cpu`"),
    "cpu_count": _mapped("`limits.cpu`"),
    "cpu_percent": _refused(_WINDOWS),
    "cpu_shares": _mapped("`requests.cpu` (1024 are one processor), with a note: it is held back too"),
    "cpu_quota": _mapped("`limits.cpu`"),
    "cpu_period": _mapped("`limits.cpu`, with the quota"),
    "cpu_rt_period": _noted(_NODE),
    "cpu_rt_runtime": _noted(_NODE),
    "cpuset": _noted(_NODE),
    "mem_limit": _mapped("`limits.memory`"),
    "mem_reservation": _mapped("`requests.memory`"),
    "memswap_limit": _noted(_NODE),
    "mem_swappiness": _noted(_NODE),
    "oom_kill_disable": _noted(_NODE),
    "oom_score_adj": _noted("the cluster sets it by requests and limits"),
    "pids_limit": _noted(_NODE),
    "blkio_config": _noted(_NODE),
    "credential_spec": _refused(_WINDOWS),
    "provider": _refused("a program of this machine provides it: give its address to the program instead"),
    "models": _refused("no cluster serves models by itself: give an address to the program instead"),
    "volume_driver": _refused("a cluster has storage classes instead"),
    "autoscale": _mapped("a HorizontalPodAutoscaler", "x-bulle-autoscale"),
    "balance": _mapped("`sticky`: `sessionAffinity: ClientIP`", "x-bulle-balance"),
    "drain": _mapped("`lifecycle.preStop.sleep`, with a note (1.30)", "x-bulle-drain"),
    "extensions": _mapped("`x-kubernetes-liveness`; other extensions with a note", "x-…"),
}

KEYS: dict[type[msgspec.Struct], dict[str, Key]] = {
    model.Service: SERVICE,
    parts.Dependency: {
        "condition": _mapped(
            "`service_completed_successfully` makes a Job of the other; it and `service_healthy` with a note: `kubectl apply` does not wait"
        ),
        "restart": _mapped("with a note, where the file says it: a cluster restarts no pod because another was"),
        "required": _mapped("a service that is not there is left out"),
    },
    parts.ServiceNetwork: {
        "aliases": _mapped("a further Service by each alias; refused where two services share it"),
        "ipv4_address": _noted(_ADDRESS),
        "ipv6_address": _noted(_ADDRESS),
        "link_local_ips": _noted(_ADDRESS),
        "mac_address": _noted(_ADDRESS),
        "driver_opts": _noted(_NODE),
        "interface_name": _noted("not kept: a pod has one interface"),
        "priority": _noted("not kept: a pod has one interface"),
        "gw_priority": _noted("not kept: a pod has one interface"),
    },
    parts.Port: {
        "target": _mapped("`port` and `targetPort`"),
        "published": _mapped(
            "`port` of a Service `NAME-published` of the type LoadBalancer; a range becomes its first port, with a note; where the file "
            "gives no address it is this machine's loopback, so there is no such Service and a note says so"
        ),
        "host_ip": _mapped("loopback: no Service `NAME-published`; any address: the Service; one address: the same, with a note"),
        "protocol": _mapped("`protocol`"),
        "mode": _mapped("`host`: `hostPort`"),
        "name": _mapped("`name`; refused where Kubernetes does not allow it"),
        "app_protocol": _mapped("`appProtocol`"),
    },
    parts.ServiceVolume: {
        "type": _mapped(
            "`volume`: a PersistentVolumeClaim, without a source `emptyDir` with a note; `bind` of a small file: a ConfigMap; `bind` of "
            "anything else is refused; `tmpfs`: `emptyDir`; `image`: `image`, with a note (1.33); others are refused"
        ),
        "target": _mapped("`mountPath`"),
        "source": _mapped("the claim, the ConfigMap's content or the image"),
        "read_only": _mapped("`readOnly`; a file that is not read-only gets a note"),
        "consistency": _noted(_HERE),
        "bind": _mapped("below"),
        "volume": _mapped("below"),
        "tmpfs": _mapped("below"),
        "image": _mapped("below"),
    },
    parts.BindOptions: {
        "propagation": _noted("a file is mounted from a ConfigMap"),
        "create_host_path": _mapped("nothing: what is mounted has to be there"),
        "recursive": _noted("a file is mounted from a ConfigMap"),
        "selinux": _noted("the cluster labels what it mounts"),
    },
    parts.VolumeOptions: {
        "nocopy": _mapped("as Kubernetes does: a new volume is empty"),
        "subpath": _mapped("`subPath`"),
        "labels": _noted("not kept: a volume without a name has no labels"),
    },
    parts.TmpfsOptions: {"size": _mapped("`sizeLimit`"), "mode": _noted("not kept: an `emptyDir` is writable for everyone in the pod")},
    parts.ImageOptions: {"subpath": _mapped("`subPath`")},
    parts.FileReference: {
        "source": _mapped("the name of the ConfigMap or Secret"),
        "target": _mapped("`mountPath`"),
        "uid": _noted("not kept: the file belongs to root"),
        "gid": _noted("not kept: the file belongs to root"),
        "mode": _mapped("`defaultMode`, by default 0444"),
    },
    parts.Healthcheck: {
        "test": _mapped("`exec.command`"),
        "disable": _mapped("no probe, also where the image has a health check"),
        "interval": _mapped("`periodSeconds`; parts of a second are rounded up, with a note"),
        "timeout": _mapped("`timeoutSeconds`; parts of a second are rounded up, with a note"),
        "retries": _mapped("`failureThreshold`"),
        "start_period": _mapped("`startupProbe.failureThreshold`: a container that is not ready after it and the retries is restarted"),
        "start_interval": _mapped("`startupProbe.periodSeconds`"),
    },
    parts.Hook: {
        "command": _mapped("`exec.command`"),
        "user": _refused("Kubernetes runs a hook as the container's user"),
        "privileged": _refused("Kubernetes runs a hook with the container's rights"),
        "working_dir": _refused("Kubernetes runs a hook in the container's directory"),
        "environment": _refused("Kubernetes runs a hook with the container's environment"),
    },
    parts.Deploy: {
        "mode": _mapped("`replicated`: Deployment or StatefulSet; `global`: DaemonSet; `replicated-job`: Job; `global-job` is refused"),
        "replicas": _mapped("`replicas`; of a Job `completions` and `parallelism`"),
        "endpoint_mode": _mapped("`vip`: as Kubernetes does; `dnsrr`: a headless Service"),
        "labels": _mapped("labels of the workload, or annotations, as `labels`"),
        "update_config": _mapped("the strategy of the workload"),
        "rollback_config": _noted("a rollback goes as an update does"),
        "resources": _mapped("`resources`"),
        "restart_policy": _mapped("below"),
        "placement": _mapped("below"),
    },
    parts.UpdateConfig: {
        "parallelism": _mapped("`maxSurge` or `maxUnavailable`; 0 is 100 %"),
        "delay": _mapped("`minReadySeconds`"),
        "failure_action": _mapped("`pause`: as Kubernetes does; `continue`, `rollback` with a note: `kubectl rollout undo` is yours to say"),
        "monitor": _mapped("`minReadySeconds`"),
        "max_failure_ratio": _noted("a Deployment stops at the first replica that does not get ready"),
        "order": _mapped("`start-first`: `maxSurge`; `stop-first`: `maxUnavailable`; a StatefulSet and a Job always stop first, with a note"),
    },
    parts.Resources: {"limits": _mapped("`limits`"), "reservations": _mapped("`requests`")},
    parts.ResourceAmounts: {
        "cpus": _mapped("`cpu`"),
        "memory": _mapped("`memory`"),
        "pids": _noted(_NODE),
        "devices": _mapped("as `gpus`; devices that are no graphics processors are refused"),
        "generic_resources": _refused("a pod gets devices from a device plugin of the cluster only"),
    },
    parts.DeployRestartPolicy: {
        "condition": _mapped("as `restart`: `any`, `on-failure`, `none`"),
        "delay": _noted("the cluster waits longer from restart to restart"),
        "max_attempts": _mapped("of a Job `backoffLimit`; else a note: pods are restarted for ever"),
        "window": _noted("the cluster waits longer from restart to restart"),
    },
    parts.Placement: {
        "constraints": _mapped("`nodeAffinity` by labels, host name, role and platform; others are refused"),
        "preferences": _mapped("`topologySpreadConstraints`; others than spread over a label are refused"),
        "max_replicas_per_node": _mapped("1: `podAntiAffinity`; more are refused"),
    },
    parts.Autoscale: {
        "min": _mapped("`minReplicas`"),
        "max": _mapped("`maxReplicas`"),
        "cpu": _mapped("the average of `cpu`: that part of the limit, or of one processor"),
        "memory": _mapped("the average of `memory`"),
    },
    model.Network: {
        "name": _mapped("an annotation of the NetworkPolicy"),
        "driver": _mapped("`bridge`, `overlay`: nothing to say; others are refused"),
        "driver_opts": _noted(_NODE),
        "ipam": _noted(_ADDRESS),
        "external": _mapped("with a note: of those on it, this app's pods only are known"),
        "internal": _mapped("the NetworkPolicy lets pods out to each other and to name servers only"),
        "attachable": _noted("every pod of the namespace with the network's label is on it"),
        "enable_ipv4": _noted(_ADDRESS),
        "enable_ipv6": _noted(_ADDRESS),
        "labels": _mapped("labels or annotations of the NetworkPolicy"),
        "extensions": _noted("an extension that means nothing here"),
    },
    model.Volume: {
        "name": _mapped("the name of the PersistentVolumeClaim"),
        "driver": _mapped("`local`; others are refused"),
        "driver_opts": _mapped(
            "`size`: the claim's size (1Gi without it, with a note); `type: tmpfs`: `emptyDir`; `type: nfs`: `nfs`; others are refused"
        ),
        "external": _mapped("the claim is used and not made"),
        "labels": _mapped("labels or annotations of the claim"),
        "extensions": _noted("an extension that means nothing here"),
    },
    model.FileObject: {
        "name": _mapped("the name of the ConfigMap or Secret"),
        "file": _mapped("its content; refused above 1 MiB"),
        "environment": _mapped("its content"),
        "content": _mapped("its content"),
        "external": _mapped("the ConfigMap or Secret is used and not made; its name is the key in it"),
        "driver": _refused("a cluster keeps its Secrets itself"),
        "driver_opts": _refused("a cluster keeps its Secrets itself"),
        "template_driver": _refused("a cluster fills no templates"),
        "labels": _mapped("labels or annotations"),
        "extensions": _noted("an extension that means nothing here"),
    },
}

HEADINGS: dict[type[msgspec.Struct], str] = {
    model.Service: "services.NAME",
    parts.Dependency: "depends_on.NAME",
    parts.ServiceNetwork: "networks.NAME of a service",
    parts.Port: "ports",
    parts.ServiceVolume: "volumes of a service",
    parts.BindOptions: "bind of a volume of a service",
    parts.VolumeOptions: "volume of a volume of a service",
    parts.TmpfsOptions: "tmpfs of a volume of a service",
    parts.ImageOptions: "image of a volume of a service",
    parts.FileReference: "configs and secrets of a service",
    parts.Healthcheck: "healthcheck",
    parts.Hook: "post_start and pre_stop",
    parts.Deploy: "deploy",
    parts.UpdateConfig: "deploy.update_config",
    parts.Resources: "deploy.resources",
    parts.ResourceAmounts: "deploy.resources.limits and reservations",
    parts.DeployRestartPolicy: "deploy.restart_policy",
    parts.Placement: "deploy.placement",
    parts.Autoscale: "x-bulle-autoscale",
    model.Network: "networks.NAME",
    model.Volume: "volumes.NAME",
    model.FileObject: "configs.NAME and secrets.NAME",
}


def table() -> Iterator[str]:
    """The lines of Markdown that docs/kubernetes.md has."""
    yield "| key | | on Kubernetes |"
    yield "| --- | --- | --- |"
    for kind, heading in HEADINGS.items():
        yield f"| **{heading}** | | |"
        for field, key in KEYS[kind].items():
            yield f"| `{key.said or field}` | {key.verdict} | {key.text} |"

"""The keys of Compose files: what each may be, and how it is read. One table for each mapping that the specification knows, in the order in which
``config`` prints it.

A row is a key with its check (before short forms are turned into long ones) and its reader (after). Keys that only name other files have no reader:
they are used up while loading.
"""

from __future__ import annotations

from bulle.compose import values as read
from bulle.compose.checks import (
    ANY_NAME,
    LOWER_NAME,
    Check,
    anything,
    between,
    choice,
    list_of,
    mapping_of,
    one_of,
    pull_policy,
    record,
    scalar,
)
from bulle.compose.values import Reader, each, many, structure

Row = tuple[Check, "Reader | None"]
Table = dict[str, Row]


def _checks(table: Table) -> dict[str, Check]:
    return {key: row[0] for key, row in table.items()}


def _readers(table: Table) -> dict[str, Reader]:
    return {key: row[1] for key, row in table.items() if row[1] is not None}


STRING = scalar("string")
WHOLE = scalar("integer", "string")
NUMBER = scalar("number", "string")
FLAG = scalar("boolean", "string")
LIST = list_of(STRING)
UNIQUE = list_of(STRING, unique=True)
STRING_OR_LIST = one_of("a string or a list of them", STRING, UNIQUE)
LIST_OR_MAPPING = one_of(
    "a mapping or a list", mapping_of(scalar("string", "number", "boolean", "null"), ANY_NAME), UNIQUE
)  # fmt: skip
OPTIONS = mapping_of(scalar("string", "number"), ANY_NAME, closed=False)
COMMAND = one_of("a string or a list of them", scalar("null", "string"), LIST)
HOSTS = one_of("a mapping or a list", mapping_of(one_of("a string or a list of them", STRING, LIST), ANY_NAME), UNIQUE)
EXTERNAL = one_of("true or false", FLAG, record({"name": STRING}))
LOOSE_EXTERNAL = one_of("true or false", FLAG, record({"name": STRING}, closed=False))

text, flag, whole, size, texts = (STRING, read.text), (FLAG, read.flag), (WHOLE, read.whole), (NUMBER, read.size), (LIST, read.texts)
unique, labels, string_or_list = (UNIQUE, read.texts), (LIST_OR_MAPPING, read.mapping), (STRING_OR_LIST, read.texts)
variables, length, options = (LIST_OR_MAPPING, read.variables), (STRING, read.length), (OPTIONS, read.mapping)
some_length, quantity = (STRING, read.some_length), (NUMBER, read.whole)

_FILE_REFERENCE: Table = {
    "source": text, "target": text, "uid": text, "gid": text, "mode": (NUMBER, read.kept_natural),
}
_files = (list_of(one_of("a name or a mapping", STRING, record(_checks(_FILE_REFERENCE)))), many(structure(_readers(_FILE_REFERENCE))))

_ULIMIT = one_of("a number or a soft and a hard one", WHOLE, record({"hard": WHOLE, "soft": WHOLE}, required=("soft", "hard")))
_ulimits = (mapping_of(_ULIMIT, LOWER_NAME, closed=False), each(read.ulimit))

_BUILD: Table = {
    "context": text, "dockerfile": text, "dockerfile_inline": text, "entitlements": texts, "args": variables,
    "ssh": (LIST_OR_MAPPING, read.ssh), "provenance": (FLAG, read.text), "sbom": (FLAG, read.text), "labels": labels,
    "cache_from": texts, "cache_to": texts, "no_cache": flag, "no_cache_filter": string_or_list,
    "additional_contexts": labels, "pull": flag, "extra_hosts": (HOSTS, read.hosts), "isolation": text, "network": text,
    "target": text, "secrets": _files, "shm_size": (WHOLE, read.size), "tags": texts, "ulimits": _ulimits,
    "platforms": texts, "privileged": flag,
}
_HOOK: Table = {
    "command": (COMMAND, read.command), "user": text, "privileged": flag, "working_dir": text, "environment": variables,
}
_hook = (record(_checks(_HOOK)), structure(_readers(_HOOK)))
_hooks = (list_of(_hook[0]), many(_hook[1]))
_WATCH: Table = {
    "path": text,
    "action": (choice("rebuild", "sync", "restart", "sync+restart", "sync+exec"), read.text),
    "target": text, "exec": _hook, "include": string_or_list, "ignore": string_or_list, "initial_sync": flag,
}
_DEVELOP: Table = {
    "watch": (list_of(record(_checks(_WATCH), required=("path", "action"))), many(structure(_readers(_WATCH)))),
}
_BLKIO_LIMIT: Table = {"path": text, "rate": (WHOLE, read.size)}
_BLKIO_WEIGHT: Table = {"path": text, "weight": (WHOLE, read.natural)}
_limits = (list_of(record(_checks(_BLKIO_LIMIT), extensions=False)), many(structure(_readers(_BLKIO_LIMIT))))
_BLKIO: Table = {
    "weight": (WHOLE, read.natural),
    "weight_device": (list_of(record(_checks(_BLKIO_WEIGHT), extensions=False)), many(structure(_readers(_BLKIO_WEIGHT)))),
    "device_read_bps": _limits, "device_read_iops": _limits, "device_write_bps": _limits, "device_write_iops": _limits,
}
_CREDENTIALS: Table = {"config": text, "file": text, "registry": text}
_DEPENDENCY: Table = {
    "condition": (choice("service_started", "service_healthy", "service_completed_successfully"), read.text),
    "restart": flag, "required": (FLAG, read.kept_flag),
}
_dependencies = (
    one_of("a list or a mapping", UNIQUE, mapping_of(record(_checks(_DEPENDENCY), required=("condition",)))),
    each(structure(_readers(_DEPENDENCY))),
)
_UPDATE: Table = {
    "parallelism": (WHOLE, read.kept_natural), "delay": some_length, "failure_action": text, "monitor": some_length,
    "max_failure_ratio": (NUMBER, read.single),
    "order": (choice("start-first", "stop-first"), read.text),
}
_update = (record(_checks(_UPDATE)), structure(_readers(_UPDATE)))
_DEVICE_REQUEST: Table = {
    "capabilities": unique, "driver": text, "count": (WHOLE, read.device_count), "device_ids": unique,
    "options": labels,
}
_DISCRETE: Table = {"kind": text, "value": (NUMBER, read.whole)}
_GENERIC: Table = {"discrete_resource_spec": (record(_checks(_DISCRETE)), structure(_readers(_DISCRETE)))}
_AMOUNTS: Table = {
    "cpus": (NUMBER, read.single), "memory": (STRING, read.size), "pids": whole,
    "devices": (
        list_of(record(_checks(_DEVICE_REQUEST), required=("capabilities",))), many(structure(_readers(_DEVICE_REQUEST))),
    ),
    "generic_resources": (list_of(record(_checks(_GENERIC))), many(structure(_readers(_GENERIC)))),
}  # fmt: skip
_amounts = structure(_readers(_AMOUNTS))
_RESOURCES: Table = {
    "limits": (record({key: _AMOUNTS[key][0] for key in ("cpus", "memory", "pids")}), _amounts),
    "reservations": (record({key: row[0] for key, row in _AMOUNTS.items() if key != "pids"}), _amounts),
}
_RESTART: Table = {
    "condition": text, "delay": length, "max_attempts": (WHOLE, read.kept_natural), "window": length,
}
_PREFERENCE: Table = {"spread": text}
_PLACEMENT: Table = {
    "constraints": texts,
    "preferences": (list_of(record(_checks(_PREFERENCE))), many(structure(_readers(_PREFERENCE)))),
    "max_replicas_per_node": (WHOLE, read.natural),
}
_DEPLOY: Table = {
    "mode": text, "replicas": (WHOLE, read.kept_whole), "labels": labels, "update_config": _update,
    "rollback_config": _update,
    "resources": (record(_checks(_RESOURCES)), structure(_readers(_RESOURCES), kept=False)),
    "restart_policy": (record(_checks(_RESTART)), structure(_readers(_RESTART))),
    "placement": (record(_checks(_PLACEMENT)), structure(_readers(_PLACEMENT), kept=False)),
    "endpoint_mode": text,
}
_DEVICE: Table = {"source": text, "target": text, "permissions": text}
_ENV_FILE: Table = {"path": text, "format": text, "required": flag}
_env_file = record(_checks(_ENV_FILE), required=("path",), extensions=False)
_HEALTHCHECK: Table = {
    "test": (one_of("a string or a list of them", STRING, LIST), read.test),
    "timeout": length, "interval": length, "retries": (NUMBER, read.kept_natural), "start_period": length,
    "start_interval": length, "disable": flag,
}
_LOGGING: Table = {
    "driver": text,
    "options": (mapping_of(scalar("string", "number", "null"), ANY_NAME, closed=False), read.mapping),
}
_SERVICE_NETWORK: Table = {
    "priority": (scalar("number"), read.whole),
    "gw_priority": (scalar("number"), read.whole),
    "aliases": unique,
    "ipv4_address": text,
    "ipv6_address": text,
    "link_local_ips": unique, "mac_address": text, "interface_name": text, "driver_opts": options,
}
_networks = (
    one_of("a list or a mapping", UNIQUE, mapping_of(one_of("a mapping or empty", scalar("null"), record(_checks(_SERVICE_NETWORK))))),
    each(structure(_readers(_SERVICE_NETWORK))),
)
_PORT: Table = {
    "name": text, "mode": text, "host_ip": text, "target": (WHOLE, read.natural), "published": (WHOLE, read.text),
    "protocol": text, "app_protocol": text,
}
_ports = (
    list_of(one_of("a port, a range of them or a mapping", NUMBER, record(_checks(_PORT))), unique=True),
    many(structure(_readers(_PORT))),
)
_BIND: Table = {
    "selinux": (choice("z", "Z"), read.text),
    "propagation": text, "create_host_path": flag,
    "recursive": (choice("enabled", "disabled", "writable", "readonly"), read.text),
}
_VOLUME_OPTIONS: Table = {"labels": labels, "nocopy": flag, "subpath": text}
_TMPFS: Table = {"size": (between(0), read.size), "mode": (NUMBER, read.natural)}
_IMAGE: Table = {"subpath": text}
_MOUNT: Table = {
    "type": text, "source": text, "target": text, "read_only": flag, "consistency": text,
    "bind": (record(_checks(_BIND)), structure(_readers(_BIND))),
    "volume": (record(_checks(_VOLUME_OPTIONS)), structure(_readers(_VOLUME_OPTIONS))),
    "tmpfs": (record(_checks(_TMPFS)), structure(_readers(_TMPFS))),
    "image": (record(_checks(_IMAGE)), structure(_readers(_IMAGE))),
}
_volumes = (
    list_of(one_of("a string or a mapping", STRING, record(_checks(_MOUNT), required=("type",))), unique=True),
    many(structure(_readers(_MOUNT))),
)
_null = scalar("null")

SERVICE: Table = {
    "profiles": unique, "annotations": labels, "attach": (FLAG, read.kept_flag),
    "build": (one_of("a path or a mapping", STRING, record(_checks(_BUILD))), structure(_readers(_BUILD))),
    "develop": (one_of("a mapping or empty", _null, record(_checks(_DEVELOP))), structure(_readers(_DEVELOP))),
    "blkio_config": (record(_checks(_BLKIO), extensions=False), structure(_readers(_BLKIO))),
    "cap_add": unique, "cap_drop": unique, "cgroup_parent": text,
    "cgroup": (choice("host", "private"), read.text),
    "cpu_count": (between(0), read.whole),
    "cpu_percent": (between(0, 100), read.single),
    "cpu_period": quantity, "cpu_quota": quantity, "cpu_rt_period": quantity, "cpu_rt_runtime": quantity,
    "cpus": (NUMBER, read.single), "cpuset": text, "cpu_shares": quantity, "command": (COMMAND, read.command),
    "configs": _files, "container_name": text,
    "credential_spec": (record(_checks(_CREDENTIALS)), structure(_readers(_CREDENTIALS))),
    "depends_on": _dependencies,
    "deploy": (one_of("a mapping or empty", _null, record(_checks(_DEPLOY))), structure(_readers(_DEPLOY))),
    "device_cgroup_rules": unique,
    "devices": (list_of(one_of("a string or a mapping", STRING, record(_checks(_DEVICE), required=("source",)))), many(structure(_readers(_DEVICE)))),
    "dns": string_or_list, "dns_opt": unique, "dns_search": string_or_list, "domainname": text,
    "entrypoint": (COMMAND, read.command),
    "provider": (record({"type": STRING, "options": mapping_of(anything, ANY_NAME)}, required=("type",)), read.whatever),
    "environment": variables,
    "env_file": (
        one_of("a path or a list", STRING, list_of(one_of("a path or a mapping", STRING, _env_file))),
        read.whatever,
    ),
    "expose": (list_of(NUMBER, unique=True), read.shown_texts),
    "extends": (one_of("a name or a mapping", STRING, record({"service": STRING, "file": STRING}, required=("service",), extensions=False)), None),
    "external_links": unique, "extra_hosts": (HOSTS, read.hosts),
    "group_add": (list_of(NUMBER, unique=True), read.texts),
    "gpus": (
        one_of("all, or a list of devices", choice("all"), list_of(record(_checks(_DEVICE_REQUEST), closed=False))),
        many(structure(_readers(_DEVICE_REQUEST))),
    ),
    "hostname": text,
    "healthcheck": (record(_checks(_HEALTHCHECK)), structure(_readers(_HEALTHCHECK))),
    "image": text, "init": (FLAG, read.kept_flag), "ipc": text, "isolation": text, "labels": labels,
    "label_file": (one_of("a path or a list", STRING, LIST), read.texts),
    "links": unique,
    "logging": (record(_checks(_LOGGING)), structure(_readers(_LOGGING))),
    "mem_limit": size, "mem_reservation": (WHOLE, read.size), "memswap_limit": size,
    "mem_swappiness": (WHOLE, read.size), "mac_address": text,
    "models": (one_of("a list or a mapping", UNIQUE, mapping_of(anything)), read.whatever),
    "network_mode": text, "networks": _networks, "oom_kill_disable": flag,
    "oom_score_adj": (between(-1000, 1000), read.whole),
    "pid": (scalar("string", "null"), read.text),
    "pids_limit": quantity, "platform": text, "ports": _ports, "privileged": flag,
    "pull_policy": (pull_policy, read.text), "read_only": flag, "restart": text, "runtime": text,
    "scale": (WHOLE, read.kept_whole), "secrets": _files, "security_opt": unique, "shm_size": size, "stdin_open": flag,
    "stop_grace_period": length, "stop_signal": text,
    "storage_opt": (mapping_of(anything, ANY_NAME, closed=False), read.strings),
    "sysctls": labels, "tmpfs": string_or_list, "tty": flag, "ulimits": _ulimits, "user": text, "userns_mode": text,
    "uts": text, "volumes": _volumes, "volumes_from": unique, "working_dir": text, "post_start": _hooks,
    "pre_stop": _hooks,
}

_POOL: Table = {
    "subnet": text, "gateway": text, "ip_range": text,
    "aux_addresses": (mapping_of(STRING, ANY_NAME), read.mapping),
}
_IPAM: Table = {
    "driver": text,
    "config": (list_of(record(_checks(_POOL))), many(structure(_readers(_POOL)))),
    "options": (mapping_of(STRING, ANY_NAME), None),
}
NETWORK: Table = {
    "name": text, "driver": text, "driver_opts": options,
    "ipam": (record(_checks(_IPAM)), structure(_readers(_IPAM), kept=False)),
    "external": (EXTERNAL, read.external), "internal": flag, "attachable": flag, "labels": labels,
    "enable_ipv4": (FLAG, read.kept_flag),
    "enable_ipv6": (FLAG, read.kept_flag),
}
VOLUME: Table = {
    "name": text, "driver": text, "driver_opts": options, "external": (EXTERNAL, read.external), "labels": labels,
}
SECRET: Table = {
    "name": text, "file": text, "environment": text, "external": (LOOSE_EXTERNAL, read.external), "labels": labels,
    "driver": text, "driver_opts": (OPTIONS, read.strings), "template_driver": text,
}
CONFIG: Table = {
    "name": text, "file": text, "environment": text, "content": text, "external": (LOOSE_EXTERNAL, read.external),
    "labels": labels, "template_driver": text,
}

INCLUDE_KEYS = frozenset({"path", "env_file", "project_directory"})
_INCLUDE = record({"path": STRING_OR_LIST, "env_file": STRING_OR_LIST, "project_directory": STRING}, closed=False)
_optional_network, _optional_volume = (one_of("a mapping or empty", _null, record(_checks(table))) for table in (NETWORK, VOLUME))

SERVICE_CHECK = record(_checks(SERVICE))
INCLUDE_CHECK = list_of(one_of("a path or a mapping", STRING, _INCLUDE))
FILE: Check = record({
    "version": STRING, "name": STRING, "include": INCLUDE_CHECK,
    "services": mapping_of(SERVICE_CHECK),
    "networks": mapping_of(_optional_network, closed=False),
    "volumes": mapping_of(_optional_volume),
    "secrets": mapping_of(record(_checks(SECRET))),
    "configs": mapping_of(record(_checks(CONFIG))),
    "models": mapping_of(anything),
})  # fmt: skip
"""A whole file, after it was merged with those before it."""

READERS: dict[str, Reader] = {
    section: structure(_readers(table)) for section, table in
    (("services", SERVICE), ("networks", NETWORK), ("volumes", VOLUME), ("secrets", SECRET), ("configs", CONFIG))
}  # fmt: skip

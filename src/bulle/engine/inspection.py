"""``inspect``: what is known of a container, an image or a volume, in Docker's form, so that scripts written for it find what they look for."""

from __future__ import annotations

from bulle.engine.lifecycle import restart_policy
from bulle.engine.network_inspection import network_host_config, network_settings
from bulle.isolation.host_mounts import DISK
from bulle.model.container import ContainerState
from bulle.model.lifecycle import Health, HealthCheck
from bulle.model.reference import Reference
from bulle.model.run_plan import Mount, Resources, RunPlan
from bulle.model.volume import DRIVER, Volume
from bulle.monitor.logs import LOG_FILE, timestamp
from bulle.records.containers import ContainerRecord
from bulle.store import Image

_NEVER = "0001-01-01T00:00:00Z"
UNKNOWN_EXIT_CODE = 255


def container_document(record: ContainerRecord, state: ContainerState, *, paused: bool = False) -> dict[str, object]:
    """Docker's document of a container; ``HostConfig.Isolation`` and ``State.Isolation`` say which level was asked for and obtained."""
    plan, options = record.plan, record.options
    return {
        "Id": record.id,
        "Created": timestamp(record.created_at_ns),
        "Path": plan.process.arguments[0],
        "Args": list(plan.process.arguments[1:]),
        "State": _state(state, paused and state.status == "running") | _machine(plan),
        "Image": record.image_id,
        "ResolvConfPath": f"{plan.state_host_path}/resolv.conf",
        "HostnamePath": f"{plan.state_host_path}/hostname",
        "HostsPath": f"{plan.state_host_path}/hosts",
        "LogPath": f"{plan.state_host_path}/{LOG_FILE}" if plan.log.driver == "json-file" else "",
        "Name": f"/{record.name}",
        "RestartCount": state.restart_count,
        "Driver": "overlay",
        "Platform": "linux",
        "HostConfig": _host_config(record),
        "Mounts": [mount_document(mount) for mount in plan.mounts],
        "Config": {
            "Hostname": plan.hostname,
            "Domainname": "",
            "User": plan.process.user,
            "Tty": plan.process.terminal,
            "OpenStdin": options.interactive,
            "Env": list(plan.process.environment),
            "Cmd": list(options.command) or None,
            "Image": options.image,
            "WorkingDir": plan.process.working_directory,
            "Entrypoint": list(options.entrypoint or ()) or None,
            "Labels": options.labels,
            "StopSignal": plan.stop_signal,
            "StopTimeout": plan.stop_timeout_s,
        }
        | ({"Healthcheck": _health_check(plan.lifecycle.health)} if plan.lifecycle.health else {}),
        "NetworkSettings": network_settings(record, state),
    }


def mount_document(mount: Mount) -> dict[str, object]:
    """One of Docker's ``Mounts``."""
    kind = "volume" if mount.volume else mount.kind
    return {
        "Type": kind,
        **({"Name": mount.volume} if mount.volume else {}),
        "Source": mount.image or (f"{mount.host_path}/{DISK}" if mount.size_bytes else mount.host_path),
        "Destination": mount.container_path,
        **({"Driver": DRIVER} if mount.volume else {}),
        "Mode": "ro" if mount.read_only else "" if mount.volume else ",".join(mount.options),
        "RW": not mount.read_only,
        "Propagation": mount.propagation if kind == "bind" else "",
        **({"Subpath": mount.subpath} if mount.subpath else {}),
    }


def volume_document(volume: Volume) -> dict[str, object]:
    """Docker's document of a volume."""
    return {
        "CreatedAt": timestamp(volume.created_at_ns),
        "Driver": DRIVER,
        "Labels": volume.labels or None,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def image_document(image: Image) -> dict[str, object]:
    """Docker's document of an image."""
    import msgspec

    config = image.config
    runtime = config.config
    references = [Reference.parse(name) for name in image.references]
    return {
        "Id": str(image.id),
        "RepoTags": [reference.familiar for reference in references if reference.digest is None],
        "RepoDigests": sorted({f"{reference.familiar_name}@{image.manifest_digest}" for reference in references}),
        "Created": config.created or _NEVER,
        "Author": config.author or "",
        "Comment": (config.history[-1].comment if config.history else "") or "",
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Size": image.size_bytes,
        # What an image does not say is there too, as null or empty: templates ask for it.
        "Config": {"User": "", "Env": None, "Cmd": None, "Entrypoint": None, "Volumes": None, "WorkingDir": "", "Labels": None}
        | (msgspec.to_builtins(runtime) if runtime else {}),
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in image.layers]},
        "Descriptor": {"mediaType": image.manifest_media_type, "digest": str(image.manifest_digest), "size": len(image.manifest)},
        "Metadata": {"LastTagTime": timestamp(image.created_at_ns)},
        "HostBinds": list(image.host_binds),
    }


def _state(state: ContainerState, paused: bool) -> dict[str, object]:
    code = UNKNOWN_EXIT_CODE if state.exit_code < 0 else state.exit_code
    return {
        "Status": "paused" if paused else state.status,
        "Running": state.active,
        "Paused": paused,
        "Restarting": state.status == "restarting",
        "OOMKilled": state.out_of_memory,
        "Dead": state.status == "dead",
        "Pid": state.pid if state.status == "running" else 0,
        "ExitCode": code,
        "ExitCodeKnown": state.exit_code >= 0,
        "Error": state.error,
        "StartedAt": timestamp(state.started_at_ns) if state.started_at_ns else _NEVER,
        "FinishedAt": timestamp(state.finished_at_ns) if state.finished_at_ns else _NEVER,
        "Isolation": state.isolation_obtained,
        "MonitorPid": state.monitor_pid if state.active else 0,
    } | ({"Health": _health(state.health)} if state.health is not None else {})


def _machine(plan: RunPlan) -> dict[str, object]:
    """What a virtual machine obtained: nothing that was asked for is downgraded in silence."""
    if plan.guest is None:
        return {}
    from bulle.isolation.microvm.record import read_record, usable_memory_bytes

    record = read_record(plan.state_host_path)
    return {
        "Machine": {
            "Accelerator": record.accelerator,
            "Hypervisor": record.hypervisor,
            "Kernel": record.kernel,
            "Architecture": record.architecture,
            "Memory": usable_memory_bytes(plan),
            "NCPU": record.processors,
            "DiskSize": plan.guest.disk_bytes,
            "Start": record.start,
        }
        | _whole_machine(plan)
    }


def _whole_machine(plan: RunPlan) -> dict[str, object]:
    """What a machine with a system of its own was made with, and where its screen can be looked at."""
    whole = plan.guest.whole if plan.guest is not None else None
    if whole is None:
        return {}
    from bulle.isolation.microvm.whole import VNC_SOCKET

    vnc = f"{plan.state_host_path}/{VNC_SOCKET}" if whole.vnc else ""
    return {"Firmware": whole.firmware, "Boot": list(whole.boot), "BootUrl": whole.boot_url, "Cdrom": whole.cdrom, "Vnc": vnc}


def _health(health: Health) -> dict[str, object]:
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": timestamp(one.started_at_ns), "End": timestamp(one.finished_at_ns), "ExitCode": one.exit_code, "Output": one.output}
            for one in health.log
        ],
    }


def _health_check(check: HealthCheck) -> dict[str, object]:
    return {
        "Test": ["CMD", *check.command],
        "Interval": round(check.interval_s * 1e9),
        "Timeout": round(check.timeout_s * 1e9),
        "StartPeriod": round(check.start_period_s * 1e9),
        "StartInterval": round(check.start_interval_s * 1e9),
        "Retries": check.retries,
        "OnFailure": check.on_failure,
    }


def _device_limits(resources: Resources, kind: str, name: str) -> list[dict[str, object]] | None:
    return [{"Path": limit.host_path, name: limit.value} for limit in resources.device_limits if limit.kind == kind] or None


def _binds(plan: RunPlan) -> list[str]:
    """Binds and volumes as ``-v`` takes them."""
    binds = (mount for mount in plan.mounts if mount.kind == "bind")
    return [f"{mount.volume or mount.host_path}:{mount.container_path}{':ro' if mount.read_only else ''}" for mount in binds]


def _host_config(record: ContainerRecord) -> dict[str, object]:
    plan, options = record.plan, record.options
    resources, security, policy = plan.resources, plan.security, restart_policy(options.restart_policy)
    return {
        "Binds": _binds(plan) or None,
        "VolumesFrom": list(options.volumes_from) or None,
        **network_host_config(record),
        "AutoRemove": options.auto_remove,
        "RestartPolicy": {"Name": policy.name, "MaximumRetryCount": policy.retries},
        "Timeout": options.timeout_s,
        "IdleTimeout": options.idle_timeout_s,
        "CapAdd": list(options.cap_add) or None,
        "CapDrop": list(options.cap_drop) or None,
        "EffectiveCapabilities": list(plan.process.capabilities),
        "Isolation": plan.isolation,
        "Privileged": options.privileged,
        "ReadonlyRootfs": plan.root.read_only,
        "SecurityOpt": list(options.security_options) or None,
        "NoNewPrivileges": plan.process.no_new_privileges,
        "UsernsMode": security.user_namespace,
        "IDMappings": {
            "UIDMap": [{"container_id": item.container_id, "host_id": item.host_id, "size": item.size} for item in security.id_mappings],
            "GIDMap": [
                {"container_id": item.container_id, "host_id": item.host_id, "size": item.size}
                for item in security.group_mappings or security.id_mappings
            ],
        },
        "Tmpfs": {mount.container_path: ",".join(mount.options) for mount in plan.mounts if mount.kind == "tmpfs" and not mount.volume} or None,
        "ShmSize": plan.shm_bytes,
        "Memory": resources.memory_bytes,
        "MemorySwap": resources.memory_swap_bytes or 2 * resources.memory_bytes,
        "NanoCpus": resources.nano_cpus,
        "CpuShares": resources.cpu_shares,
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "CpuQuota": resources.cpu_quota_us,
        "CpuPeriod": resources.cpu_period_us,
        "MemoryReservation": resources.memory_reservation_bytes,
        "MemorySwappiness": resources.memory_swappiness,
        "OomKillDisable": resources.oom_kill_disable,
        "BlkioWeight": resources.blkio_weight,
        "BlkioWeightDevice": _device_limits(resources, "weight", "Weight"),
        "BlkioDeviceReadBps": _device_limits(resources, "read_bps", "Rate"),
        "BlkioDeviceWriteBps": _device_limits(resources, "write_bps", "Rate"),
        "BlkioDeviceReadIOps": _device_limits(resources, "read_iops", "Rate"),
        "BlkioDeviceWriteIOps": _device_limits(resources, "write_iops", "Rate"),
        "IpcMode": "private" if plan.isolation == "container" else "host",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private" if plan.isolation == "container" else "host",
        "PidsLimit": resources.pids_limit or None,
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in options.limits] or None,
        "Init": options.init,
        "MaskedPaths": list(security.masked_paths),
        "ReadonlyPaths": list(security.read_only_paths),
        "StorageOpt": {"size": str(size)} if (size := plan.root.size_bytes or options.storage_bytes) else None,
        "OomScoreAdj": plan.oom_score_adj or 0,
        "LogConfig": {"Type": options.log_driver or plan.log.driver, "Config": dict(sorted(options.log_options))},
    }

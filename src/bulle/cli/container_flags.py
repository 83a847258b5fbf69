"""The flags that ``run`` and ``create`` share, and how they become :class:`~bulle.model.container.ContainerOptions`.

Names, meanings and messages are Docker's. Files named on the command line (``--env-file``, ``--label-file``, a seccomp profile) are read here,
because they belong to the caller; everything else is left to the engine to judge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from bulle.cli import human
from bulle.cli.limit_flags import LIMIT_FLAGS, limits_from
from bulle.cli.network_flags import NETWORK_FLAGS, network_options_from
from bulle.cli.option_types import PLATFORM, Choice, Duration, HostPath, NanoCpus, Signal, Size, Suggestion, Text, Whole
from bulle.cli.verb import WrongValue
from bulle.cli.volume_flags import VOLUME_FLAGS, mounts_from
from bulle.errors import InvalidInput, NotFound
from bulle.model.container import ContainerOptions
from bulle.model.run_plan import ResourceLimit
from bulle.monitor.local import detach_keys

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_BUILT_IN_PROFILES = frozenset({"unconfined", "default", "builtin"})
_LIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack as".split()  # noqa: SIM905 - reads as the manual's list
)

_ISOLATION = Suggestion("level", "container", "vm", "chroot")
_CAPABILITY = Text("capability")
_RESTART = Suggestion("policy", "no", "on-failure", "always", "unless-stopped")
_ON_FAILURE = Choice("none", "restart", "stop", "kill")

CONTAINER_FLAGS: Sequence[Callable[[Any], Any]] = (
    click.option("--name", type=Text(), help="Assign a name to the container"),
    click.option("-e", "--env", multiple=True, type=Text("list"), help="Set environment variables"),
    click.option("--env-file", multiple=True, type=HostPath(), help="Read in a file of environment variables"),
    click.option("-w", "--workdir", type=Text(), help="Working directory inside the container"),
    click.option("-u", "--user", type=Text(), help="Username or UID (format: <name|uid>[:<group|gid>])"),
    *VOLUME_FLAGS,
    click.option("--read-only", is_flag=True, help="Mount the container's root filesystem as read only"),
    click.option("-h", "--hostname", type=Text(), help="Container host name"),
    click.option("--entrypoint", type=Text(), help="Overwrite the default ENTRYPOINT of the image"),
    click.option("--cap-add", multiple=True, type=_CAPABILITY, help="Add Linux capabilities"),
    click.option("--cap-drop", multiple=True, type=_CAPABILITY, help="Drop Linux capabilities"),
    click.option("--security-opt", multiple=True, type=Text("list"), help="Security options (no-new-privileges, seccomp=FILE, seccomp-log)"),
    click.option("--ulimit", multiple=True, type=Text("ulimit"), help="Ulimit options (NAME=SOFT[:HARD])"),
    click.option("--privileged", is_flag=True, help="Give extended privileges to this container"),
    click.option("--hardened", is_flag=True, help="No capabilities, no new privileges, read-only root"),
    click.option("--userns", type=Suggestion("string", "host"), help="User namespace to use (host: the host's own)"),
    click.option("--isolation", type=_ISOLATION, help="How strongly to isolate (container, vm, chroot)"),
    click.option("--start", type=Choice("cold", "template"), help="How a virtual machine begins (cold, template)"),
    click.option("--accel", type=Choice("auto", "kvm", "tcg"), help="What runs a virtual machine's processors (auto, kvm, tcg)"),
    click.option("--trace", type=Choice("instructions"), help="Show what a virtual machine's emulated processor executes, on standard error"),
    click.option("--kernel", type=Text(), help="Kernel of a virtual machine: a file or directory, host, debian, debian:SUITE or image:NAME"),
    *NETWORK_FLAGS,
    click.option("-m", "--memory", type=Size(), help="Memory limit"),
    click.option("--memory-swap", type=Size(unlimited=True), help="Swap limit equal to memory plus swap: '-1' to enable unlimited swap"),
    click.option("--cpus", type=NanoCpus(), help="Number of CPUs"),
    click.option("-c", "--cpu-shares", type=Whole(0), help="CPU shares (relative weight)"),
    click.option("--cpuset-cpus", type=Text(), help="CPUs in which to allow execution (0-3, 0,1)"),
    click.option("--pids-limit", type=Whole(-1), help="Tune container pids limit (set -1 for unlimited)"),
    click.option("--shm-size", type=Size(), help="Size of /dev/shm"),
    click.option("--init", is_flag=True, help="Run an init inside the container that forwards signals and reaps processes"),
    click.option("--stop-signal", type=Signal(), help="Signal to stop the container"),
    click.option("--stop-timeout", type=Whole(-1), help="Timeout (in seconds) to stop a container"),
    click.option("-l", "--label", multiple=True, type=Text("list"), help="Set meta data on a container"),
    click.option("--label-file", multiple=True, type=HostPath(), help="Read in a line delimited file of labels"),
    click.option("--pull", type=Choice("always", "missing", "never"), default="missing", help="Pull image before running"),
    click.option("-q", "--quiet", is_flag=True, help="Suppress the pull output"),
    click.option("--platform", type=PLATFORM, help="Set platform if the image has several"),
    click.option("-i", "--interactive", is_flag=True, help="Keep STDIN open even if not attached"),
    click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY"),
    click.option("--rm", "auto_remove", is_flag=True, help="Automatically remove the container when it exits"),
    click.option("--cidfile", type=HostPath(), help="Write the container ID to the file"),
    click.option("--restart", type=_RESTART, help="Restart policy to apply when the container exits (no, on-failure[:n], always, unless-stopped)"),
    click.option("--timeout", type=Duration(), help="End the container after that long (90s, 5m, seconds)"),
    click.option("--idle-timeout", type=Duration(), help="End the container when it has said nothing and done next to nothing for that long"),
    click.option("--health-cmd", type=Text("command"), help="Command to run to check health"),
    click.option("--health-interval", type=Duration(), help="Time between running the check (default 30s)"),
    click.option("--health-timeout", type=Duration(), help="Maximum time to allow one check to run (default 30s)"),
    click.option("--health-retries", type=Whole(0), help="Consecutive failures needed to report unhealthy (default 3)"),
    click.option("--health-start-period", type=Duration(), help="Time for the container to initialize before failures count"),
    click.option("--health-start-interval", type=Duration(), help="Time between checks during the start period (default 5s)"),
    click.option("--health-on-failure", type=_ON_FAILURE, default="none", help="What is done when the container becomes unhealthy"),
    click.option("--no-healthcheck", is_flag=True, help="Disable any container-specified HEALTHCHECK"),
    click.option("--log-driver", type=Suggestion("string", "json-file", "local", "journald", "none"), help="Logging driver for the container"),
    click.option("--log-opt", multiple=True, type=Text("list"), help="Log driver options (max-size=, max-file=, compress=, mode=, labels=, tag=…)"),
    click.option("--dry-run", is_flag=True, help="Print the plan of the run as JSON, and run nothing"),
    click.option(
        "--systemd",
        is_flag=False,
        flag_value="always",
        default="true",
        type=Choice("true", "false", "always"),
        help="Run as systemd wants to be run (true: where the command is an init; always, also without a value: whatever it is)",
    ),
    *LIMIT_FLAGS,
    click.option("--storage-opt", multiple=True, type=Text("list"), help="Storage driver options for the container (size=BYTES)"),
    click.option("--oom-score-adj", type=Whole(), help="Tune the host's OOM preferences (-1000 to 1000)"),
)


def container_flags(function: Decorated) -> Decorated:
    """Give a verb every flag that describes a container."""
    for flag in reversed(CONTAINER_FLAGS):
        function = flag(function)
    return function


def options_from(flags: Mapping[str, Any], image: str, command: Sequence[str]) -> ContainerOptions:
    """The typed options; raises WrongValue before anything has been touched."""
    try:
        return _options(flags, image, command)
    except (InvalidInput, NotFound) as error:
        raise WrongValue(*error.args) from error


def _options(flags: Mapping[str, Any], image: str, command: Sequence[str]) -> ContainerOptions:
    return ContainerOptions(
        image=image,
        command=tuple(command),
        entrypoint=_entrypoint(flags["entrypoint"]),
        name=flags["name"] or "",
        environment=environment(flags["env_file"], flags["env"]),
        working_directory=flags["workdir"] or "",
        user=flags["user"] or "",
        **mounts_from(flags),
        read_only=flags["read_only"],
        hostname=flags["hostname"] or "",
        isolation=flags["isolation"] or "",
        accelerator="" if flags["accel"] in (None, "auto") else flags["accel"],
        kernel=flags["kernel"] or "",
        start=flags["start"] or "",
        trace=flags["trace"] or "",
        **network_options_from(flags),
        user_namespace=flags["userns"] or "",
        privileged=flags["privileged"],
        hardened=flags["hardened"],
        cap_add=flags["cap_add"],
        cap_drop=flags["cap_drop"],
        security_options=tuple(map(_security_option, flags["security_opt"])),
        limits=tuple(map(resource_limit, flags["ulimit"])),
        memory_bytes=flags["memory"] or 0,
        memory_swap_bytes=flags["memory_swap"] or 0,
        nano_cpus=flags["cpus"] or 0,
        cpu_shares=flags["cpu_shares"] or 0,
        cpuset_cpus=flags["cpuset_cpus"] or "",
        pids_limit=max(flags["pids_limit"] or 0, 0),
        shm_bytes=flags["shm_size"] or 0,
        init=flags["init"],
        terminal=flags["tty"],
        interactive=flags["interactive"],
        auto_remove=flags["auto_remove"],
        stop_signal=flags["stop_signal"] or "",
        stop_timeout_s=flags["stop_timeout"],
        labels=_labels(flags["label_file"], flags["label"]),
        pull=flags["pull"],
        platform=flags["platform"] or "",
        restart_policy=flags["restart"] or "",
        timeout_s=(flags["timeout"] or 0) / 1e9,
        idle_timeout_s=(flags["idle_timeout"] or 0) / 1e9,
        health_command=flags["health_cmd"] or "",
        health_interval_ns=flags["health_interval"] or 0,
        health_timeout_ns=flags["health_timeout"] or 0,
        health_retries=flags["health_retries"] or 0,
        health_start_period_ns=flags["health_start_period"] or 0,
        health_start_interval_ns=flags["health_start_interval"] or 0,
        health_on_failure=flags["health_on_failure"],
        no_healthcheck=flags["no_healthcheck"],
        log_driver=flags["log_driver"] or "",
        log_options=tuple(map(_log_option, flags["log_opt"])),
        systemd=flags["systemd"],
        **limits_from(flags),
        storage_bytes=_storage(flags["storage_opt"]),
        oom_score_adj=flags["oom_score_adj"],
    )


def _entrypoint(value: str | None) -> tuple[str, ...] | None:
    # An empty entrypoint takes the image's away; it does not mean "not given".
    return None if value is None else (value,) if value else ()


def _lines(path: str) -> list[str]:
    """The lines of a file of the caller that are neither empty nor comments."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"open {path}: no such file or directory") from None
    except OSError as error:
        raise InvalidInput(f"open {path}", error.strerror or str(error)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text file in UTF-8") from None
    return [line for line in (one.lstrip().rstrip("\r") for one in text.split("\n")) if line and not line.startswith("#")]


def environment(files: Iterable[str], given: Iterable[str]) -> tuple[str, ...]:
    """``NAME=VALUE`` of the files, then of the flags; a bare NAME takes the caller's value, or is left out where the caller has none."""
    entries: list[str] = []
    for path in files:
        for line in _lines(path):
            name = line.partition("=")[0]
            if not name or any(c.isspace() for c in name):
                raise InvalidInput(f"poorly formatted environment: variable '{name}' in {path} is empty or contains whitespaces")
            entries.append(line)
    for entry in given:
        if not entry.partition("=")[0]:
            raise WrongValue(f"invalid environment variable: '{entry}'")
        entries.append(entry)
    return tuple(entry if "=" in entry else f"{entry}={os.environ[entry]}" for entry in entries if "=" in entry or entry in os.environ)


def _labels(files: Iterable[str], given: Iterable[str]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in (*(line for path in files for line in _lines(path)), *given))
    return {name: value for name, _, value in pairs}


def _storage(given: Iterable[str]) -> int:
    """The ``size`` of the storage options; the last one holds."""
    size = 0
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals:
            raise InvalidInput(f"invalid storage option: '{entry}'", "", "write it as size=10G")
        if key != "size":
            raise InvalidInput(f"unknown storage option {key!r}", "", "the only one is size=BYTES")
        size = human.parse_size(value)
        if size <= 0:
            raise InvalidInput(f"invalid storage option: '{entry}'", "a writable layer of no size holds nothing", "write it as size=10G")
    return size


def _security_option(text: str) -> str:
    """The option, a seccomp profile's file replaced by its text: the file is the caller's, and may be gone when the container starts."""
    name, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if name != "seccomp":
        return f"{name}={value}" if separator else name
    if value in _BUILT_IN_PROFILES or value.lstrip().startswith("{"):
        return f"seccomp={value}"
    try:
        return f"seccomp={Path(value).read_text()}"
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"opening seccomp profile ({value}) failed", getattr(error, "strerror", None) or str(error)) from None


def resource_limit(text: str) -> ResourceLimit:
    """One ``--ulimit``. Raises InvalidInput."""
    name, _, values = text.partition("=")
    soft_text, colon, hard_text = values.partition(":")
    try:
        soft = int(soft_text)
        hard = int(hard_text) if colon else soft
    except ValueError:
        raise InvalidInput(f"invalid ulimit: '{text}'", "", "write it as NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:2048") from None
    if name not in _LIMITS:
        raise InvalidInput(f"invalid ulimit type: {name}", "", f"it is one of {', '.join(sorted(_LIMITS))}")
    if hard != -1 and (soft > hard or soft == -1):
        raise InvalidInput(f"invalid ulimit: '{text}'", f"the soft limit must be less than or equal to the hard limit: {soft} > {hard}")
    return ResourceLimit(name, soft, hard)


def _log_option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidInput(f"invalid logging option: '{text}'", "", "write it as NAME=VALUE, such as max-size=10m")
    return name, value


__all__ = ["CONTAINER_FLAGS", "container_flags", "detach_keys", "environment", "options_from", "resource_limit"]

"""System containers: what a plan needs for an init system as its command, so that a whole Debian boots in it, journal, services and all.

systemd says what it wants of whoever runs it: to know that it is in a container, a control group that it may manage, memory file systems where a
machine has them, a console, an identity of its own, and a signal that means "shut down". A user namespace and Docker's capabilities are enough for
it. systemd's CONTAINER_INTERFACE.md; podman-run(1), "--systemd"
"""

from __future__ import annotations

import os
import uuid

from msgspec.structs import replace

from bulle.errors import InvalidInput, Unsupported
from bulle.isolation import delegated_group
from bulle.isolation.control_group import layout
from bulle.isolation.driver import Feature
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig
from bulle.model.run_plan import Mount, RunPlan

INITS = frozenset({"/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init", "init", "systemd"})
INIT = "/lib/systemd/systemd"  # Debian has no /sbin/init without its package systemd-sysv
STOP_SIGNAL = "SIGRTMIN+3"
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})
_MEMORY = (
    ("/run", ("mode=755", "nosuid", "nodev", "exec")),
    ("/run/lock", ("mode=1777", "nosuid", "nodev", "noexec", "size=5242880")),
    ("/tmp", ("mode=1777", "nosuid", "nodev", "exec")),
)


def arguments(options: ContainerOptions, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The command: systemd where a system was asked for and neither user nor image name anything particular."""
    nothing_said = not options.command and options.entrypoint is None and (not arguments or _is_shell(arguments))
    return (INIT,) if options.systemd == "always" and nothing_said else arguments


def adapted(plan: RunPlan, options: ContainerOptions, config: ExecutionConfig) -> RunPlan:
    """The plan as an init system wants it, where it is one; else as it is."""
    if options.systemd == "false" or (options.systemd == "true" and not _is_init(plan.process.arguments)):
        return plan
    if options.systemd == "true" and (plan.isolation != "container" or options.init or delegated_group.unavailable(layout())):
        return plan  # an init of another kind may do without, and nobody asked for it
    if plan.isolation != "container" or options.init:
        if options.init:
            raise InvalidInput("--systemd and --init exclude each other", "each wants to be the first process", "leave one out")
        raise Unsupported(Feature.SYSTEM.value, plan.isolation, "use --isolation container")
    taken = {mount.container_path for mount in plan.mounts}
    memory = tuple(Mount("tmpfs", path, options=words) for path, words in _MEMORY if path not in taken)
    names = {variable.partition("=")[0] for variable in plan.process.environment}
    identity = {"container": "bulle", "container_uuid": str(uuid.UUID(plan.container_id[:32]))}
    variables = tuple(f"{name}={value}" for name, value in identity.items() if name not in names)
    return replace(
        plan,
        # Its console is a terminal, also where nobody sits at it: what it says at boot is in the log.
        process=replace(plan.process, environment=(*plan.process.environment, *variables), terminal=True),
        mounts=(*plan.mounts, *memory),
        stop_signal=plan.stop_signal if options.stop_signal or config.stop_signal else STOP_SIGNAL,
        systemd=True,
    )


def _is_init(arguments: tuple[str, ...]) -> bool:
    return arguments[0] in INITS or arguments[0].endswith("/systemd")


def _is_shell(arguments: tuple[str, ...]) -> bool:
    """What images name where they have nothing particular to run."""
    return len(arguments) == 1 and os.path.basename(arguments[0]) in _SHELLS

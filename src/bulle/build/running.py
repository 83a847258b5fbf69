"""RUN: the instruction's command in a container of its own on the layers so far, and what it changed as a layer.

The container is one of the engine's, at any isolation level, with the network that was asked for; it stands in the list of containers while it runs,
is removed when it ends, and dies with the build. Its output is reported as it comes and kept nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress

import msgspec

from bulle.build.instructions import Run
from bulle.build.options import BuildOptions
from bulle.build.state import StageState
from bulle.build.step_mounts import StepMounts
from bulle.engine import Container, Engine
from bulle.engine.changes import keep_changes
from bulle.engine.drivers import driver_for
from bulle.engine.planning import Base
from bulle.errors import BulleError, InvalidInput
from bulle.isolation.driver import Feature
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig
from bulle.monitor import Attachment
from bulle.monitor.frames import Event, Kind
from bulle.store import Layer
from bulle.store.workspace import remove_tree

INSECURE = "security.insecure"
HOSTNAME = "build"  # the same on every machine: names of hosts find their way into what is built
HOST_NETWORK = "network.host"
_CLEANED_WITHIN_S = 30.0

EndedBy = Callable[[Callable[[], None]], AbstractContextManager[None]]


def arguments_of(run: Run, shell: tuple[str, ...]) -> tuple[str, ...]:
    """The words that are executed."""
    script = run.script
    if script is not None:
        return (f"/dev/pipes/{script.name}",)
    return (*shell, run.command[0]) if run.shell else run.command


def network_of(run: Run, options: BuildOptions) -> str:
    """The network of a step: as the instruction says, else as the build was told; the host's where nobody said anything."""
    wanted = options.network if run.network in ("", "default") else run.network
    if wanted == "host" and options.network == "none" and HOST_NETWORK not in options.allowed:
        details = "the build was told to have none"
        raise InvalidInput(f"{run.location}: RUN --network=host is not allowed", details, f"if you mean it, build with --allow {HOST_NETWORK}")
    return "host" if wanted in ("", "default") else wanted


def check_allowed(run: Run, options: BuildOptions) -> None:
    """Raise InvalidInput where the instruction asks for privileges that the caller has not given: also where it comes from an ONBUILD."""
    if run.security == "insecure" and INSECURE not in options.allowed:
        why = "it would run with all privileges of the machine's root"
        raise InvalidInput(f"{run.location}: RUN --security=insecure is not allowed", why, f"if you mean it, build with --allow {INSECURE}")


def execute(
    engine: Engine,
    state: StageState,
    run: Run,
    arguments: Mapping[str, str],
    mounts: StepMounts,
    options: BuildOptions,
    output: Callable[[bytes], None],
    ended_by: EndedBy,
    latest_ns: int | None,
) -> Layer:
    """Run the command; returns the layer. Raises BulleError naming the line where it ends with another exit code than 0.

    ``ended_by`` is given what ends it from another thread, for as long as it runs.
    """
    if not state.layers:
        raise InvalidInput(
            f"{run.location}: RUN has nothing to run in", "the stage is empty so far", "begin it with FROM an image, or COPY a program"
        )
    mounts.prepare()
    own = state.environment
    temporary = engine.store.temporary_directory()
    try:
        base = Base(
            tuple(state.layers),
            ExecutionConfig(env=state.config.env, user=state.config.user, working_dir=state.config.working_dir, stop_signal="SIGKILL"),
            host_binds=state.host_binds,
            writable=str(temporary / "root"),
            mounts=tuple(mounts.mounts),
            volume_layers=tuple(mounts.volume_layers),
            platform=state.platform,
        )
        wanted = ContainerOptions(
            image=f"build step at {run.location}",
            command=arguments_of(run, state.shell),
            entrypoint=(),
            environment=tuple(f"{name}={value}" for name, value in arguments.items() if name not in own),  # ENV counts before ARG
            network=network_of(run, options),
            hostname="" if options.isolation == "chroot" else HOSTNAME,
            isolation=options.isolation,
            memory_bytes=options.memory_bytes,
            shm_bytes=options.shm_bytes,
            extra_hosts=options.extra_hosts,
            limits=options.limits,
            privileged=run.security == "insecure",
            auto_remove=True,
        )
        container = engine.containers.create(wanted, base)
        code = _run(container, mounts.variables, output, ended_by)
        if code is None:
            raise BulleError(f"{run.location}: the step was lost", "its monitor was killed", "build again")
        if code:
            shown = run.command[0].strip().partition("\n")[0] if run.shell else " ".join(run.command)
            raise BulleError(f"{run.location}: RUN ended with exit code {code}", shown[:200], "its output is above")
        if Feature.OWN_PROCESSES not in driver_for(container.plan.isolation, engine.home).probe().features:
            _wait_until_cleaned(container.plan.state_host_path)
        return keep_changes(engine.store, container.plan, latest_ns=latest_ns)
    finally:
        remove_tree(temporary)


def _run(container: Container, secrets: list[str], output: Callable[[bytes], None], ended_by: EndedBy) -> int | None:
    """Start it and wait for its end; None where that is not known."""
    code = None
    try:
        attachment = container.start(attach=True, bound=True, secrets=secrets)
        assert attachment is not None
        with closing(attachment), ended_by(attachment.give_up):
            code = _follow(attachment, output)
    finally:
        if code is None:  # it was not started, or given up: when the build ends, nothing of it is left
            with suppress(BulleError, OSError):
                container.remove(force=True)
    return code


def _follow(attachment: Attachment, output: Callable[[bytes], None]) -> int | None:
    while (received := attachment.receive()) is not None:
        kind, payload = received
        if kind in (Kind.STDOUT, Kind.STDERR):
            output(payload)
        elif kind == Kind.EVENT and (happened := msgspec.json.decode(payload, type=Event)).event == "exited":
            return happened.exit_code
    return None


def _wait_until_cleaned(directory: str) -> None:
    """Where processes can outlive the first one, until the monitor has ended them: they might still be writing."""
    deadline = time.monotonic() + _CLEANED_WITHIN_S
    while os.path.exists(directory) and time.monotonic() < deadline:
        time.sleep(0.005)

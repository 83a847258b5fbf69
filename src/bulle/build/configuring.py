"""The instructions that only change the config of the image: what each does to a stage's state. A table, by the class of the instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bulle.build import instructions as known
from bulle.build.instructions import Instruction
from bulle.build.state import StageState, exposed
from bulle.engine.planning import signal_name
from bulle.errors import InvalidInput
from bulle.model.image import Healthcheck


def _env(state: StageState, instruction: known.Env) -> str:
    for name, value in instruction.pairs:
        state.set_environment(name, value)
    return "ENV " + " ".join(f"{name}={value}" for name, value in instruction.pairs)


def _label(state: StageState, instruction: known.Label) -> str:
    state.change(labels={**(state.config.labels or {}), **dict(instruction.pairs)})
    return "LABEL " + " ".join(f"{name}={value}" for name, value in instruction.pairs)


def _cmd(state: StageState, instruction: known.Cmd) -> str:
    words = _words(state, instruction)
    state.change(cmd=words)
    state.has_command = True
    return f"CMD {_shown(words)}"


def _entrypoint(state: StageState, instruction: known.Entrypoint) -> str:
    words = _words(state, instruction)
    # A command of the base was meant for the base's entrypoint.
    state.change(entrypoint=words, cmd=state.config.cmd if state.has_command else None)
    return f"ENTRYPOINT {_shown(words)}"


def _shell(state: StageState, instruction: known.Shell) -> str:
    state.change(shell=instruction.command)
    return f"SHELL {_shown(instruction.command)}"


def _expose(state: StageState, instruction: known.Expose) -> str:
    try:
        state.change(exposed_ports=exposed(state.config, instruction.ports))
    except InvalidInput as error:
        raise InvalidInput(f"{instruction.location}: {error.brief}", error.details, error.resolution) from None
    return f"EXPOSE {' '.join(instruction.ports)}"


def _volume(state: StageState, instruction: known.Volume) -> str:
    state.change(volumes={**(state.config.volumes or {}), **{path: {} for path in instruction.paths}})
    return f"VOLUME {_shown(instruction.paths)}"


def _user(state: StageState, instruction: known.User) -> str:
    state.change(user=instruction.user)
    return f"USER {instruction.user}"


def _stop_signal(state: StageState, instruction: known.StopSignal) -> str:
    try:
        signal_name(instruction.signal)
    except InvalidInput as error:
        raise InvalidInput(f"{instruction.location}: {error.brief}", error.details, error.resolution) from None
    state.change(stop_signal=instruction.signal)
    return f"STOPSIGNAL {instruction.signal}"


def _healthcheck(state: StageState, instruction: known.Healthcheck) -> str:
    check = Healthcheck(
        instruction.test,
        instruction.interval_ns,
        instruction.timeout_ns,
        instruction.start_period_ns,
        instruction.start_interval_ns,
        instruction.retries,
    )
    state.change(healthcheck=check)
    return f"HEALTHCHECK {_shown(instruction.test or ())}"


def _onbuild(state: StageState, instruction: known.Onbuild) -> str:
    state.change(on_build=(*(state.config.on_build or ()), instruction.text))
    return f"ONBUILD {instruction.text}"


def _maintainer(state: StageState, instruction: known.Maintainer) -> str:
    state.author = instruction.name
    return f"MAINTAINER {instruction.name}"


def _words(state: StageState, instruction: known.Cmd | known.Entrypoint) -> tuple[str, ...]:
    return (*state.shell, *instruction.command) if instruction.shell else instruction.command


def _shown(words: tuple[str, ...]) -> str:
    return "[" + " ".join(f'"{word}"' for word in words) + "]"


_ACTIONS: dict[type[Any], Callable[[StageState, Any], str]] = {
    known.Env: _env,
    known.Label: _label,
    known.Cmd: _cmd,
    known.Entrypoint: _entrypoint,
    known.Shell: _shell,
    known.Expose: _expose,
    known.Volume: _volume,
    known.User: _user,
    known.StopSignal: _stop_signal,
    known.Healthcheck: _healthcheck,
    known.Onbuild: _onbuild,
    known.Maintainer: _maintainer,
}


def configure(state: StageState, instruction: Instruction) -> None:
    """Carry out one instruction of that kind, and note it in the history."""
    line = _ACTIONS[type(instruction)](state, instruction)
    if not isinstance(instruction, known.Onbuild):  # as with BuildKit: it is the other build's history
        state.note(line, empty=True)


def configures(instruction: Instruction) -> bool:
    """Whether an instruction is of that kind."""
    return type(instruction) in _ACTIONS


def names() -> Mapping[str, type[Instruction]]:
    """The instructions of that kind by keyword, for ``commit --change``."""
    return {kind.keyword: kind for kind in _ACTIONS}

"""``system boot`` and ``system shutdown``: what ran before the machine went down runs again after it came up, as restart policies say.

A shutdown stops containers with an intent of its own (:data:`SHUTDOWN`): their policies leave them ended, and the next boot starts them again, which
it does not do for what somebody stopped by hand under ``unless-stopped``. Nothing here waits for one container before it sees to the next, but for
those of an app that depend on each other, and none that fails keeps another from its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bulle.engine.boot_order import BootOrder
from bulle.engine.parallel import each
from bulle.engine.starting import as_error
from bulle.errors import BulleError, Conflict, NotFound
from bulle.linux import process
from bulle.model.container import ContainerState
from bulle.model.lifecycle import Intent, RestartPolicy
from bulle.monitor import ends, restart
from bulle.monitor.state import read_state
from bulle.records.containers import ContainerRecords

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine

SHUTDOWN = "system shutdown"
_BY_HAND = frozenset({"stop", "kill"})
_BEING_REMOVED = "rm"
_STARTS_AT_ONCE = 4
_STOPS_AT_ONCE = 100  # each waits for its container most of the time


@dataclass(frozen=True)
class Outcome:
    """What came of one container, by its name: started or stopped, or why not. Without a name it is about none."""

    container: str
    error: BulleError | None = None


def boot(engine: Engine) -> tuple[Outcome, ...]:
    """Record what ended with the machine, start what is to run, then remove what was left of the last boot; harmless to repeat.

    Returns what was started, or was to be, oldest first but behind what it depends on; a failure to remove comes last, without a container.
    """
    order = BootOrder(sorted(engine.containers.list(all=True), key=lambda one: one.created_at_ns))
    outcomes = _each(engine, order.containers, lambda one: _boot(one, order), _STARTS_AT_ONCE)
    try:
        engine.gc()
    except (BulleError, OSError) as error:
        return (*outcomes, Outcome("", BulleError("what was left of the last boot could not be removed", str(error), "see `bulle doctor`")))
    return outcomes


def shutdown(engine: Engine, timeout_s: int | None = None) -> tuple[Outcome, ...]:
    """Stop everything that runs, each with its own signal and within its own time or ``timeout_s``, so that :func:`boot` starts it again."""

    def stop(container: Container) -> bool:
        container.stop(timeout_s, verb=SHUTDOWN)
        return True

    return _each(engine, engine.containers.list(), stop, _STOPS_AT_ONCE)


def _boot(container: Container, order: BootOrder) -> bool:
    """See to one container, when those that it depends on had their turn; whether it was started."""
    try:
        return _start_if_wanted(container, order)
    finally:
        order.had_turn(container)


def _start_if_wanted(container: Container, order: BootOrder) -> bool:
    before, intent = read_state(container.directory), ends.read_intent(container.directory)
    policy = restart.policy_of(container.directory) or container.plan.lifecycle.restart
    if container.state().active or not starts_at_boot(policy, before, intent):  # its state() records an end that nobody saw
        return False
    order.await_dependencies(container)
    try:
        container.start()
    except Conflict:
        if container.state().active:
            return False  # another was first
        raise
    return True


def starts_at_boot(policy: RestartPolicy, state: ContainerState, intent: Intent | None) -> bool:
    """Whether a container that does not run is to: from what its monitor wrote last, and the last word of a command since its last start."""
    verb = intent.verb if intent is not None else ""
    if policy.name == "no" or verb == _BEING_REMOVED or (state.status == "created" and not state.finished_at_ns):
        return False  # the last: nobody ever started it
    if policy.name == "always" or verb == SHUTDOWN:
        return True
    if policy.name == "unless-stopped":
        return verb not in _BY_HAND
    if intent is not None or 0 < policy.retries <= state.restart_count:
        return False
    return _went_down_with_the_machine(state) or (state.status == "created" and state.exit_code != 0)  # or could not be started when it should


def _went_down_with_the_machine(state: ContainerState) -> bool:
    """Whether it ran, or waited to, when an earlier boot ended; it may have been recorded since, by whoever looked first."""
    return state.boot_id != process.boot_id() and (state.active or state.exit_code < 0)


def _each(engine: Engine, containers: Sequence[Container], act: Callable[[Container], bool], at_once: int) -> tuple[Outcome, ...]:
    """Do it to every container, some at once; what came of those for which there was something to do, in their order."""
    outcomes: dict[int, Outcome] = {}

    def work(number: int) -> None:
        container = containers[number]
        try:
            if act(container):
                outcomes[number] = Outcome(container.name)
        except (NotFound, FileNotFoundError) as error:
            if ContainerRecords(engine.database).exists(container.id):  # else it was removed meanwhile
                outcomes[number] = Outcome(container.name, error if isinstance(error, NotFound) else as_error(error))
        except BulleError as error:
            outcomes[number] = Outcome(container.name, error)
        except OSError as error:
            outcomes[number] = Outcome(container.name, as_error(error))

    each(work, len(containers), engine.close, lambda: None, at_once)
    return tuple(outcomes[number] for number in sorted(outcomes))

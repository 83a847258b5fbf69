"""From what was asked to how a container lives: its restart policy, health check and time limits. Pure; part of composing a plan.

Defaults and meanings are Docker's. Raises InvalidInput.
"""

from __future__ import annotations

from bulle.errors import InvalidInput
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig, Healthcheck
from bulle.model.lifecycle import HealthCheck, Lifecycle, RestartPolicy

_NANOSECONDS = 1_000_000_000
_SHORTEST_NS = 1_000_000
_POLICIES = ("no", "on-failure", "always", "unless-stopped")
_DEFAULT_SHELL = ("/bin/sh", "-c")


def lifecycle(options: ContainerOptions, config: ExecutionConfig) -> Lifecycle:
    """Of the options, and of the image's HEALTHCHECK where they do not say otherwise."""
    policy = restart_policy(options.restart_policy)
    if options.auto_remove and policy.name != "no":
        raise InvalidInput("conflicting options: --restart and --rm", "what is removed at its end cannot be started again", "leave one of them out")
    if options.timeout_s < 0 or options.idle_timeout_s < 0:
        raise InvalidInput("a time limit is negative", "", "give a duration such as 90s or 5m, or 0 for none")
    return Lifecycle(policy, _health(options, config), options.timeout_s, options.idle_timeout_s)


def restart_policy(text: str) -> RestartPolicy:
    """``no``, ``on-failure[:n]``, ``always``, ``unless-stopped`` or empty."""
    name, colon, count = text.partition(":")
    if name and name not in _POLICIES:
        raise InvalidInput(f"invalid restart policy: {text!r}", "", f"use one of {', '.join(_POLICIES)}")
    if not colon:
        return RestartPolicy(name or "no")  # type: ignore[arg-type]
    if name != "on-failure":
        raise InvalidInput(f"invalid restart policy: {text!r}", "only on-failure has a number of retries", f"write {name}")
    if not (count.isascii() and count.isdigit()):
        raise InvalidInput(f"invalid restart policy: {text!r}", f"{count!r} is no number of retries", "write on-failure:3")
    return RestartPolicy("on-failure", int(count))


def _health(options: ContainerOptions, config: ExecutionConfig) -> HealthCheck | None:
    given = Healthcheck(
        options.health_test or (("CMD-SHELL", options.health_command) if options.health_command else None),
        options.health_interval_ns,
        options.health_timeout_ns,
        options.health_start_period_ns,
        options.health_start_interval_ns,
        options.health_retries,
    )
    asked = given != Healthcheck() or options.health_on_failure != "none"
    if options.no_healthcheck:
        if asked:
            raise InvalidInput("--no-healthcheck conflicts with the --health-* flags", "", "leave one of them out")
        return None
    image = config.healthcheck or Healthcheck()
    words = given.test or image.test or ()
    if not words or words[0] == "NONE":
        if asked:
            raise InvalidInput("there is no health check to change", "neither the image nor the command line has one", "add --health-cmd")
        return None
    interval, timeout, period, start_interval, retries = (
        getattr(given, name) or getattr(image, name) for name in ("interval", "timeout", "start_period", "start_interval", "retries")
    )
    for name, value in (("interval", interval), ("timeout", timeout), ("start period", period), ("start interval", start_interval)):
        if value < 0 or 0 < value < _SHORTEST_NS:
            raise InvalidInput(f"the {name} of the health check is too short", "it is 1ms at least", "give more, or 0 for the default")
    if retries < 0:
        raise InvalidInput("the retries of the health check are negative", "", "give a number, or 0 for the default")
    default = HealthCheck(())
    return HealthCheck(
        _command(words, config),
        interval / _NANOSECONDS or default.interval_s,
        timeout / _NANOSECONDS or default.timeout_s,
        retries or default.retries,
        period / _NANOSECONDS,
        start_interval / _NANOSECONDS or default.start_interval_s,
        options.health_on_failure,
    )


def _command(words: tuple[str, ...], config: ExecutionConfig) -> tuple[str, ...]:
    """The test in the image's form (CMD, CMD-SHELL) as what is executed."""
    kind, *rest = words
    if not rest or kind not in ("CMD", "CMD-SHELL"):
        raise InvalidInput(f"the health check {' '.join(words)!r} cannot be run", "it begins with CMD or CMD-SHELL", "use --health-cmd")
    return tuple(rest) if kind == "CMD" else (*(config.shell or _DEFAULT_SHELL), " ".join(rest))

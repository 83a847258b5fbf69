"""``why``: the cause of a container's end in one sentence, and what shows it: from what its monitor recorded to words."""

from __future__ import annotations

import os
import pwd
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from bulle.engine.guests import obtained
from bulle.model.lifecycle import End
from bulle.model.run_plan import RunPlan
from bulle.monitor.logs import timestamp

_LIBRARY = re.compile(r"error while loading shared libraries: (\S+): (.+)|Error loading shared library (\S+): (.+)")
_LOADER = re.compile(r": Could not open '(/lib[^']*)': (.+)")
"""What QEMU says where a program of another processor finds no loader in its image."""
_OWN_FAULT = {
    signal.SIGSEGV: "it touched memory that is not its own",
    signal.SIGBUS: "it touched memory that is not there",
    signal.SIGILL: "it came upon an instruction that this processor does not have",
    signal.SIGFPE: "an arithmetic operation failed",
    signal.SIGABRT: "it gave up by itself (abort)",
    signal.SIGTRAP: "it stopped at a breakpoint",
}


@dataclass(frozen=True)
class Explanation:
    """Why one run ended: a ``sentence``, and what shows it."""

    sentence: str
    evidence: tuple[str, ...]
    finished_at_ns: int


def explain_all(name: str, plan: RunPlan, ends: Sequence[End]) -> list[Explanation]:
    """The ends that are remembered, given the first one first, told the last one first, with the machine that it ran in that time."""
    machine = obtained(plan)
    return [explain(name, plan, end, "" if before else machine) for before, end in enumerate(reversed(ends))]


def explain(name: str, plan: RunPlan, end: End, machine: str = "") -> Explanation:
    """In words; ``name`` is the container's, ``machine`` says what it ran in where that was a virtual machine."""
    evidence = [f"ended at {timestamp(end.finished_at_ns)}, after {(end.finished_at_ns - end.started_at_ns) / 1e9:.3g} s: {_status(end.status)}"]
    if end.reason == "start":
        evidence[0] = f"at {timestamp(end.finished_at_ns)}"
    if machine:
        evidence.append(f"it ran in {machine}")
    if end.out_of_memory:
        limit = plan.resources.memory_bytes
        evidence.append("the kernel killed one of its processes for memory" + (f"; its limit is {limit >> 20} MiB" if limit else ""))
    if end.denied:
        evidence.append(f"the system call filter refused: {', '.join(end.denied)}")
    if end.health is not None and end.health.exit_code != 0:
        evidence.append(f"the last health check ended with {end.health.exit_code}: {end.health.output.strip() or 'it said nothing'}")
    if end.last_words:
        evidence.append("its last words:")
        evidence += [f"    {line}" for line in end.last_words.rstrip("\n").split("\n")]
    if end.again_in_s is not None:
        evidence.append(f"it was started again after {end.again_in_s:g} s")
    return Explanation(f"{name} {_cause(plan, end)}", tuple(evidence), end.finished_at_ns)


def _cause(plan: RunPlan, end: End) -> str:
    """The rest of the sentence."""
    if end.reason == "start":
        return f"could not be started: {end.error}"
    if end.reason == "timeout":
        return f"was ended because it ran for as long as it was allowed to: {plan.lifecycle.timeout_s:g} s (--timeout)"
    if end.reason == "idle-timeout":
        return f"was ended because it did nothing for {plan.lifecycle.idle_timeout_s:g} s (--idle-timeout)"
    if end.reason == "unhealthy" and plan.lifecycle.health is not None:
        check = plan.lifecycle.health
        return f"was ended because its health check failed {check.retries} times in a row (--health-on-failure {check.on_failure})"
    if end.intent is not None:
        return _wanted(end)
    if end.machine:
        return f"ended with its virtual machine: {end.machine}"
    return _unwanted(plan, end)


def _wanted(end: End) -> str:
    intent = end.intent
    assert intent is not None
    number = os.WTERMSIG(end.status) if end.status >= 0 and os.WIFSIGNALED(end.status) else 0
    sentence = f"was ended by `bulle {intent.verb}` of user {_user(intent.uid)}"
    if end.machine:
        return f"{sentence}: {end.machine}"
    if number == signal.SIGKILL and intent.signal not in ("SIGKILL", "9"):
        return f"{sentence}: it did not end on {intent.signal} within {(end.finished_at_ns - intent.at_ns) / 1e9:.2g} s, so it was killed"
    if number:
        return f"{sentence}, by {_name(number)}"
    return f"{sentence}: it ended by itself on {intent.signal}, with {_status(end.status)}"


def _unwanted(plan: RunPlan, end: End) -> str:
    if end.status < 0:
        return "ended while nothing watched it, and nobody knows how: its monitor was killed too, or the machine went down"
    if os.WIFSIGNALED(end.status):
        return _signalled(os.WTERMSIG(end.status), end)
    code = os.WEXITSTATUS(end.status)
    if end.out_of_memory:
        return f"ended with exit code {code} after the kernel had killed one of its processes for want of memory"
    if code == 127 and (missing := _LIBRARY.search(end.last_words)):
        library, problem = missing[1] or missing[3], missing[2] or missing[4]
        return f"could not run its program because a library is missing: {library} ({problem.strip()})"
    if code == 255 and plan.platform and (missing := _LOADER.search(end.last_words)):
        return f"could not run its program, made for {plan.platform}, because a library is missing: {missing[1]} ({missing[2].strip()})"
    if code and end.denied:
        return f"ended by itself with exit code {code} after the system call filter had refused {_listed(end.denied)}"
    if code > 128 and code - 128 in {one.value for one in signal.Signals}:
        return f"ended by itself with exit code {code}: shells say so of a command that {_name(code - 128)} ended"
    if code:
        hints = {126: ": shells say so of a command that cannot be executed", 127: ": shells say so of a command that they do not find"}
        return f"ended by itself with exit code {code}{hints.get(code, '')}"
    return "ended by itself with exit code 0: it had done its work"


def _signalled(number: int, end: End) -> str:
    if number == signal.SIGSYS:
        what = f": it called {_listed(end.denied)}" if end.denied else ", and the kernel's log does not say which call it was"
        return f"was killed by its system call filter{what}"
    if number == signal.SIGKILL and end.out_of_memory:
        return "was killed by the kernel because it had used up its memory"
    if number == signal.SIGKILL:
        return "was killed from outside (SIGKILL): by no command of Bulle's, and the kernel says nothing of memory"
    if number in _OWN_FAULT:
        return f"crashed with {_name(number)}: {_OWN_FAULT[signal.Signals(number)]}"
    return f"was ended by {_name(number)}, which no command of Bulle's sent"


def _listed(calls: tuple[str, ...]) -> str:
    return " and ".join(calls) if len(calls) < 3 else f"{', '.join(calls[:-1])} and {calls[-1]}"


def _status(status: int) -> str:
    if status < 0:
        return "unknown"
    return _name(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""Why a command was not started in a guest: what the agent said, in the words of who asked for it. Called by the shepherd."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, InvalidInput
from bulle.isolation.microvm import sandbox
from bulle.isolation.microvm.agent_session import Session
from bulle.model.run_plan import Mount, Process


def explain(
    failure: Session, wanted: Process, environment: dict[str, str], look: Callable[[str], bytes | None], mounts: Sequence[Mount]
) -> BulleError:
    """What a command that could not be started means to who asked for it."""
    name = wanted.arguments[0] if wanted.arguments else ""
    if failure.text.startswith("mount ") and failure.error == errno.EINVAL and any(mount.kind == "tmpfs" for mount in mounts):
        return InvalidInput(f"a tmpfs has an option that the guest's kernel refuses ({failure.text})", "", "see tmpfs(5)")
    if failure.text.startswith(("mount ", "target ")) and (misplaced := _misplaced(failure.text, mounts)) is not None:
        return misplaced
    if (unsafe := _unsafe(failure)) is not None:
        return unsafe
    if failure.text == f"mkdir {wanted.working_directory.strip('/')}":
        what = f"the working directory {wanted.working_directory} cannot be entered"
        return BulleError(what, os.strerror(failure.error), "choose another with -w")
    if failure.text != "exec":
        return BulleError("the command could not be started in the guest", f"{failure.text}: {os.strerror(failure.error)}", "check its options")
    if not name:
        return CommandNotFound("the command is empty", "", "name one")
    if failure.error in (errno.ENOENT, errno.ENOTDIR):
        return _not_found(name, environment, look)
    if failure.error == errno.ELOOP:
        return CommandNotExecutable(f"{name}: refused", "it leads through a link of /proc", "name the program itself")
    if failure.error == errno.ENOEXEC:
        return CommandNotExecutable(f"{name}: exec format error", "it is no program for this processor, or a script without #!", "")
    if failure.error == errno.EACCES:
        return CommandNotExecutable(f"{name}: permission denied", "the file is not executable", "chmod +x it in the image")
    return CommandNotExecutable(f"{name}: cannot be executed", os.strerror(failure.error), "")


def explain_preparation(failure: Session) -> BulleError:
    """What it means that a container's root could not be prepared before there was a command for it."""
    return _unsafe(failure) or BulleError("the guest could not be set up", f"{failure.text}: {os.strerror(failure.error)}", "see `bulle doctor`")


def _unsafe(failure: Session) -> InvalidInput | None:
    """What it means that a system directory of the image is none."""
    if failure.text not in ("mkdir dev", "mkdir proc", "mkdir sys") or failure.error != errno.ENOTDIR:
        return None
    place = failure.text.removeprefix("mkdir ")
    return InvalidInput(f"the image's /{place} is not a directory", "a link there could redirect a mount", "do not run this image")


def _misplaced(text: str, mounts: Sequence[Mount]) -> InvalidInput | None:
    """What a step on a volume that failed means: a directory was to take a file's place, or a file a directory's."""
    for number, mount in enumerate(mounts):
        shown = f"{sandbox.VOLUMES}/{number}/shown"
        if mount.kind == "tmpfs" or text not in (f"mount {mount.container_path.strip('/')}", f"target {shown}"):
            continue
        if os.path.isdir(shown):
            why = "it, or a part of its path, is no directory in the container"
            return InvalidInput(f"a directory cannot be mounted at {mount.container_path}", why, "mount it elsewhere, or mount a file there")
        why = "it is a directory in the container"
        return InvalidInput(f"a file cannot be mounted at {mount.container_path}", why, "name a file, also a new one")
    return None


def _not_found(name: str, environment: dict[str, str], look: Callable[[str], bytes | None]) -> CommandNotFound:
    paths = [name] if "/" in name else [f"{directory}/{name}" for directory in environment.get("PATH", "").split(":")]
    for path in paths:
        content = look(path)
        if content is None:
            continue
        first = content[2:256].split(b"\n")[0].split() if content.startswith(b"#!") else []
        if first:
            interpreter = os.fsdecode(first[0])
            return CommandNotFound(f"{name}: its interpreter {interpreter} does not exist in the container", "", "install it in the image")
        return CommandNotFound(f"{name}: cannot be started", "its interpreter or dynamic loader does not exist in the container", "install it")
    if "/" in name:
        return CommandNotFound(f"{name}: no such file or directory in the container", "", "check its path")
    return CommandNotFound(f"{name}: command not found in the container", "it is in no directory of PATH", "check its name, or give its path")

"""``bulle system boot``, ``shutdown`` and ``install``: containers that come back when the machine does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli.option_types import Whole
from bulle.cli.session import Session, warn_of, write
from bulle.cli.verb import verb
from bulle.errors import BulleError, InvalidInput

if TYPE_CHECKING:
    from bulle.engine.booting import Outcome


@verb("boot")
@click.pass_obj
def boot(session: Session) -> int:
    """Start the containers that a restart policy has run after a reboot."""
    from bulle.compose.record import have_kept

    outcomes = session.engine.boot()
    have_kept(session.engine)  # what no restart policy starts, and apps want
    return _say(session, outcomes)


@verb("shutdown")
@click.option("-t", "--timeout", "--time", type=Whole(-1), help="Seconds to wait before killing a container (default: its own; -1: for ever)")
@click.pass_obj
def shutdown(session: Session, timeout: int | None) -> int:
    """Stop all running containers, for `bulle system boot` to start again."""
    return _say(session, session.engine.shutdown(timeout_s=timeout))


def _say(session: Session, outcomes: Sequence[Outcome]) -> int:
    def act(one: Outcome) -> str:
        error = one.error
        if error is None:
            return one.container
        if not one.container:
            raise error
        raise BulleError(f"container {one.container}: {error.brief}", error.details, error.resolution) from error

    return session.for_each(outcomes, act)


@verb("install")
@click.option("--user", is_flag=True, help="For the user's own systemd, not the system's")
@click.option("--now", is_flag=True, help="Start it now too (with --remove: stop containers first)")
@click.option("--socket", is_flag=True, help="Also have it listen for Docker's tools, and start `bulle serve` when one connects")
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and write nothing")
@click.option("--remove", "removed", is_flag=True, help="Take the unit away again, and those of the socket")
@click.pass_obj
def install(session: Session, user: bool, now: bool, socket: bool, only_print: bool, removed: bool) -> int:
    """Have systemd boot and shut down containers with the machine."""
    from bulle.engine import systemd_unit

    if only_print and (now or removed):
        raise InvalidInput("--print writes and starts nothing", "", "use it without --now and --remove")
    if removed and socket:
        raise InvalidInput("--remove takes all units away", "", "use it without --socket")
    if only_print:
        units = systemd_unit.units(session.engine.home, user=user, socket=socket)
        paths = [f"# {systemd_unit.unit_path(unit.name, user=user)}\n" if socket else "" for unit in units]
        write("\n".join(path + unit.text for path, unit in zip(paths, units, strict=True)))
    elif removed:
        write("".join(f"{path}\n" for path in systemd_unit.remove(user=user, now=now)))
    else:
        write("".join(f"{path}\n" for path in systemd_unit.install(session.engine.home, user=user, now=now, socket=socket)))
        if user and not systemd_unit.starts_without_login():
            warn_of(["containers start when you log in; `loginctl enable-linger` has them start with the machine"])
    return 0

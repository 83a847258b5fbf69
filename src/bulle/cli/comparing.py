"""``bulle compare``: the same work at each isolation level and on the bare host, as a table, as JSON, and as a page to look at."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from bulle.cli.comparison_table import text_of
from bulle.cli.option_types import Choice, Whole, complete_images
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import Session, printable, write
from bulle.cli.terminal import Interrupted
from bulle.cli.verb import verb
from bulle.errors import NotFound

if TYPE_CHECKING:
    from bulle.model.comparison import Comparison

_DEFAULT_RUNS = 10


@verb("compare", "IMAGE [-- COMMAND [ARG...]]")
@click.argument("image", shell_complete=complete_images)
@click.argument("command", nargs=-1)
@click.option("--levels", metavar="list", default="", help="The isolation levels to compare, separated by commas (default: all that there are)")
@click.option("--runs", type=Whole(1), default=_DEFAULT_RUNS, help="How many starts are measured at each level, after a first one (default 10)")
@click.option("--on-host", is_flag=True, help="Run COMMAND on the bare host as well, without any isolation, with the host's own programs")
@click.option("--drop-caches", is_flag=True, help="Empty the whole machine's page cache before each first start (root only)")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured as JSON, with the machine that it was measured on")
@click.option("--html", metavar="file", default="", help="Also write a page with plots, complete in this one file")
@click.option("--platform", metavar="string", default="", help="Compare the image for this platform, such as linux/arm64")
@click.option("--pull", type=Choice("always", "missing", "never"), default="missing", help="Pull image before comparing")
@click.pass_obj
def compare(
    session: Session,
    image: str,
    command: Sequence[str],
    levels: str,
    runs: int,
    on_host: bool,
    drop_caches: bool,
    as_json: bool,
    html: str,
    platform: str,
    pull: str,
) -> int:
    """Measure what each isolation level costs on this machine, and what it separates, beside the bare host."""
    with _interrupted_once(), _page(html) as write_page:
        _pull(session, image, pull, platform)
        with _live_line() as report:
            found = session.engine.compare(
                image,
                command,
                levels=[name.strip() for name in levels.split(",") if name.strip()],
                runs=runs,
                pull="never",
                platform=platform,
                on_host=on_host,
                drop_caches=drop_caches,
                progress=report,
            )
        write_page(found)
    write(_json(found) if as_json else text_of(found))
    return 0


def _json(found: Comparison) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


@contextmanager
def _page(path: str) -> Iterator[Callable[[Comparison], object]]:
    """What writes the page, if one is wanted. That it can be written turns out before anything is measured."""
    if not path:
        yield lambda _found: None
        return
    from bulle.cli.comparison_page import page_of
    from bulle.engine.output_file import output_file

    with output_file(path) as out:
        yield lambda found: out.write(page_of(found).encode())


def _pull(session: Session, image: str, pull: str, platform: str) -> None:
    """Bring the image in where it must be, with its own progress."""
    if pull != "always":
        try:
            session.engine.images.for_run(image, "never", platform)
        except NotFound:
            if pull == "never":
                raise
        else:
            return
    with progress_on_terminal() as report:
        session.engine.images.pull(image, platform=platform, progress=report)


@contextmanager
def _live_line() -> Iterator[Callable[[str, int, int], None] | None]:
    """What is measured now, on one line of a terminal that is gone afterwards; nothing on a pipe."""
    if not os.isatty(2):
        yield None
        return

    def report(what: str, done: int, steps: int) -> None:
        width = os.get_terminal_size(2).columns
        _draw(f"{done * 100 // max(steps, 1):3d}%  {printable(what)}"[: max(width - 1, 1)])

    try:
        yield report
    finally:
        _draw("")


def _draw(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first signal that asks for the end raises; those that follow wait until everything is removed, which they would only leave half done."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: object) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

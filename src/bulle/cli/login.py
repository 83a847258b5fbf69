"""``bulle login`` and ``logout``: who the user is for a registry, kept where Docker keeps it."""

from __future__ import annotations

import os
import sys
import termios

import click

from bulle.cli.option_types import Text
from bulle.cli.session import Session, note, write, write_bytes
from bulle.cli.verb import verb
from bulle.errors import InvalidInput

_SECRET_LIMIT_BYTES = 1 << 16


@verb("login", "[SERVER]")
@click.argument("server", required=False)
@click.option("-u", "--username", type=Text(), help="Username")
@click.option("-p", "--password", type=Text(), help="Password or personal access token; other users of this machine can see it")
@click.option("--password-stdin", "from_stdin", is_flag=True, help="Take the password or personal access token from stdin")
@click.pass_obj
def login(session: Session, server: str | None, username: str | None, password: str | None, from_stdin: bool) -> int:
    """Log in to a registry (Docker Hub by default).

    The registry is asked before anything is kept.
    """
    if from_stdin:
        if password is not None:
            raise InvalidInput("--password and --password-stdin are mutually exclusive")
        if not username:
            raise InvalidInput("must provide --username with --password-stdin")
        password = _from_stdin()
    elif password is not None:
        note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if not username:
        known = session.engine.registries.known_user(server or "")
        username = _ask(f"Username{f' ({known})' if known else ''}: ", secret=False) or known
    if password is None:
        password = _ask("Password: ", secret=True)
    done = session.engine.registries.login(server or "", username, password)
    if done.in_plain_text:
        note(f"WARNING! Your credentials are stored unencrypted in '{done.file}'; configure a credential helper to change that.")
    write("Login Succeeded\n")
    return 0


@verb("logout", "[SERVER]")
@click.argument("server", required=False)
@click.pass_obj
def logout(session: Session, server: str | None) -> int:
    """Log out from a registry (Docker Hub by default)."""
    name = server or "docker.io"
    if session.engine.registries.logout(name):
        write(f"Removing login credentials for {name}\n")
    else:
        write(f"Not logged in to {name}\n")
    return 0


def _from_stdin() -> str:
    raw = b""
    while len(raw) <= _SECRET_LIMIT_BYTES and (piece := os.read(0, _SECRET_LIMIT_BYTES)):
        raw += piece
    return raw.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _ask(prompt: str, *, secret: bool) -> str:
    """One line from the caller's terminal, which is descriptor 0: this process need not have it as its controlling one."""
    if not os.isatty(0):
        raise InvalidInput("cannot ask for a login", "stdin is no terminal", "use -u with --password-stdin")
    write_bytes(2, prompt.encode())
    before = termios.tcgetattr(0)
    silent = termios.tcgetattr(0)
    silent[3] &= ~termios.ECHO
    try:
        if secret:
            termios.tcsetattr(0, termios.TCSAFLUSH, silent)
        line = b""
        while not line.endswith(b"\n") and (piece := os.read(0, 4096)):
            line += piece
    finally:
        if secret:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            write_bytes(2, b"\n")
    return line.decode(sys.getfilesystemencoding(), "surrogateescape").strip("\r\n")

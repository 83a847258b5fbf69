"""``bulle context``: names for other machines; alone, what to export so that Docker's tools use this Bulle."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.option_types import Suggestion, Text
from bulle.cli.session import Session, write
from bulle.cli.table import FORMAT_HELP, Listing, render
from bulle.cli.verb import VerbGroup, WrongValue, verb
from bulle.errors import InvalidInput
from bulle.fleet import hosts

_LISTING: Listing[hosts.Context] = Listing(
    fields={
        "Name": ("NAME", lambda one: one.name + (" *" if one.name == hosts.in_use() else "")),
        "Description": ("DESCRIPTION", lambda one: one.description),
        "Host": ("HOST", lambda one: one.host),
    },
    columns=("Name", "Description", "Host"),
    methods={},
)


class _ContextGroup(VerbGroup):
    """Without a verb it prints the socket's address, which is what it did before there were other machines."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb, or print the address."""
        return super().invoke(ctx) if ctx.args else _print_address(docker=bool(ctx.params.get("docker")))


def _print_address(*, docker: bool) -> int:
    from bulle.api.listening import default_path

    address = f"unix://{default_path()}"
    if docker:
        write(f'docker context create bulle --description "Bulle" --docker host={address}\n')
    else:
        write(f"export DOCKER_HOST={address}\n")
    return 0


context = _ContextGroup(
    "context",
    help=(
        "Manage contexts, the names of other machines.\n\n"
        'Without a verb: print what to export so that docker and its relatives use this Bulle: eval "$(bulle context)".'
    ),
    verbs={
        "create": "contexts:create",
        **dict.fromkeys(("ls", "list"), "contexts:ls"),
        **dict.fromkeys(("rm", "remove"), "contexts:remove"),
        "show": "contexts:show",
        "use": "contexts:use",
    },
    params=[click.Option(["--docker"], is_flag=True, help="Print the command that makes a context of docker's instead")],
    hidden=("list", "remove"),
)


@verb("create", "CONTEXT [HOST]")
@click.argument("name")
@click.argument("host", required=False)
@click.option("--description", type=Text(), default="", help="Description of the context")
@click.option("--docker", type=Text("map"), default="", help="Where it is, in docker's form (host=ssh://…)")
def create(name: str, host: str | None, description: str, docker: str) -> int:
    """Name another machine: HOST is ssh://[user@]host[:port]."""
    key, _, value = docker.partition("=")
    if docker and (host or key != "host"):
        raise WrongValue(f"invalid argument '{docker}' for --docker", "", "write --docker host=ssh://HOST, or the host alone")
    if not (host or value):
        raise InvalidInput("a context needs a host", "", f"write bulle context create {name} ssh://HOST")
    hosts.create(name, host or value, description)
    write(f"{name}\n")
    return 0


@verb("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only show context names")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
def ls(quiet: bool, form: str) -> int:
    """List contexts; the one in use has a star."""
    found = hosts.contexts()
    write("".join(f"{one.name}\n" for one in found) if quiet else render(_LISTING, found, form))
    return 0


@verb("use", "CONTEXT")
@click.argument("name")
def use(name: str) -> int:
    """Make a context the one that commands are for; "default" is this machine."""
    hosts.use(name)
    write(f"{name}\n")
    return 0


@verb("show")
def show() -> int:
    """Print the name of the context in use."""
    write(f"{hosts.in_use()}\n")
    return 0


@verb("rm", "CONTEXT [CONTEXT...]")
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove also the context in use")
@click.pass_obj
def remove(session: Session, names: Sequence[str], force: bool) -> int:
    """Forget contexts."""

    def act(name: str) -> str:
        hosts.remove(name, force=force)
        return name

    return session.for_each(names, act)

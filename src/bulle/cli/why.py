"""``bulle why``: the cause of a container's end in one sentence, with its evidence."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.option_types import Choice, complete_containers
from bulle.cli.session import Session, write
from bulle.cli.verb import verb
from bulle.engine.why import Explanation


@verb("why", "CONTAINER [CONTAINER...]")
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-a", "--all", "every", is_flag=True, help="Show earlier ends too, the last one first")
@click.option("--format", "form", type=Choice("text", "json"), default="text", help="Format output: 'text' or 'json'")
@click.pass_obj
def why(session: Session, containers: Sequence[str], every: bool, form: str) -> int:
    """Say why a container ended, and what shows it."""

    def act(name: str) -> None:
        container = session.engine.containers.get(name)
        found = container.why()
        if not found:
            state = container.state()
            write(f"{container.name} runs, and has not ended before\n" if state.active else f"{container.name} was never started\n")
        elif form == "text" and container.state().active:
            write(f"{container.name} runs; its last end:\n")
        for explanation in found if every else found[:1]:
            _show(explanation, form)

    return session.for_each(containers, act)


def _show(explanation: Explanation, form: str) -> None:
    if form == "json":
        import msgspec

        write(msgspec.json.encode(explanation).decode() + "\n")
        return
    write(explanation.sentence + "\n" + "".join(f"    {line}\n" for line in explanation.evidence))

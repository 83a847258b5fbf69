"""``bulle completion``: the script that makes a shell complete verbs, flags and the names of containers and images."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bulle.cli.option_types import Choice
from bulle.cli.session import write
from bulle.cli.verb import verb


@verb("completion", "bash|zsh|fish")
@click.argument("shell", type=Choice("bash", "zsh", "fish"))
def completion(shell: str) -> int:
    """Print the completion script for a shell.

    Bash: source <(bulle completion bash). Zsh: the same, after compinit. Fish: bulle completion fish | source.
    """
    from bulle.cli.main import COMPLETION_VARIABLE, PROGRAM, ROOT

    found = get_completion_class(shell)
    assert found is not None
    script = found(ROOT, {}, PROGRAM, COMPLETION_VARIABLE)
    # Not script.source(): for bash it starts a bash to ask for its version.
    write(script.source_template % script.source_vars())
    return 0

"""`sidecar completion SHELL`: the script that lets a shell complete commands, options and the names of models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_SIDECAR_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script for SHELL. Names of models are those of the sidecar that runs, or else of ./manifests.

    \b
    bash: eval "$(sidecar completion bash)"      in ~/.bashrc
    zsh:  eval "$(sidecar completion zsh)"       in ~/.zshrc, after compinit
    fish: sidecar completion fish | source       in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"there is nothing for {shell}")
    click.echo(found(context.find_root().command, {}, "sidecar", _VARIABLE).source())

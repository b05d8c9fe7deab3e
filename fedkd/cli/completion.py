"""``fedkd completion``: a shell script that completes subcommands and options, without starting Python."""

from __future__ import annotations

import importlib
from typing import Any

from fedkd.cli.subcommands import PLAIN, SUBCOMMANDS

SCRIPT = """\
# fedkd's completion for bash; for zsh put first: autoload -U +X bashcompinit && bashcompinit
_fedkd() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{subcommands} --help --version"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _fedkd fedkd
"""


def options_of_subcommands() -> dict[str, list[str]]:
    """Return the options of each subcommand, as the parser has them."""
    from fedkd.cli.commands import parsers

    others = {name: importlib.import_module(module).make_parser() for name, module in PLAIN.items()}
    return {name: _options(parser) for name, parser in {**parsers(), **others}.items()}


def completion_script() -> str:
    """Return the script, for ``source`` or a file that the shell reads when it starts."""
    cases = "\n".join(
        f'        {name}) words="{" ".join(options)}" ;;' for name, options in options_of_subcommands().items()
    )
    return SCRIPT.format(subcommands=" ".join(SUBCOMMANDS), cases=cases)


def _options(parser: Any) -> list[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    return sorted(option for option in found if option.startswith("--"))

"""What the site has besides its pages: a table of every command's flags."""

import re
from typing import Any

import typer
from typer.core import TyperGroup

from cascade.cli.app import app

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)\s]+\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the flags of every command, and leave out links to files that are no pages."""
    if page.file.src_path == "commands.md":
        markdown += "\n" + commands()
    return OUTSIDE.sub(r"\1", markdown)


def commands() -> str:
    """Every command with its words and a table of its flags."""
    return "\n".join(_of(typer.main.get_command(app), "cascade"))


def _of(command: Any, name: str) -> list[str]:
    if isinstance(command, TyperGroup):
        return [
            line for word, one in command.commands.items() for line in _of(one, f"{name} {word}")
        ]
    text = (command.help or "").replace("\f", "")
    lines = [f"\n## {name}\n", text, "\n| flag | what it does |", "|---|---|"]
    for option in command.params:
        names = ", ".join(f"`{one}`" for one in (*option.opts, *option.secondary_opts))
        words = (getattr(option, "help", None) or "").replace("|", "\\|").replace("\n", " ")
        shown = (
            option.show_default if isinstance(getattr(option, "show_default", None), str) else ""
        )
        lines.append(f"| {names} | {words}{f' Default: {shown}.' if shown else ''} |")
    return lines

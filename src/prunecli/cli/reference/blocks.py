"""Generated blocks of pages: from `<!-- generated: NAME ARGUMENT -->` to `<!-- end of generated -->`."""

from __future__ import annotations

import re
from collections.abc import Callable

from prunecli.cli.reference import commands, files, recipes

_BLOCK = re.compile(r"(<!-- generated: (\S+) ?(\S*) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[str], str]] = {
    "command-list": commands.command_list,
    "commands": commands.command_sections,
    "method-verbs": commands.method_verbs,
    "stage-options": commands.shared_option_table,
    "output-options": commands.output_option_table,
    "recipe": recipes.section,
    "stages": recipes.stage_sections,
    "method-list": recipes.method_list,
    "method": recipes.card,
    "shared": recipes.shared,
    "settings": recipes.stage_settings,
    "report": files.report_sections,
    "manifest": files.manifest_sections,
    "compare-conditions": files.condition_names,
    "eval-conditions": files.requirement_names,
}


def filled(text: str) -> str:
    """A page with all its generated blocks as they have to be."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]](block[3])}\n\n{block[4]}", text)

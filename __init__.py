"""DiffHarmony for ComfyUI: makes a pasted foreground belong to its picture."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import DiffHarmony

WEB_DIRECTORY = "./web"  # the help pages, and the script that brings the examples' pictures


async def comfy_entrypoint() -> "DiffHarmony":
    """What ComfyUI calls to get the nodes; nothing is imported before."""
    from .nodes import DiffHarmony

    return DiffHarmony()

"""Where the help pages and the translation lie, for the tests of both."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
# The page shows the schema's own words where a language has no file, so English has none.
CHINESE = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
NODES = sorted(CHINESE)
LOCALES = ("en", "zh")


def page(node: str, locale: str) -> str:
    """The help page that ComfyUI's page asks for first."""
    return (DOCS / node / f"{locale}.md").read_text(encoding="utf-8")


def check_names(node: str, locale: str, words: dict) -> None:
    """A help page has its node's title, and names every input and output."""
    text = page(node, locale)
    assert text.startswith(f"# {words['display_name']}\n")
    slots = [*words["inputs"].values(), *words.get("outputs", {}).values()]
    named = set(re.findall(r"`([^`]+)`", text))
    assert {slot["name"] for slot in slots if "name" in slot} <= named

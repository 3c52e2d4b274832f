"""The help pages and the translations, as far as they can be checked without ComfyUI.

`tests/host` compares them with the nodes.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
WORDS = {
    locale: json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))
    for locale in ("en", "zh")
}
NODES = sorted(WORDS["en"])
# ComfyUI's page asks for <node>/<locale>.md, then for <node>.md.
PAGES = [
    (node, locale, DOCS / (f"{node}.md" if locale == "en" else f"{node}/{locale}.md"))
    for node in NODES
    for locale in WORDS
]
TROUBLE = {"en": "## When something goes wrong\n", "zh": "## 出现问题时\n"}
LARGEST_PICTURE = 100_000  # bytes

each_page = pytest.mark.parametrize("node, locale, path", PAGES, ids=[f"{node}-{locale}" for node, locale, _ in PAGES])


def said_by_the_code() -> list[str]:
    """All texts in the code, "…" where a value stands."""
    texts = []
    for path in (*(ROOT / "nodes").rglob("*.py"), *(ROOT / "diffharmony_models").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def keys(words: dict, above: str = "") -> set[str]:
    """The paths of all texts in nested dictionaries."""
    found = set()
    for key, value in words.items():
        found |= keys(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}"}
    return found


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)


@each_page
def test_a_page_names_its_node_and_every_input_and_output(node, locale, path):
    text, words = path.read_text(encoding="utf-8"), WORDS[locale][node]
    assert text.startswith(f"# {words['display_name']}\n")
    slots = [*words["inputs"].values(), *words.get("outputs", {}).values()]
    named = set(re.findall(r"`([^`]+)`", text))
    assert {slot["name"] for slot in slots if "name" in slot} <= named


@each_page
def test_a_page_has_pictures_that_are_there_and_small(node, locale, path):
    found = pictures(path.read_text(encoding="utf-8"))
    assert found
    for name in found:
        # ComfyUI's page looks for the pictures of all pages in docs/ itself.
        assert (DOCS / name).stat().st_size <= LARGEST_PICTURE
        with Image.open(DOCS / name) as picture:
            picture.load()


def test_every_picture_is_shown():
    shown = {name for _, _, path in PAGES for name in pictures(path.read_text(encoding="utf-8"))}
    assert {path.name for path in DOCS.iterdir() if path.is_file() and path.suffix != ".md"} == shown


@each_page
def test_the_messages_that_a_page_explains_are_those_of_the_code(node, locale, path):
    trouble = path.read_text(encoding="utf-8").partition(TROUBLE[locale])[2]
    quoted = [words for words in re.findall(r"`([^`]+)`", trouble) if " " in words]
    assert quoted
    texts = said_by_the_code()
    assert not [words for words in quoted if not any(words in text for text in texts)]


def test_the_translation_has_every_text_and_no_other():
    assert keys(WORDS["zh"]) == keys(WORDS["en"])


@pytest.mark.parametrize("node", NODES)
def test_the_translation_is_chinese(node):
    words = WORDS["zh"][node]
    tooltips = [
        slot["tooltip"] for slot in (*words["inputs"].values(), *words.get("outputs", {}).values()) if "tooltip" in slot
    ]
    assert all(re.search("[\u4e00-\u9fff]", text) for text in (words["display_name"], words["description"], *tooltips))

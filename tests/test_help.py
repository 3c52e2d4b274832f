"""The help pages and the translations, as far as they can be checked without ComfyUI.

`tests/host` compares them with the nodes.
"""

import ast
import re

import pytest
from help_pages import CHINESE, DOCS, LOCALES, NODES, ROOT, check_names, page
from PIL import Image

PAGES = [(node, locale) for node in NODES for locale in LOCALES]
TROUBLE = {"en": "## When something goes wrong\n", "zh": "## 出现问题时\n"}
LARGEST_PICTURE = 100_000  # bytes

each_page = pytest.mark.parametrize("node, locale", PAGES, ids=["-".join(names) for names in PAGES])


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


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)


@pytest.mark.parametrize("node", NODES)
def test_a_page_names_its_node_and_every_input_and_output(node):
    check_names(node, "zh", CHINESE[node])


@each_page
def test_a_page_has_pictures_that_are_there_and_small(node, locale):
    found = pictures(page(node, locale))
    assert found
    for name in found:
        # ComfyUI's page looks for the pictures of all pages in docs/ itself.
        assert (DOCS / name).stat().st_size <= LARGEST_PICTURE
        with Image.open(DOCS / name) as picture:
            picture.load()


def test_every_picture_is_shown():
    shown = {name for node, locale in PAGES for name in pictures(page(node, locale))}
    assert {path.name for path in DOCS.iterdir() if path.is_file()} == shown


@each_page
def test_the_messages_that_a_page_explains_are_those_of_the_code(node, locale):
    trouble = page(node, locale).partition(TROUBLE[locale])[2]
    quoted = [words for words in re.findall(r"`([^`]+)`", trouble) if " " in words]
    assert quoted
    texts = said_by_the_code()
    assert not [words for words in quoted if not any(words in text for text in texts)]


@pytest.mark.parametrize("node", NODES)
def test_the_translation_is_chinese(node):
    words = CHINESE[node]
    tooltips = [
        slot["tooltip"] for slot in (*words["inputs"].values(), *words.get("outputs", {}).values()) if "tooltip" in slot
    ]
    assert all(re.search("[\u4e00-\u9fff]", text) for text in (words["display_name"], words["description"], *tooltips))

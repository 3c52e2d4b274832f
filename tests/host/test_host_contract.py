"""The internals of ComfyUI that the nodes lean on, each by its name; and those of its page."""

import ast
import json
from pathlib import Path

import pytest
from harness import PACK, ROOT

HERE = Path(__file__).parent
MODULES = [HERE / "contract" / f"{name}.py" for name in ("sampling", "networks", "system")]
PROMISES = [
    node.name
    for path in MODULES
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
]
CHECKING = """
import sys
sys.path.insert(0, "."); arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
sys.path.append(arguments[1])
import contract
contract.main()
"""
EXAMPLE = "diffharmony_evening.png"  # one of the pictures of the workflows

# Hooks and functions that web/js uses, on the page's own objects.
_PAGE = {
    "app.registerExtension": "typeof app.registerExtension == 'function'",
    "toast.add and toast.remove": "[toast.add, toast.remove].every((one) => one instanceof Function)",
    "api.fetchApi": "api.fetchApi instanceof Function",
    "api.addEventListener": "api.addEventListener instanceof Function",
    "widgets have values": "loader.widgets.some(({ options }) => Array.isArray(options.values))",
}
_HOOKED = """async (name) => {
    const called = new Set()
    window.app.registerExtension({
        name: "DiffHarmony.Contract",
        beforeConfigureGraph: (workflow) => called.add(`beforeConfigureGraph ${Array.isArray(workflow.nodes)}`),
        loadedGraphNode: (node) => called.add(`loadedGraphNode ${Array.isArray(node.widgets)}`),
    })
    const graph = app.graph
    graph.add(LiteGraph.createNode("LoadImage"))
    await app.loadGraphData(graph.serialize())
    return [...called].sort()
}"""


@pytest.fixture(scope="module")
def faults(host) -> dict[str, str | None]:
    return json.loads(host.script(CHECKING, str(HERE)).splitlines()[-1])


@pytest.mark.parametrize("promise", PROMISES)
def test_the_host_keeps(faults, promise):
    assert faults[promise] is None, faults[promise]


@pytest.mark.parametrize("what", _PAGE)
def test_the_page_has(tab, what):
    found = tab.page.evaluate(f"""async () => {{
        const {{ api }} = await import("/scripts/api.js")
        const {{ app }} = await import("/scripts/app.js")
        const {{ toast }} = app.extensionManager
        const loader = LiteGraph.createNode("LoadImage")
        return {_PAGE[what]}
    }}""")
    assert found is True


def test_the_page_calls_the_hooks_of_an_extension(tab):
    assert tab.page.evaluate(_HOOKED) == ["beforeConfigureGraph true", "loadedGraphNode true"]


def test_the_page_is_told_what_a_node_says(tab, host):
    """`executing` and `executed`, with the node and the `ui` of its output, by which web/js/warnings.js goes."""
    tab.page.evaluate("""async () => {
        const { api } = await import("/scripts/api.js")
        window.heard = []
        api.addEventListener("executing", ({ detail }) => window.heard.push(["executing", detail]))
        api.addEventListener("executed", ({ detail }) => window.heard.push(["executed", detail.node, detail.output]))
        const made = LiteGraph.createNode("EmptyImage")
        const saved = LiteGraph.createNode("PreviewImage")
        app.graph.add(made); app.graph.add(saved)
        made.connect(0, saved, 0)
    }""")
    tab.queue()
    heard = tab.page.evaluate("window.heard")
    assert ["executing", "2"] in heard
    assert any(said[:2] == ["executed", "2"] and "images" in said[2] for said in heard)


def test_the_server_gives_the_examples_and_the_lists_of_files(host):
    """By which web/js/example_pictures.js knows what is missing, and gets it."""
    info = host.get("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"]
    assert isinstance(info[0], list) or "options" in info[1]
    assert (
        host.read(f"/api/workflow_templates/{PACK}/pictures/{EXAMPLE}")
        == (ROOT / "workflows" / "pictures" / EXAMPLE).read_bytes()
    )

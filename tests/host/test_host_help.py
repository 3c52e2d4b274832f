"""What ComfyUI's page tells a user about the nodes, in English and in Chinese, and the blueprint."""

import shutil

import browser
import graphs
import pictures
import pytest
from harness import PACK, ROOT, Graph
from help_pages import CHINESE, DOCS, LOCALES, NODES, check_names

BLUEPRINT = ROOT / "subgraphs" / "Harmonize (DiffHarmony).json"
WAIT = 60_000  # ms, for what the page shows at once on a machine that is not busy
KNOBS = {"strength": 1.2, "light": 0.8, "color": 0.6}
EXAMPLE = ("astronaut.jpg", "astronaut_mask.png")

_SELECT = """(type) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    node.pos = [200, 200]
    app.graph.add(node)
    app.canvas.selectNode(node)
}"""

_LABELS = """(type) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    const label = (slot) => slot.label ?? slot.localized_name ?? slot.name
    return {
        title: node.title,
        slots: Object.fromEntries(node.inputs.filter((slot) => !slot.widget).map((slot) => [slot.name, label(slot)])),
        widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, label(widget)])),
        outputs: node.outputs.map(label),
    }
}"""

# Wires the blueprint's node, the one on the graph, between loaders and SaveImage.
_WIRE = """([image, mask]) => {
    const node = app.graph.nodes[0]
    const add = (type, values = {}) => {
        const made = LiteGraph.createNode(type)
        app.graph.add(made)
        for (const [name, value] of Object.entries(values))
            made.widgets.find((widget) => widget.name == name).value = value
        return made
    }
    const into = (name) => node.inputs.findIndex((slot) => slot.name == name)
    add("LoadImage", { image }).connect(0, node, into("composite"))
    add("LoadImageMask", { image: mask, channel: "red" }).connect(0, node, into("mask"))
    node.connect(0, add("SaveImage", { filename_prefix: "blueprint" }), 0)
    const inputs = node.inputs.map((slot) => slot.name)
    return { type: node.type, title: node.title, subgraph: node.isSubgraphNode(), inputs }
}"""


@pytest.fixture
def example(host):
    """The pictures of the example in the host's input folder, before the page asks for its list."""
    for name in EXAMPLE:
        shutil.copy(ROOT / "workflows" / "pictures" / name, host.input / name)


@pytest.fixture
def chinese(chromium, host):
    """The page in Chinese. The host remembers the language, so it is set back."""
    host.post("/settings", {"Comfy.Locale": "zh"})
    tab = browser.Tab(chromium, host)
    yield tab
    tab.close()
    host.post("/settings", {"Comfy.Locale": "en"})


def words_of(definition: dict) -> dict:
    """What the host says of a node, in the form of a translation.

    A socket named as its type has that type's translation.
    """
    inputs = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
    words = {"display_name": definition["display_name"], "description": definition["description"]}
    words["inputs"] = {name: {"name": name, "tooltip": settings["tooltip"]} for name, (_, settings) in inputs.items()}
    outputs = {}
    for place, (kind, name, tooltip) in enumerate(
        zip(definition["output"], definition["output_name"], definition["output_tooltips"])
    ):
        slot = {key: value for key, value in (("name", name if name != kind else None), ("tooltip", tooltip)) if value}
        if slot:
            outputs[str(place)] = slot
    return {**words, "outputs": outputs} if outputs else words


def keys(words: dict, above: str = "") -> set[str]:
    """The paths of all texts in nested dictionaries."""
    found = set()
    for key, value in words.items():
        found |= keys(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}"}
    return found


def show_help(tab, node: str) -> None:
    tab.page.evaluate(_SELECT, node)
    tab.page.get_by_test_id("info-button").first.click(timeout=WAIT)


@pytest.fixture(scope="module")
def english(host) -> dict:
    """The schemas' own words, which the page shows in English."""
    return {node: words_of(host.get(f"/object_info/{node}")[node]) for node in NODES}


def test_every_node_has_its_pages(host):
    ours = {name for name, definition in host.get("/object_info").items() if definition["category"] == "DiffHarmony"}
    assert ours == set(NODES)


@pytest.mark.parametrize("node", NODES)
def test_an_english_page_names_its_node_and_every_input_and_output(english, node):
    check_names(node, "en", english[node])


def test_the_translation_has_every_text_and_no_other(english):
    assert keys(CHINESE) == keys(english)


def test_the_host_serves_the_translation(host):
    served = host.get("/i18n")["zh"]["nodeDefs"]
    assert {node: served[node] for node in NODES} == CHINESE


def test_the_host_serves_the_pages_and_pictures(host):
    files = [path for path in DOCS.rglob("*") if path.is_file()]
    assert len(files) > len(LOCALES) * len(NODES)
    for path in files:
        place = path.relative_to(DOCS).as_posix()
        assert host.read(f"/extensions/{PACK}/docs/{place}") == path.read_bytes()


def test_the_help_panel_shows_the_page_of_every_node(tab, english):
    for node in NODES:
        show_help(tab, node)
        shown = tab.page.locator(".node-help-content")
        shown.get_by_role("heading", name=english[node]["display_name"], exact=True).wait_for(timeout=WAIT)
        assert "When something goes wrong" in shown.inner_text()
        tab.page.wait_for_function(
            "(all) => { const found = [...document.querySelectorAll('.node-help-content img')]; return found.length && "
            "found.every((one) => one.naturalWidth) }",
            timeout=WAIT,
        )
    assert not tab.errors  # a page that is not where it is looked for first is told in the console


def test_the_nodes_and_their_help_in_chinese(chinese):
    for node in NODES:
        labels, words = chinese.page.evaluate(_LABELS, node), CHINESE[node]
        assert labels["title"] == words["display_name"]
        shown = {**labels["widgets"], **labels["slots"]}
        assert {name: shown[name] for name in words["inputs"]} == {
            name: slot["name"] for name, slot in words["inputs"].items()
        }
        named = {place: slot["name"] for place, slot in words.get("outputs", {}).items() if "name" in slot}
        assert {place: labels["outputs"][int(place)] for place in named} == named
    show_help(chinese, "HarmonizeLatent")
    title = CHINESE["HarmonizeLatent"]["display_name"]
    chinese.page.locator(".node-help-content").get_by_role("heading", name=title, exact=True).wait_for(timeout=WAIT)


def test_the_blueprint_is_found_by_its_name_and_gives_what_the_nodes_give(host, example, tab):
    tab.search(BLUEPRINT.stem)
    tab.page.get_by_text("Subgraph Blueprints").first.wait_for(timeout=WAIT)
    tab.page.wait_for_timeout(1000)  # the list follows the typing a little later
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_function("() => app.graph.nodes.length == 1", timeout=WAIT)
    tab.page.mouse.click(700, 600)  # puts it down

    found = tab.page.evaluate(_WIRE, EXAMPLE)
    assert found["subgraph"] and found["title"] == BLUEPRINT.stem
    assert found["inputs"] == ["composite", "mask", *KNOBS]
    tab.change(found["type"], **KNOBS)
    (saved,) = (output["images"][0] for output in tab.queue().values())

    graph = Graph()
    composite, mask = graph("LoadImage", image=EXAMPLE[0]), graph("LoadImageMask", image=EXAMPLE[1], channel="red")
    result = graphs.colors(graph, composite[0], mask[0], weights=graphs.BUNDLED, **KNOBS)
    graph("SaveImage", images=result[0], filename_prefix="plain")
    (plain,) = (output["images"][0] for output in host.run(graph).outputs.values())
    one, other = (pictures.read(host.output / image["subfolder"] / image["filename"]) for image in (saved, plain))
    assert pictures.psnr(one, other) > 50
    # Front end 1.37's search stumbles over its own closing, now or a moment later.
    assert not [error for error in tab.errors if "onOptionSelect" not in error]

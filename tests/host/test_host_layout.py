"""Every workflow can be read when it is opened: in a window of 1600 x 1000 the page draws its words, and all of it is
in view. How it is laid out is in tests/test_workflows.py."""

import browser
import pytest
from harness import PACK, ROOT
from test_host_workflows import FILES, knows, read

VIEW = """() => {
    const { ds, canvas } = app.canvas
    const at = (value, axis) => (value + ds.offset[axis]) * ds.scale
    const boxes = app.graph.nodes.map((node) => {
        const [x, y, width, height] = node.boundingRect
        return [node.title, at(x, 0), at(y, 1), at(x + width, 0), at(y + height, 1)]
    })
    const { clientWidth: width, clientHeight: height } = canvas
    return { scale: ds.scale, hidden: app.canvas.low_quality, boxes, width, height, sizes: sizes() }
    function sizes() {
        return Object.fromEntries(app.graph.nodes.map((node) => [node.id, [...node.size]]))
    }
}"""
LOAD = "([workflow, name]) => app.loadGraphData(workflow, true, true, name, { openSource: 'template' })"


@pytest.fixture(scope="module")
def tab(chromium, host):
    tab = browser.Tab(chromium, host)
    yield tab
    tab.close()


def check(tab: browser.Tab, name: str) -> None:
    """Text is drawn, every node is within the window, and none grew beyond the size that the file says."""
    tab.page.wait_for_timeout(1500)  # pictures come in, and make their nodes as large as they need
    view = tab.page.evaluate(VIEW)
    assert not view["hidden"] and view["scale"] > 0.59, f"opens at {view['scale']:.2f}, where no text is drawn"
    out = [b for b in view["boxes"] if b[1] < 0 or b[2] < 0 or b[3] > view["width"] or b[4] > view["height"]]
    assert (view["width"], view["height"]) == (1600, 1000) and not out, out
    for node in read(name)["nodes"]:
        width, height = view["sizes"][str(node["id"])]
        assert width <= node["size"][0] + 1 and height <= node["size"][1] + 1, f"{node['type']} is {width} x {height}"


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_file_opens_in_view(tab, host, name):
    if not knows(host, name):
        pytest.skip("this host is older than the workflow's nodes")
    tab.open(ROOT / "workflows" / f"{name}.json")
    check(tab, name)


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_template_opens_in_view(tab, host, name):
    """As the template browser opens it, which does not always go by the view that is in the file."""
    if not knows(host, name):
        pytest.skip("this host is older than the workflow's nodes")
    tab.page.evaluate(LOAD, [host.get(f"/api/workflow_templates/{PACK}/{name}.json"), name])
    check(tab, name)

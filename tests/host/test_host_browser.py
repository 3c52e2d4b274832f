"""Every workflow that ships, opened in ComfyUI's own page by a headless Chromium, and run there."""

import json
import urllib.request

import browser
import pictures
import pytest
import torch
from harness import PACK, ROOT, Graph
from PIL import Image
from test_host_workflows import DESCRIBE, FILES, change, knows, only, read, workflow

PICTURES = ROOT / "workflows" / "pictures"
EXAMPLES = sorted(path.name for path in PICTURES.glob("diffharmony_*"))
NAMES = [path.stem for path in FILES]
# What is set before a run, in the page and in the API's prompt, to be quick.
SMALL = {
    "quick_start": [("HarmonizeLatent", None, {"resolution": 128})],
    "published_weights": [("HarmonizeLatent", None, {"resolution": 128})],
    "stage1_ksampler": [("DiffHarmonyConditioning", None, {"resolution": 128})],
    "generate_paste_harmonize": [
        ("PrimitiveInt", "Width", {"value": 256}),
        ("PrimitiveInt", "Height", {"value": 192}),
        ("PrimitiveInt", "x:", {"value": 4}),
        ("PrimitiveInt", "y:", {"value": 8}),
        ("KSampler", None, {"steps": 1}),
    ],
    "inpaint_harmonize": [("ImageScale", None, {"width": 192, "height": 128}), ("KSampler", None, {"steps": 1})],
    "video_frames": [],
    "relit_to_full_size": [],
}


@pytest.fixture(scope="module")
def tab(chromium, host, base, sd15):
    """One tab, in which the workflows are opened one after the other, as a person does.

    The host has all the weights.
    """
    tab = browser.Tab(chromium, host)
    yield tab
    tab.close()


@pytest.fixture(autouse=True)
def emptied(tab, host):
    """An empty input folder, and no errors yet."""
    for path in host.input.iterdir():
        if path.is_file():
            path.unlink()
    tab.errors.clear()


def examples(name: str) -> set[str]:
    """The example pictures that a workflow names."""
    return {value for node in read(name)["nodes"] for value in node.get("widgets_values", []) if value in EXAMPLES}


def saved(host, outputs: dict, node: str):
    """What an output node wrote: a picture's pixels, or what is in a video."""
    (told,) = outputs[node]["images"]
    path = host.output / told["subfolder"] / told["filename"]
    return pictures.read(path) if path.suffix == ".png" else json.loads(host.script(DESCRIBE, path))


def forget(host) -> None:
    """Empties the host's cache of results. It does so when a prompt has ended, so an empty one is run."""
    host.post("/free", {"unload_models": False, "free_memory": True})
    graph = Graph()
    host.fetch(graph, graph("SolidMask", value=0.0, width=8, height=8)[0])


def equal(one, other) -> bool:
    return pictures.psnr(one, other) > 60 if torch.is_tensor(one) else one == other


@pytest.mark.parametrize("name", SMALL)
def test_opens_and_runs(tab, host, name):
    tab.open(ROOT / "workflows" / f"{name}.json")
    assert not tab.unknown() and not tab.complaints()
    assert examples(name)
    for each in examples(name):
        assert (host.input / each).read_bytes() == (PICTURES / each).read_bytes(), (
            "the example picture did not come by itself"
        )
    graph = workflow(host, name)
    assert tab.prompt() == graph.prompt, "the page queues another prompt than the tests run"

    for type, title, values in SMALL[name]:
        tab.change(type, title, **values)
        change(graph, type, title, **values)
    assert tab.prompt() == graph.prompt
    by_page = tab.queue()
    assert not tab.complaints() and not tab.errors
    forget(host)  # or the API would be told what the page was
    by_api = host.run(graph)
    assert not by_api.cached
    save = only(graph, "SaveVideo" if name == "video_frames" else "SaveImage")
    assert equal(saved(host, by_page, save), saved(host, by_api.outputs, save))
    assert set(by_page) == set(by_api.outputs)


def test_only_newer_nodes_are_not_run():
    """What is not run here is there for the host's own models, which no test can have."""
    assert set(NAMES) - set(SMALL) == {"find_the_foreground"}


def test_find_the_foreground_says_what_is_missing(tab, host):
    """The model, or on a host that is too old the nodes."""
    tab.open(ROOT / "workflows" / "find_the_foreground.json")
    said = "\n".join(tab.complaints())
    if knows(host, "find_the_foreground"):
        assert not tab.unknown() and "birefnet.safetensors" in said, said
    else:
        assert (
            set(tab.unknown()) == {"RemoveBackground", "LoadBackgroundRemovalModel"} and "RemoveBackground" in said
        ), said
    tab.page.keyboard.press("Escape")


def test_the_example_is_what_it_was_made_of(tab, host):
    """The composite, and the mask of which it was made, to the pixel."""
    tab.open(ROOT / "workflows" / "quick_start.json")
    graph = workflow(host, "quick_start")
    outputs = [only(graph, "LoadImage"), 0], [only(graph, "LoadImageMask"), 0]
    image, mask = host.fetch(Graph(graph.prompt), *outputs)
    assert (image.movedim(-1, 1) - pictures.read(PICTURES / "astronaut.jpg")).abs().max() < 1e-6
    assert (mask[:, None] - pictures.read(PICTURES / "astronaut_mask.png")[:, :1]).abs().max() < 1e-6


def test_an_own_file_of_that_name_stays(tab, host):
    name, other = sorted(examples("quick_start"))
    pictures.write(host.input / name, torch.rand(3, 8, 8))
    mine = (host.input / name).read_bytes()
    tab.open(ROOT / "workflows" / "quick_start.json")
    assert (host.input / name).read_bytes() == mine
    assert sorted(path.name for path in host.input.iterdir() if path.is_file()) == [name, other]
    assert not tab.complaints() and not tab.errors


def test_a_picture_of_another_name_is_not_asked_for(tab, host, tmp_path):
    """A user's own picture that is missing stays missing, and is called so where the page does that."""
    content = json.dumps(read("quick_start")).replace("diffharmony_astronaut", "mine")
    (tmp_path / "mine.json").write_text(content)
    tab.open(tmp_path / "mine.json")
    assert not [path for path in host.input.iterdir() if path.is_file()]
    tab.page.evaluate("app.graph.clear()")


def test_every_example_picture_is_brought():
    """The script's list is that of the files, and every file is in a workflow."""
    script = (ROOT / "web" / "js" / "example_pictures.js").read_text(encoding="utf-8")
    assert EXAMPLES and all(f'"{name}"' in script for name in EXAMPLES)
    assert script.count('"diffharmony_') == len(EXAMPLES)
    assert set().union(*map(examples, NAMES)) == set(EXAMPLES)


def test_templates(host):
    """The template browser has every workflow, with a picture of its result."""
    assert sorted(host.get("/workflow_templates")[PACK]) == NAMES
    for name in NAMES:
        assert host.get(f"/api/workflow_templates/{PACK}/{name}.json") == read(name)
        with urllib.request.urlopen(f"{host.address}/api/workflow_templates/{PACK}/{name}.jpg", timeout=60) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
        path = ROOT / "workflows" / f"{name}.jpg"
        assert path.stat().st_size < 60_000
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and 400 <= max(picture.size) <= 600

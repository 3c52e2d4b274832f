"""The classic mistakes with a mask: the nodes run, say what is probably wrong, and the page shows it where the person
looks.
"""

import graphs
import pictures
import pytest
import torch
from graphs import BUNDLED, pick, wires
from harness import ROOT, Graph

HEIGHT, WIDTH = 96, 128
KEY = "diffharmony_warnings"
EXAMPLE = ("diffharmony_astronaut.jpg", "diffharmony_astronaut_mask.png")


def stage1(graph: Graph, shared: dict):
    settings = {"seed": 0, "steps": 1, "sampler_name": "euler", "scheduler": "normal", "shape": "keep proportions"}
    inputs = pick(shared, "model", "vae", "null_text", "composite", "mask")
    return graph("HarmonizeLatent", **inputs, resolution=64, **settings)


def conditioning(graph: Graph, shared: dict):
    return graphs.condition(graph, shared, 64)


def refining(graph: Graph, shared: dict):
    settings = {"strength": 1.0, "keep_background": True, "feather": 0}
    inputs = pick(shared, "refiner", "composite", "mask")
    return graph("RefineResidual", **inputs, harmonized=shared["composite"], **settings)


def transfer(graph: Graph, shared: dict):
    settings = {"radius": 12, "detail": 1.0, "feather": 0}
    return graph(
        "TransferToFullResolution", **pick(shared, "composite", "mask"), harmonized=shared["composite"], **settings
    )


def recoloring(graph: Graph, shared: dict):
    return graphs.colors(graph, shared["composite"], shared["mask"])


STAGES = (stage1, conditioning, refining, transfer, recoloring)
pytestmark = pytest.mark.usefixtures("regressor")


def said(host, composite: torch.Tensor, mask: torch.Tensor, stage) -> list[str]:
    """What a node tells the page of a mask."""
    graph, shared = wires(host, BUNDLED, composite, mask)
    node = stage(graph, shared)
    graph("TestSave", value=node[2 if stage is conditioning else 0], file="warned")
    return host.run(graph).outputs.get(node.identity, {}).get(KEY, [])


def dot(mask: torch.Tensor) -> torch.Tensor:
    single = torch.zeros_like(mask)
    single[..., 40, 60] = 1
    return single


def thing(mask: torch.Tensor) -> torch.Tensor:
    """Most of the picture, and along one of its edges: a large foreground, as in a portrait."""
    large = torch.zeros_like(mask)
    large[..., 10:, 10:-10] = 1
    return large


# The mask that a person gives, of the one that would be right; and words of what is said, none where it is right.
MASKS = {
    "right": (lambda mask: mask, None),
    "large": (thing, None),
    "soft": (lambda mask: torch.nn.functional.avg_pool2d(mask, 9, 1, 4), None),
    "white": (torch.ones_like, "white all over"),
    "inverted": (lambda mask: 1 - mask, "Invert Mask"),
    "empty": (torch.zeros_like, "The mask is empty"),
    "grey": (lambda mask: mask * 0.4, "The mask is empty"),
    "one pixel": (dot, "1 of 12288 pixels"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", MASKS)
def test_a_doubtful_mask_is_named(host, case, stage):
    make, words = MASKS[case]
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    found = said(host, composite, make(mask), stage)
    assert len(found) == (words is not None), found
    assert words is None or words in found[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_frame_without_the_foreground_is_no_mistake(host, stage):
    composite, mask = pictures.composites(2, HEIGHT, WIDTH)
    mask[0] = 0
    assert said(host, composite, mask, stage) == []


@pytest.mark.parametrize("stage", [stage1, conditioning])
def test_a_foreground_that_the_model_cannot_see(host, stage):
    composite, mask = pictures.composites(1, 2048, 2048)
    small = torch.zeros_like(mask)
    small[..., 1000:1020, 1000:1020] = 1
    (found,) = said(host, composite, small, stage)
    assert "too small to be seen at 64x64" in found and "higher resolution" in found


def lay(host, mask: torch.Tensor) -> None:
    """The composite and this mask, where the workflow looks for them."""
    composite, _ = pictures.composites(1, HEIGHT, WIDTH)
    for name, picture in zip(EXAMPLE, (composite[0], mask[0])):
        pictures.write(host.input / name, picture)


def test_the_page_shows_a_doubt_until_it_is_settled(host, tab):
    """One message, though several nodes have the mask; it outlasts runs that change nothing, and goes when the mask is
    right.
    """
    _, mask = pictures.composites(1, HEIGHT, WIDTH)
    lay(host, 1 - mask)
    tab.open(ROOT / "workflows" / "quick_start.json")
    tab.change("HarmonizeLatent", resolution=64)
    tab.queue()
    (message,) = tab.messages()
    assert "DiffHarmony" in message and "Invert Mask" in message
    tab.change("TransferToFullResolution", radius=7)  # stage 1 is not run again, and its doubt still holds
    tab.queue()
    assert tab.messages() == [message]
    lay(host, mask)
    tab.queue()
    assert tab.messages() == [] and not tab.errors

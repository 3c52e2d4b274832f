"""The masks that people have: from a cut-out, the mask editor, a segmentation; soft, empty, none at all."""

import numpy as np
import pictures
import pytest
import torch
from harness import Failed, Graph
from scenes import HEIGHT, WIDTH, chain, check, given, loaded, scene


def test_a_cut_outs_mask_that_nobody_inverted(host):
    """It works, as its mask says; the log names the node that is missing."""
    scenery, matte = scene()
    scenery.putalpha(matte)
    graph = Graph()
    composite, mask = loaded(host, graph, "not inverted.png", scenery.save)
    before = len(host.said())
    check(host, graph, composite, mask, chain(graph, composite, mask))
    assert "Invert Mask" in host.said()[before:]

    before = len(host.said())
    inverted = graph("InvertMask", mask=mask)[0]
    check(host, graph, composite, inverted, chain(graph, composite, inverted))
    assert "Invert Mask" not in host.said()[before:]


def test_a_mask_from_the_mask_editor(host):
    """The editor saves the picture anew, transparent where it was painted, in a folder of its own."""
    scenery, matte = scene()
    scenery.putalpha(matte.point(lambda value: 255 - value))
    graph = Graph()
    file = "clipspace/clipspace-painted-masked-1.png"
    composite, mask = loaded(host, graph, file, scenery.save)
    graph.prompt[composite[0]]["inputs"]["image"] = f"{file} [input]"
    found = check(host, graph, composite, mask, chain(graph, composite, mask))
    assert np.array_equal(found[0].numpy() * 255, np.asarray(matte))


# The same mask as segmentation nodes give it.
KINDS = {
    "[B, 1, H, W]": lambda mask: mask[:, None],
    "[H, W]": lambda mask: mask[0],
    "bool": lambda mask: mask > 0.5,
    "half": lambda mask: mask.half(),
    "bytes of 0 and 1": lambda mask: mask.to(torch.uint8),
    "a little outside [0, 1]": lambda mask: mask * 1.2 - 0.1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_from_a_segmentation_node(host, kind):
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    mask = pictures.mask(mask)
    graph = Graph()
    image = given(host, graph, pictures.image(composite))
    plain, other = (chain(graph, image, given(host, graph, value)) for value in (mask, KINDS[kind](mask)))
    expected, found = host.fetch(graph, plain, other)
    assert torch.equal(found, expected) and not torch.equal(found, pictures.image(composite))


def test_soft_edges_blend(host):
    composite, mask = pictures.composites(1, HEIGHT, WIDTH)
    soft = torch.nn.functional.avg_pool2d(mask, 9, 1, 4)[:, 0]
    graph = Graph()
    image, matte = given(host, graph, pictures.image(composite)), given(host, graph, soft)
    result = chain(graph, image, matte)
    check(host, graph, image, matte, result)
    found = host.fetch(graph, result)[0]
    change = (found - pictures.image(composite)).abs().mean(-1)
    assert change[(soft > 0) & (soft < 0.3)].mean() < 0.6 * change[soft > 0.7].mean()


@pytest.mark.parametrize("level", [1, 2])
def test_a_mask_one_level_off_is_empty_there(host, level):
    """Newer hosts read the opaque alpha of a lossy WebP as 254: the background stays bit for bit all the same."""
    composite, mask = pictures.composites()
    graph = Graph()
    picture, matte, darker = (
        given(host, graph, value)
        for value in (
            pictures.image(composite),
            pictures.mask(mask.clamp(min=level / 255)),
            pictures.image(composite / 2),
        )
    )
    inputs = {"harmonized": darker, "composite": picture, "mask": matte}
    (result,) = host.fetch(graph, graph("TransferToFullResolution", **inputs, radius=12, detail=0.0, feather=0)[0])
    outside = mask[:, 0] == 0
    assert torch.equal(result[outside], pictures.image(composite)[outside]) == (level == 1)


@pytest.mark.parametrize("height, width", [(HEIGHT, WIDTH), (128, 128)])
def test_no_mask_drawn(host, height, width):
    """The empty mask that Load Image makes up is no empty mask of a square picture."""
    graph = Graph()
    composite, mask = loaded(host, graph, f"no mask {width}x{height}.png", scene(height, width)[0].save)
    with pytest.raises(Failed, match=r"(?s)no mask is drawn.*Open in Mask Editor.*Load Image \(as Mask\)") as failure:
        host.fetch(graph, chain(graph, composite, mask))
    assert failure.value.node == "HarmonizeLatent"


def test_an_empty_mask_of_the_pictures_own_size(host):
    """Also where that is the size of the mask that Load Image makes up."""
    graph = Graph()
    composite, mask = loaded(host, graph, "small.png", scene(64, 64)[0].save)
    image, found = host.fetch(graph, composite, chain(graph, composite, mask))
    assert torch.equal(found, image)

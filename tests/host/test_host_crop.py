"""HarmonizeCrop and HarmonizeStitch around HarmonizeColors: what the engine does in a window."""

import pictures
import pytest
import torch
from graphs import colors
from harness import Failed, Graph

from diffharmony_models import crop, recolor


def small_ones(count: int) -> torch.Tensor:
    masks = torch.zeros(count, 1, 200, 300)
    for index in range(count):
        masks[index, :, 40 + 30 * index : 60 + 30 * index, 50 + 90 * index : 80 + 90 * index] = 1
        masks[index, :, 40 + 30 * index] *= 0.5
    return masks


def cropped(host, composite: torch.Tensor, mask: torch.Tensor, size: int = 0):
    graph = Graph()
    inputs = {"composite": pictures.image(composite), "mask": pictures.mask(mask)}
    wired = {name: graph("TestLoad", file=host.give(value=value), kind="tensor")[0] for name, value in inputs.items()}
    return graph, graph("HarmonizeCrop", **wired, context=2.0, size=size)


def stitched(graph: Graph, cut, harmonized: list | None = None):
    harmonized = harmonized or colors(graph, cut[0], cut[1])[0]
    return graph("HarmonizeStitch", crop=cut[2], harmonized=harmonized)[0]


@pytest.mark.parametrize("foregrounds", [1, 2])
def test_each_foreground_is_harmonized_in_a_window_of_its_own(host, regressor, foregrounds):
    composite, _ = pictures.composites(1, 200, 300)
    masks = small_ones(foregrounds)
    graph, cut = cropped(host, composite, masks)
    crops, inside, found = host.fetch(graph, cut[0], cut[1], stitched(graph, cut))
    assert crops.shape == (foregrounds, 64, 64, 3) and inside.shape == (foregrounds, 64, 64)
    expected = crop.one_after_another(lambda *pair: recolor.harmonize(regressor, *pair)[0], composite, masks, 2.0)
    assert (found.movedim(-1, 1) - expected).abs().max() <= 1e-5
    outside = (masks.amax(0, keepdim=True) == 0).expand_as(composite)
    assert torch.equal(found.movedim(-1, 1)[outside], composite[outside])
    assert not torch.equal(found.movedim(-1, 1), composite)


def test_a_scaled_crop_goes_back_at_the_pictures_size(host, regressor):
    composite, masks = pictures.composites(2, 200, 300)[0], small_ones(2)
    graph, cut = cropped(host, composite, masks, size=128)
    crops, back = host.fetch(graph, cut[0], stitched(graph, cut, cut[0]))
    assert crops.shape == (2, 128, 128, 3) and back.shape == (2, 200, 300, 3)
    assert pictures.psnr(back.movedim(-1, 1), composite) > 40
    outside = (masks == 0).expand_as(composite)
    assert torch.equal(back.movedim(-1, 1)[outside], composite[outside])


def test_a_lost_crop_is_named(host, regressor):
    composite, masks = pictures.composites(1, 200, 300)[0], small_ones(2)
    graph, cut = cropped(host, composite, masks)
    other = graph("TestLoad", file=host.give(value=torch.rand(3, 64, 64, 3)), kind="tensor")[0]
    with pytest.raises(Failed, match="3 harmonized crops came with 2 windows"):
        host.fetch(graph, stitched(graph, cut, other))
    with pytest.raises(Failed, match="Wire the crop of HarmonizeCrop"):
        host.fetch(graph, graph("HarmonizeStitch", crop=other, harmonized=other)[0])

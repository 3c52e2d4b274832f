"""SaveColorLUT, and the alignment of TransferToFullResolution."""

import pictures
import pytest
import torch
from graphs import colors
from harness import Failed, Graph

from diffharmony_models import lut, recolor, transfer
from diffharmony_models.align import align


def given(host, composite: torch.Tensor, mask: torch.Tensor) -> tuple[Graph, list, list]:
    graph = Graph()
    values = (pictures.image(composite), pictures.mask(mask))
    return graph, *(graph("TestLoad", file=host.give(value=value), kind="tensor")[0] for value in values)


def carried(graph: Graph, harmonized: list, composite: list, mask: list, **more):
    settings = {"radius": 12, "detail": 1.0, "feather": 0, **more}
    return graph("TransferToFullResolution", harmonized=harmonized, composite=composite, mask=mask, **settings)


def table(path) -> torch.Tensor:
    rows = [line.split() for line in path.read_text().splitlines() if line[0].isdigit()]
    return torch.tensor([[float(value) for value in row] for row in rows]).view(33, 33, 33, 3)


def test_the_file_has_the_engines_table(host, regressor):
    composite, mask = pictures.composites(2)
    mask[1] = 0  # a frame without a foreground has no file
    graph, image, matte = given(host, composite, mask)
    node = graph("SaveColorLUT", colors=colors(graph, image, matte)[1], filename_prefix="looks/dusk")
    outputs = host.run(graph).outputs[node.identity]
    (path,) = (host.output / "looks").glob("*.cube")
    assert path.name == "dusk_00001_.cube" and outputs["text"][0].startswith("dusk_00001_.cube: the change is ΔE")
    change = recolor.predict(regressor, composite[:1], mask[:1])
    assert (table(path) - lut.table(lut.curve_of(change, mask[:1]))).abs().max() < 1e-4


def test_the_transfers_change_is_saved_too(host):
    composite, mask = pictures.composites()
    graph, image, matte = given(host, composite, mask)
    harmonized = graph("TestLoad", file=host.give(value=pictures.image(composite * 0.7)), kind="tensor")[0]
    graph("SaveColorLUT", colors=carried(graph, harmonized, image, matte)[1], filename_prefix="fitted")
    host.run(graph)
    (path,) = host.output.glob("fitted*.cube")
    inside = (mask == 1).expand_as(composite)
    assert (lut.apply(table(path), composite) - composite * 0.7)[inside].abs().mean() < 0.01


def test_what_is_no_change_of_colour_is_named(host):
    graph, image, _ = given(host, *pictures.composites())
    graph("SaveColorLUT", colors=image, filename_prefix="none")
    with pytest.raises(Failed, match="got no colors, but Tensor"):
        host.run(graph)


def test_align_follows_a_shifted_picture(host):
    composite, mask = pictures.composites(1, 192, 256)
    shifted = (composite * 0.7).roll((3, -4), (2, 3))
    graph, image, matte = given(host, composite, mask)
    harmonized = graph("TestLoad", file=host.give(value=pictures.image(shifted)), kind="tensor")[0]
    nodes = [carried(graph, harmonized, image, matte, **more)[0] for more in ({}, {"align": False}, {"align": True})]
    plain, off, on = (found.movedim(-1, 1) for found in host.fetch(graph, *nodes))
    assert torch.equal(plain, off)
    assert (plain - transfer.transfer(shifted, composite, mask)).abs().max() <= 1e-4
    laid, seen, (fit,) = align(shifted, composite)
    assert (on - transfer.transfer(laid, composite, mask, seen=seen)).abs().max() <= 1e-3
    assert fit.shift == pytest.approx((-4, 3), abs=0.3)
    inside = mask.expand_as(composite) == 1
    assert (on - composite * 0.7)[inside].abs().mean() < 0.5 * (plain - composite * 0.7)[inside].abs().mean()

"""The endings' amounts, and several harmonized pictures of one composite."""

import pictures
import pytest
import torch
from graphs import BUNDLED, pick, wires
from harness import Failed

from diffharmony_models import recolor, transfer

SETTINGS = {"radius": 12, "detail": 1.0, "feather": 3}
VARIANTS = 3


def others(composite: torch.Tensor, count: int = VARIANTS) -> torch.Tensor:
    """So many pictures that could be the composite harmonized, [count, 3, H, W]."""
    gains = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.5
    return composite[:1] * gains


def given(host, graph, value: torch.Tensor) -> list:
    return graph("TestLoad", file=host.give(value=pictures.image(value)), kind="tensor")[0]


def carried(graph, shared: dict, harmonized: list, **amounts: float) -> list:
    inputs = pick(shared, "composite", "mask")
    return graph("TransferToFullResolution", harmonized=harmonized, **inputs, **SETTINGS, **amounts)[0]


def refined(graph, shared: dict, harmonized: list) -> list:
    settings = {"strength": 1.0, "keep_background": True, "feather": 0}
    inputs = pick(shared, "refiner", "composite", "mask")
    return graph("RefineResidual", harmonized=harmonized, **inputs, **settings)[0]


def test_the_transfers_amounts(host):
    """All 1: to the bit as without them; 0: the composite to the bit; between and beyond as the engine mixes."""
    composite, mask = pictures.composites()
    other = others(composite, 1)
    graph, shared = wires(host, BUNDLED, composite, mask)
    harmonized = given(host, graph, other)
    some = {"strength": 1.4, "light": 0.6, "color": 1.2}
    each = [{}, {"strength": 1.0, "light": 1.0, "color": 1.0}, {"strength": 0.0}, some]
    plain, ones, none, mixed = host.fetch(graph, *(carried(graph, shared, harmonized, **amounts) for amounts in each))
    assert torch.equal(plain, ones) and torch.equal(none, pictures.image(composite))
    changed = transfer.transfer(other, composite, mask, **SETTINGS)
    expected = recolor.mixed(composite, changed, recolor.Amounts(**some))
    assert (mixed.movedim(-1, 1) - expected).abs().max() <= 1e-4
    assert (mixed - plain).abs().max() > 0.02
    outside = mask[:, 0] == 0
    assert torch.equal(mixed[outside], pictures.image(composite)[outside])


@pytest.mark.parametrize("ending", [carried, refined])
def test_several_harmonized_pictures_go_with_one_composite(host, ending):
    composite, mask = pictures.composites()
    variants = others(composite)
    graph, shared = wires(host, BUNDLED, composite, mask)
    together = ending(graph, shared, given(host, graph, variants))
    alone = [ending(graph, shared, given(host, graph, one)) for one in variants.split(1)]
    together, *alone = host.fetch(graph, together, *alone)
    assert together.shape == (VARIANTS, *alone[0].shape[1:]) and torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("ending", [carried, refined])
def test_an_empty_mask_gives_the_composite_for_every_variant(host, ending):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, torch.zeros_like(mask))
    (found,) = host.fetch(graph, ending(graph, shared, given(host, graph, others(composite))))
    assert torch.equal(found, pictures.image(composite).expand(VARIANTS, -1, -1, -1))


@pytest.mark.parametrize("ending", [carried, refined])
def test_other_counts_are_refused(host, ending):
    composite, mask = pictures.composites(2)
    graph, shared = wires(host, BUNDLED, composite, mask)
    with pytest.raises(Failed, match=r"3 harmonized images came with 2 composites.*one composite for all"):
        host.fetch(graph, ending(graph, shared, given(host, graph, others(composite))))

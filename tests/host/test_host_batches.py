"""Batches in the host: a frame does not depend on its neighbours, and one without a foreground comes back as it was."""

import pictures
import pytest
import torch
from graphs import BUNDLED, LATENT, SEED, STEPS, decode, harmonize, pick, wires

from diffharmony_models.settings import Settings


def frames(host, composite, mask, resolution=64, **changes) -> torch.Tensor:
    graph, shared = wires(host, BUNDLED, composite, mask)
    return host.fetch(graph, harmonize(graph, shared, resolution, **changes))[0]


@pytest.mark.parametrize("masks", ["one mask", "as many masks"])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_frame_of_a_batch_is_what_it_is_alone(host, batch, masks):
    composite, mask = pictures.composites(batch)
    mask = mask[:1] if masks == "one mask" else mask
    together = frames(host, composite, mask)
    assert len(together) == batch
    for index in {0, batch - 1}:
        alone = frames(host, composite[index : index + 1], mask[index % len(mask)][None], seed=SEED + index)
        assert (together[index : index + 1] - alone).abs().max() <= LATENT


def test_a_batch_is_the_engines(host, bundled):
    composite, mask = pictures.composites(3)
    seeds = [SEED, SEED + 1, SEED + 2]
    expected = bundled.harmonize_latents(composite, mask, Settings(resolution=64, steps=STEPS), seeds=seeds)
    assert (frames(host, composite, mask) - expected / bundled.vae.config.scaling_factor).abs().max() <= LATENT


def test_fixed_noise_is_the_same_for_all_frames(host):
    composite, mask = pictures.composites(1)
    composite, mask = composite.repeat(3, 1, 1, 1), mask.repeat(3, 1, 1, 1)
    fixed = frames(host, composite, mask, fixed_noise=True)
    assert (fixed - fixed[:1]).abs().max() <= LATENT
    free = frames(host, composite, mask)
    assert (free[0] - fixed[0]).abs().max() <= LATENT
    assert (free[1] - free[0]).abs().max() > 100 * LATENT


def test_an_empty_mask_gives_its_frame_back(host):
    composite, mask = pictures.composites(3)
    mask[1] = 0
    graph, shared = wires(host, BUNDLED, composite, mask)
    latent = harmonize(graph, shared, 64)
    harmonized = decode(graph, shared, latent)
    inputs = pick(shared, "composite", "mask", "refiner")
    carried = graph(
        "TransferToFullResolution",
        harmonized=harmonized,
        **pick(shared, "composite", "mask"),
        radius=12,
        detail=1.0,
        feather=0,
    )
    refined = graph("RefineResidual", harmonized=harmonized, **inputs, strength=1.0, keep_background=False, feather=0)
    latents, *found = host.fetch(graph, latent, carried[0], refined[0])
    for each in found:
        assert torch.equal(each[1], pictures.image(composite)[1])
        assert not torch.equal(each[0], pictures.image(composite)[0])
    alone = frames(host, composite[2:], mask[2:], seed=SEED + 2)
    assert (latents[2:] - alone).abs().max() <= LATENT


def test_nothing_but_empty_masks(host):
    composite, mask = pictures.composites(2)
    graph, shared = wires(host, BUNDLED, composite, torch.zeros_like(mask))
    harmonized = decode(graph, shared, harmonize(graph, shared, 64))
    inputs = pick(shared, "composite", "mask")
    carried = graph("TransferToFullResolution", harmonized=harmonized, **inputs, radius=12, detail=1.0, feather=0)
    assert torch.equal(host.fetch(graph, carried[0])[0], pictures.image(composite))

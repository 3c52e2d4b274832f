"""What comes out of the whole flow, by each ending."""

import pytest
import torch
from tiny_pipeline import pair, tiny

from diffharmony_models import geometry
from diffharmony_models.endings import ENDINGS
from diffharmony_models.recolor import Amounts
from diffharmony_models.settings import DECODERS, Settings


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("batch_of_masks", [1, 2])
def test_the_background_is_bit_for_bit_the_composites(engine, ending, batch_of_masks):
    composite, mask = pair(2)
    before = composite.clone(), mask.clone()
    result = engine(composite, mask[:batch_of_masks], Settings(ending=ending, feather=2))
    outside = (mask == 0).expand_as(composite)
    assert torch.equal(result.refined[outside], composite[outside])
    assert not torch.equal(result.refined, composite)
    assert result.refined.shape == composite.shape and result.harmonized.shape == (2, 3, 64, 64)
    assert result.refined.dtype == torch.float32 and not result.refined.is_inference()
    assert result.refined.min() >= 0 and result.refined.max() <= 1
    assert torch.equal(composite, before[0]) and torch.equal(mask, before[1])


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_mask_gives_the_composite_back_frame_by_frame(ending):
    engine, calls = tiny(), []
    engine.unet.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    composite, mask = pair(3)
    mask[1] = 0
    result = engine(composite, mask, Settings(ending=ending))
    assert torch.equal(result.refined[1], composite[1])
    assert not torch.equal(result.refined[0], composite[0]) and not torch.equal(result.refined[2], composite[2])
    assert calls == [2] * 5  # guidance scale 1: one call a step, and only for the frames that have a foreground
    assert torch.equal(engine(composite, torch.zeros(1, 1, 60, 52), Settings(ending=ending)).refined, composite)
    assert calls == [2] * 5


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [(30, 26), (75, 65)])
def test_output_size(engine, ending, size):
    composite, mask = pair()
    result = engine(composite, mask, Settings(ending=ending), output_size=size)
    background = geometry.resize(mask, size) == 0
    resized = geometry.resize(composite, size)
    assert result.refined.shape[-2:] == size
    assert torch.equal(result.refined[background.expand_as(resized)], resized[background.expand_as(resized)])


def test_refining_makes_a_difference_and_can_be_left_out(engine):
    composite, mask = pair()
    refined, plain = (engine(composite, mask, Settings(ending=ending)) for ending in ("paper", "none"))
    assert torch.equal(refined.harmonized, plain.harmonized)
    assert not torch.equal(refined.refined, plain.refined)
    expected = geometry.paste(geometry.resize(plain.harmonized, (60, 52)), composite, mask)
    torch.testing.assert_close(plain.refined, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_stages_one_by_one_make_what_the_call_makes(engine, ending, decoder):
    composite, mask = pair(2)
    settings = Settings(seed=1, ending=ending, feather=1, amounts=Amounts(strength=0.7), decoder=decoder)
    result = engine(composite, mask, settings)
    latents = engine.harmonize_latents(composite, mask, settings)
    refined = engine.finish(result.harmonized, composite, mask, settings)
    assert torch.allclose(refined, result.refined, atol=1e-4)  # batches of other sizes are summed in another order
    if decoder == "vae":  # a call draws the Harmony-VAE's condition
        assert torch.equal(engine.decode(latents), result.harmonized)


def test_square_and_keep_sizes(engine):
    composite, mask = pair(1, 60, 120)
    assert engine(composite, mask, Settings(resolution=128)).harmonized.shape[-2:] == (64, 192)
    assert engine(composite, mask, Settings(resolution=128, shape="square")).harmonized.shape[-2:] == (128, 128)


def test_nothing_is_computed_twice():
    engine, encodings = tiny(), []
    engine.vae.encoder.register_forward_hook(lambda *_: encodings.append(1))
    engine(*pair(), Settings(steps=3, ending="paper"))
    assert len(encodings) == 1


def test_progress_counts_to_its_end(engine):
    for mask in (pair()[1], torch.zeros(1, 1, 60, 52)):
        seen = []
        engine(pair()[0], mask, Settings(steps=2), progress=lambda *done, seen=seen: seen.append(done))
        assert seen[-1] == (5, 5) and seen == sorted(set(seen))


def test_amounts_apply_to_every_ending(engine):
    """0 gives the composite to the bit, 1 the whole change, above 1 goes on."""
    composite, mask = pair()
    for ending in ENDINGS:
        whole, none, half, more = (
            engine(composite, mask, Settings(ending=ending, amounts=Amounts(strength=strength))).refined
            for strength in (1, 0, 0.5, 1.5)
        )
        assert torch.equal(none, composite)
        torch.testing.assert_close(half, (whole + composite) / 2)
        assert (more - composite).abs().mean() > 1.2 * (whole - composite).abs().mean()


@pytest.mark.parametrize("ending", ["paper", "none"])
def test_the_background_can_be_what_the_decoder_made(engine, ending):
    composite, mask = pair()
    kept, whole = (
        engine(composite, mask, Settings(ending=ending, keep_background=keep)).refined for keep in (True, False)
    )
    inside = (mask == 1).expand_as(composite)
    torch.testing.assert_close(kept[inside], whole[inside])
    assert ((whole - composite).abs()[~inside] > 0.01).float().mean() > 0.5


def test_radius_and_detail_are_those_of_the_transfer(engine):
    composite, mask = pair()
    made = [engine(composite, mask, Settings(**options)).refined for options in ({}, {"radius": 3}, {"detail": 0.0})]
    decoded = engine(composite, mask, Settings(ending="none")).refined
    assert not torch.equal(made[0], made[1])
    torch.testing.assert_close(made[2], decoded, atol=1e-5, rtol=0)

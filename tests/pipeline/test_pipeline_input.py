"""Bad settings, missing parts, broken weights; devices and dtypes."""

import pytest
import torch
from tiny_pipeline import pair, tiny

from diffharmony_models.devices import default_dtype
from diffharmony_models.settings import Settings


def test_sizes_that_differ(engine):
    composite, mask = pair()
    with pytest.raises(ValueError, match=r"Image and mask must be the same size\. 52x60 != 52x59"):
        engine(composite, mask[..., :59, :])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampler": "heun"}, "heun"),
        ({"ending": "photo"}, "photo"),
        ({"method": "paint"}, "paint"),
        ({"decoder": "taesd"}, "taesd"),
        ({"steps": -1}, "at least 1 step"),
        ({"shape": "stretch"}, "stretch"),
        ({"resolution": 63}, "too small"),
    ],
)
def test_unknown_options(engine, options, words):
    with pytest.raises(ValueError, match=words):
        engine(*pair(), Settings(**options))


@pytest.mark.parametrize(
    "missing, words",
    [
        ("unet", "has no UNet"),
        ("null_text", "has no null text"),
        ("refiner", "has no refiner.*ending transfer or none"),
        ("harmony_vae", "has no Harmony-VAE"),
    ],
)
def test_a_missing_part_is_named_with_what_to_do(missing, words):
    engine = tiny(**{missing: None})
    with pytest.raises(ValueError, match=words):
        engine(*pair(), Settings(decoder="harmony_vae" if missing == "harmony_vae" else "vae", ending="paper"))


def test_the_transfer_ending_needs_no_refiner():
    composite, mask = pair()
    with_one, without = (tiny(**parts)(composite, mask, Settings(seed=3)).refined for parts in ({}, {"refiner": None}))
    assert torch.equal(with_one, without)


def test_a_harmony_vae_can_stand_in_for_the_vae():
    composite, mask = pair()
    result = tiny(vae=None)(composite, mask)
    assert torch.equal(result.refined, tiny()(composite, mask, Settings(decoder="harmony_vae")).refined)
    with pytest.raises(ValueError, match="has no VAE"):
        tiny(vae=None, harmony_vae=None)(*pair())


def test_another_unet_is_refused():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(in_channels=4, block_out_channels=(32, 32, 32, 32))
    with pytest.raises(ValueError, match="4 input channels; harmonization needs 9"):
        tiny(unet=unet)
    with pytest.raises(ValueError, match="flow"):
        tiny(prediction_type="flow")


@pytest.mark.parametrize(
    "part, tensor", [("unet", "conv_out.bias"), ("vae", "decoder.conv_out.bias"), ("refiner", "conv_out.bias")]
)
def test_nan_is_told_in_words(part, tensor):
    engine = tiny()
    getattr(engine, part).get_parameter(tensor).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaN.*--dtype float32"):
        engine(*pair(), Settings(ending="paper"))


def test_default_dtype_follows_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert default_dtype("cpu") == torch.bfloat16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert default_dtype("cpu") == torch.float32
    assert default_dtype("mps") == torch.float32


def test_bfloat16_stays_near_float32(engine):
    composite, mask = pair()
    exact = engine(composite, mask, Settings(ending="paper")).refined
    half = tiny()
    for part in (half.unet, half.vae, half.refiner, half.harmony_vae):
        part.to(torch.bfloat16)
    rough = half(composite, mask, Settings(ending="paper")).refined
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.05


def test_latents_can_be_trained_on(engine):
    latents = engine.harmonize_latents(*pair())
    weight = torch.ones(1, requires_grad=True)
    (latents * weight).square().sum().backward()
    assert weight.grad is not None

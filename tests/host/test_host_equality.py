"""The nodes in the host against the engine with the same noise, at both endings and in every precision."""

import os

import pictures
import pytest
import torch
import weights
from graphs import BUNDLED, LATENT, SEED, STEPS, decode, engine, harmonize, pick, wires

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.pipeline import DiffHarmony
from diffharmony_models.settings import Settings

DECODED = 50  # dB


def compare(
    host,
    name: str,
    ours: DiffHarmony,
    resolution: int,
    sampler: str = "euler_ancestral",
    shape: str = "keep proportions",
) -> None:
    composite, mask = pictures.composites()
    graph, shared = wires(host, name, composite, mask)
    latent = harmonize(graph, shared, resolution, sampler_name=sampler, shape=shape)
    latents, decoded = host.fetch(graph, latent, decode(graph, shared, latent))
    settings = {"resolution": resolution, "shape": "square" if shape == "square" else "keep", "steps": STEPS}
    expected = ours.harmonize_latents(composite, mask, Settings(seed=SEED, sampler=sampler, **settings))
    assert latents.shape == expected.shape
    assert (latents - expected / ours.vae.config.scaling_factor).abs().max() <= LATENT
    assert pictures.psnr(decoded.movedim(-1, 1), ours.decode(expected)) >= DECODED


@pytest.mark.parametrize("shape", ["keep proportions", "square"])
@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_the_bundled_checkpoint(host, bundled, sampler, shape):
    assert bundled.prediction_type == "sample"  # the golden weights have epsilon
    compare(host, BUNDLED, bundled, 128, sampler, shape)


def test_the_golden_weights(host, golden_dir):
    link = host.models / "diffharmony" / "golden"
    link.symlink_to(golden_dir, target_is_directory=True)
    try:
        compare(host, "golden", engine(golden_dir), 64)
    finally:
        link.unlink()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_whatever_the_unet_predicts(host, prediction_type):
    content = weights.whole()
    content.prediction_type = prediction_type
    path = host.models / "diffharmony" / f"{prediction_type}.safetensors"
    checkpoints.write(content, path)
    compare(host, path.name, engine(path), 64)


@pytest.mark.skipif(
    os.environ.get("DIFFHARMONY_FULL_SIZE") != "1",
    reason="set DIFFHARMONY_FULL_SIZE=1 to compare full-size weights (10 GB of memory)",
)
def test_full_size_weights(host):
    folder = host.models / "diffharmony" / "full"
    settings = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "attention_head_dim": 8}
    weights.published(folder, weights.unet(cross_attention_dim=768, **settings), width=768)
    compare(host, "full/base", engine(folder / "base"), 128)


@pytest.mark.parametrize("weight_dtype", ["default", "fp32", "bf16", "fp16"])
def test_every_precision(host, bundled, weight_dtype):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, mask)
    graph.prompt[shared["model"][0]]["inputs"]["weight_dtype"] = weight_dtype
    latent = harmonize(graph, shared, 64)
    (decoded,) = host.fetch(graph, decode(graph, shared, latent))
    latents = bundled.harmonize_latents(composite, mask, Settings(seed=SEED, resolution=64, steps=STEPS))
    expected = bundled.decode(latents)
    assert pictures.psnr(decoded.movedim(-1, 1), expected) >= (30 if weight_dtype in ("bf16", "fp16") else DECODED)


def test_both_endings(host, bundled):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, mask)
    harmonized = decode(graph, shared, harmonize(graph, shared, 128))
    inputs = pick(shared, "composite", "mask", "refiner")
    carried = graph(
        "TransferToFullResolution",
        harmonized=harmonized,
        **pick(shared, "composite", "mask"),
        radius=12,
        detail=1.0,
        feather=2,
    )
    refined = graph("RefineResidual", harmonized=harmonized, **inputs, strength=1.0, keep_background=True, feather=0)
    found = [each.movedim(-1, 1) for each in host.fetch(graph, carried[0], refined[0])]
    settings = {"method": "diffusion", "seeds": [SEED], "resolution": 128, "steps": STEPS, "harmony_vae": False}
    assert (
        pictures.psnr(found[0], bundled(composite, mask, ending="transfer", feather=2, **settings).refined) >= DECODED
    )
    assert pictures.psnr(found[1], bundled(composite, mask, ending="paper", **settings).refined) >= DECODED
    outside = (mask == 0).expand_as(composite)
    assert all(torch.equal(each[outside], composite[outside]) for each in found)


def test_strength_and_background(host):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, mask)
    other = graph("TestLoad", file=host.give(value=pictures.image(composite.flip(1))), kind="tensor")[0]
    inputs = {**pick(shared, "composite", "mask", "refiner"), "harmonized": other, "feather": 0}
    none, half, full = (
        graph("RefineResidual", **inputs, strength=strength, keep_background=False)[0] for strength in (0.0, 0.5, 1.0)
    )
    none, half, full = host.fetch(graph, none, half, full)
    assert torch.equal(none, pictures.image(composite.flip(1)))
    assert not torch.equal(full, none)
    torch.testing.assert_close(half, (none + full) / 2)

"""Parity with the published implementation."""

import json

import pytest
import torch
from safetensors.torch import load_file

from diffharmony_models import checkpoint, geometry
from diffharmony_models.pipeline import DiffHarmony, Noise
from diffharmony_models.settings import Settings

FLOAT32 = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def published(golden_dir):
    """The golden weights, with null text as the golden files give it, and the golden tensors."""
    golden = load_file(golden_dir / "golden.safetensors")
    read = checkpoint.read(golden_dir)
    torch.testing.assert_close(read.null_text, golden["null_text"][0], atol=1e-5, rtol=0)
    return DiffHarmony.from_checkpoint(read, dtype=torch.float32), golden


def golden_pair(golden):
    return (golden["composite"] + 1) / 2, golden["mask"]


def golden_noise(golden, condition=None):
    return Noise(golden["noise_initial"], golden["noise_posterior"], golden["noise_steps"], condition)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_golden_latents_from_the_published_noise(published, sampler):
    engine, golden = published
    latents = engine.harmonize_latents(
        *golden_pair(golden), Settings(resolution=64, sampler=sampler), noise=golden_noise(golden)
    )
    torch.testing.assert_close(latents, golden[f"latents_{sampler}"], **FLOAT32)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_golden_latents_from_a_generator(published, golden_dir, sampler):
    engine, golden = published
    seed = json.loads((golden_dir / "golden.json").read_text())["seed"]
    generator = torch.Generator().manual_seed(seed)
    latents = engine.harmonize_latents(
        *golden_pair(golden), Settings(resolution=64, sampler=sampler), generator=generator
    )
    torch.testing.assert_close(latents, golden[f"latents_{sampler}"], **FLOAT32)


def test_golden_encoding(published):
    engine, golden = published
    mode = engine.encode((golden["composite"] + 1) / 2) / engine.vae.config.scaling_factor
    torch.testing.assert_close(mode, golden["vae_latent_mode"], **FLOAT32)


def test_golden_decoding(published):
    engine, golden = published
    torch.testing.assert_close(engine.decode(golden["latents_euler_ancestral"]), golden["decoded"], **FLOAT32)


def test_golden_harmony_vae_at_the_conditions_mean(published):
    engine, golden = published
    image = engine.decode(golden["latents_euler_ancestral"], *golden_pair(golden), "harmony_vae")
    torch.testing.assert_close(image, (golden["harmony_vae_mode"] / 2 + 0.5).clamp(0, 1), **FLOAT32)


def test_golden_harmony_vae_from_one_generator(published, golden_dir):
    # The Harmony-VAE takes the VAE's place altogether: it encodes too, and draws its condition's posterior last.
    engine, golden = published
    generator = torch.Generator().manual_seed(json.loads((golden_dir / "golden.json").read_text())["seed"])
    settings = Settings(resolution=64, decoder="harmony_vae", ending="none")
    result = engine(*golden_pair(golden), settings, generator=generator)
    torch.testing.assert_close(result.harmonized, golden["decoded_harmony_vae"], **FLOAT32)


def test_golden_paper_ending(published):
    engine, golden = published
    composite, mask = golden_pair(golden)
    settings = Settings(resolution=64, ending="paper")
    result = engine(composite, mask, settings, noise=golden_noise(golden), output_size=(32, 32))
    torch.testing.assert_close(result.harmonized, golden["decoded"], **FLOAT32)
    # The golden refiner saw this very image, scaled down; its output lacks only the background.
    small, small_mask = geometry.resize(composite, (32, 32)), geometry.resize(mask, (32, 32))
    expected = geometry.paste((golden["refined"] + 1) / 2, small, small_mask)
    torch.testing.assert_close(result.refined, expected, **FLOAT32)

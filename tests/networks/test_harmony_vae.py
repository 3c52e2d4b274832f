import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffharmony_models.networks.harmony_vae import HarmonyVAE

TINY = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def published(golden_dir):
    folder = golden_dir / "condition_vae"
    vae = HarmonyVAE.from_config(json.loads((folder / "config.json").read_text())).eval()
    vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    return vae


def test_golden_mode(published, golden_dir):
    golden = load_file(golden_dir / "golden.safetensors")
    with torch.inference_mode():
        condition = published.encode_condition(golden["composite"], golden["mask"])
        image = published.decode(golden["latents_euler_ancestral"] / published.config.scaling_factor, condition)
    torch.testing.assert_close(image, golden["harmony_vae_mode"], atol=1e-4, rtol=0)


def test_golden_tells_a_condition_from_another(published, golden_dir):
    golden = load_file(golden_dir / "golden.safetensors")
    latent = golden["latents_euler_ancestral"] / published.config.scaling_factor
    with torch.inference_mode():
        without_mask = published.encode_condition(golden["composite"], torch.zeros_like(golden["mask"]))
        image = published.decode(latent, without_mask)
    assert (image - golden["harmony_vae_mode"]).abs().max() > 1e-2


def test_numbers_are_those_of_diffusers_vae():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
    ).eval()
    image, mask, latent = torch.rand(2, 3, 16, 24) * 2 - 1, torch.ones(2, 1, 16, 24), torch.randn(2, 4, 4, 6)
    harmony = HarmonyVAE.from_vae(vae)
    with torch.inference_mode():
        theirs, ours = vae.encode(image).latent_dist, harmony.encode(image).latent_dist
        torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.std, theirs.std, atol=1e-5, rtol=1e-4)
        # Untrained skips change nothing, whatever the condition.
        decoded = harmony.decode(latent, harmony.encode_condition(image, mask))
        torch.testing.assert_close(decoded, vae.decode(latent).sample, atol=1e-5, rtol=1e-4)


def test_from_vae_leaves_the_vae_alone():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    harmony = HarmonyVAE.from_vae(vae)
    with torch.no_grad():
        harmony.encoder.conv_in.weight.add_(1)
    assert not torch.equal(harmony.encoder.conv_in.weight, vae.encoder.conv_in.weight)
    assert torch.equal(harmony.conditional_encoder.conv_in.weight, vae.encoder.conv_in.weight)


@pytest.mark.parametrize("changes", [{}, {"layers_per_block": 2, "mid_block_add_attention": False}])
def test_build_save_load_compare(changes, tmp_path):
    harmony = HarmonyVAE(**{**TINY, **changes}).eval()
    save_file(harmony.state_dict(), tmp_path / "vae.safetensors")
    config = json.loads(harmony.to_json_string())
    assert config["_class_name"] == "ConditionVAE" and config["additional_in_channels"] == 1
    again = HarmonyVAE.from_config(config).eval()
    again.load_state_dict(load_file(tmp_path / "vae.safetensors"), strict=True)
    image, mask, latent = torch.rand(1, 3, 4, 6) * 2 - 1, torch.ones(1, 1, 4, 6), torch.randn(1, 4, 2, 3)
    with torch.inference_mode():
        ours, theirs = (vae.decode(latent, vae.encode_condition(image, mask)) for vae in (harmony, again))
    assert torch.equal(ours, theirs) and ours.shape == image.shape


def test_the_conditions_latent_is_its_posteriors_mean_unless_given():
    harmony = HarmonyVAE(**TINY).eval()
    with torch.inference_mode():
        condition = harmony.encode_condition(torch.rand(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
        latent, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
        mode = harmony.decode(latent, condition)
        drawn = harmony.decode(latent, condition, condition.posterior.mean + condition.posterior.std * noise)
        mean = harmony.decode(latent, condition, condition.posterior.mean)
    assert torch.equal(mean, mode) and not torch.equal(drawn, mode)


def test_training_from_zero_skips_moves_them():
    from diffusers import AutoencoderKL

    harmony = HarmonyVAE.from_vae(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)).train()
    condition = harmony.encode_condition(torch.rand(1, 3, 4, 4), torch.ones(1, 1, 4, 4))
    harmony.decode(torch.randn(1, 4, 4, 4), condition).square().mean().backward()
    for name, parameter in harmony.named_parameters():
        if name.startswith("latent_skip_conv") or "skip_conv" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

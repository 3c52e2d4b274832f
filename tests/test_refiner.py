import json

import pytest
import torch
from safetensors.torch import load_file

from diffharmony_models.networks.refiner import Refiner, refine, stack

SMALL, BASE, LARGE = (64, 128, 256, 256), (128, 256, 512, 512), (256, 512, 1024, 1024)


def tiny(**changes) -> Refiner:
    return Refiner(**{"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, **changes}).eval()


def test_golden(golden_dir):
    golden = load_file(golden_dir / "golden.safetensors")
    refiner = Refiner.from_config(json.loads((golden_dir / "refiner" / "config.json").read_text())).eval()
    refiner.load_state_dict(load_file(golden_dir / "refiner" / "diffusion_pytorch_model.safetensors"), strict=True)
    with torch.inference_mode():
        refined = refiner(golden["refiner_input"])
        torch.testing.assert_close(refined, golden["refined"], atol=1e-4, rtol=0)
        # The same through the door that people use: [0, 1] in, [0, 1] out.
        harmonized, mask, composite = golden["refiner_input"].split([3, 1, 3], dim=1)
        refined = refine(refiner, (harmonized + 1) / 2, (composite + 1) / 2, mask)
    torch.testing.assert_close(refined * 2 - 1, golden["refined"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("widths, millions", [(SMALL, 22.9), (BASE, 91.4), (LARGE, 365.5)])
def test_published_widths_have_the_published_parameters(widths, millions):
    with torch.device("meta"):
        refiner = Refiner(block_out_channels=widths)
    assert sum(p.numel() for p in refiner.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("widths", [SMALL, BASE, LARGE])
def test_state_dict_is_that_of_diffusers_without_the_time_embedding(widths):
    from diffusers import UNet2DModel

    levels = len(widths)
    with torch.device("meta"):
        ours = Refiner(block_out_channels=widths).state_dict()
        theirs = UNet2DModel(
            in_channels=7,
            out_channels=3,
            block_out_channels=widths,
            layers_per_block=2,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            downsample_padding=0,
            attention_head_dim=None,
        ).state_dict()
    theirs = {key: value for key, value in theirs.items() if "time_emb" not in key}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_numbers_are_those_of_diffusers_blocks():
    from diffusers import UNet2DModel

    ours = Refiner(4, block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=4, attention_head_dim=4)
    ours.eval()
    theirs = UNet2DModel(
        in_channels=4,
        out_channels=3,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        norm_eps=1e-6,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        downsample_padding=0,
        attention_head_dim=4,
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all("time_emb" in key for key in missing)
    for name, parameter in theirs.named_parameters():
        if "time_emb_proj" in name:  # what the time embedding would add
            torch.nn.init.zeros_(parameter)
    x = torch.rand(2, 4, 16, 24) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(ours.residual(x), theirs(x, 0).sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("in_channels", [3, 4, 7])
def test_build_save_load_compare(in_channels, tmp_path):
    from safetensors.torch import save_file

    refiner = tiny(in_channels=in_channels, downsample_padding=1)
    save_file(refiner.state_dict(), tmp_path / "refiner.safetensors")
    again = Refiner.from_config(json.loads(json.dumps(refiner.config))).eval()
    again.load_state_dict(load_file(tmp_path / "refiner.safetensors"), strict=True)
    image, mask = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(refine(refiner, image, image, mask), refine(again, image, image, mask))


def test_input_channels_in_their_order():
    harmonized, composite, mask = torch.full((1, 3, 2, 2), 0.75), torch.zeros(1, 3, 2, 2), torch.full((1, 1, 2, 2), 0.6)
    expected = {3: [0.5] * 3, 4: [0.5] * 3 + [1.0], 7: [0.5] * 3 + [1.0] + [-1.0] * 3}
    for channels, values in expected.items():
        assert stack(harmonized, composite, mask, channels)[0, :, 0, 0].tolist() == values


def test_an_untrained_last_layer_changes_nothing():
    refiner = tiny()
    torch.nn.init.zeros_(refiner.conv_out.weight)
    torch.nn.init.zeros_(refiner.conv_out.bias)
    image = torch.rand(2, 3, 8, 8)
    refined = refine(refiner, image, torch.rand(2, 3, 8, 8), torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(refined, image)


def test_any_size_is_padded_and_cropped():
    refiner, image = tiny(), torch.rand(1, 3, 9, 13)
    with torch.inference_mode():
        assert refine(refiner, image, image, torch.ones(1, 1, 9, 13)).shape == image.shape


def test_the_residual_is_added_in_float32():
    refiner = tiny()
    torch.nn.init.zeros_(refiner.conv_out.weight)
    torch.nn.init.zeros_(refiner.conv_out.bias)
    image = torch.rand(1, 3, 8, 8)
    refined = refine(refiner.to(torch.bfloat16), image, image, torch.ones(1, 1, 8, 8))
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, image)


def test_training_reaches_every_parameter():
    refiner = tiny().train()
    refiner(torch.rand(1, 7, 8, 8) - 0.5).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in refiner.parameters())


@pytest.mark.parametrize(
    "config, words",
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"in_channels": 6}, "3, 4 or 7"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
        ({"block_out_channels": [40, 80]}, "norm_num_groups"),
    ],
)
def test_another_network_is_refused_in_words(config, words):
    with pytest.raises(ValueError, match=words):
        Refiner.from_config(config)


def test_bad_input_is_refused_in_words():
    refiner, image = tiny(), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="8x8 != 6x8"):
        refine(refiner, image, image, torch.ones(1, 1, 8, 6))
    with pytest.raises(ValueError, match="same shape"):
        refine(refiner, torch.rand(1, 3, 4, 4), image, torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="divide by 2"):
        refiner(torch.rand(1, 7, 9, 8))

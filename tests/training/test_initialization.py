"""What new networks begin as."""

import pytest
import torch
import training_runs as runs

from diffharmony_models.__main__ import main
from diffharmony_models.training import initialization


def test_a_new_autoencoder_knows_colours():
    from diffusers.models import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    initialization.block_means(vae)
    colors = torch.rand(8, 3, 1, 1).expand(-1, -1, 32, 32) * 2 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(colors).latent_dist.mode()).sample
    error = (decoded - colors).mean(dim=(2, 3))
    assert (
        error.abs().max() < 0.45 and error.abs().mean() < 0.2
    )  # pure colours, the hardest; random weights are at 0.5 and more
    assert torch.corrcoef(torch.stack([decoded.mean(dim=(2, 3)).flatten(), colors[:, :, 0, 0].flatten()]))[0, 1] > 0.95


def test_a_started_copy_answers_the_composite():
    from diffusers.models import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    composite, noise = torch.randn(4, 4, 16, 16) * 0.8, torch.randn(4, 4, 16, 16)
    x = torch.cat([noise, torch.ones(4, 1, 16, 16), composite], dim=1)

    def error():
        with torch.no_grad():
            return (
                unet(x, torch.full((4,), 999.0), encoder_hidden_states=torch.randn(4, 8, 64)).sample - composite
            ).square().mean() / composite.square().mean()

    assert error() > 0.5
    initialization.start_as_copy(unet)
    assert error() < 0.03


@pytest.mark.slow
def test_too_few_channels_for_a_copy_are_refused(dataset, vae, tmp_path, capsys):
    assert main(runs.harmonizer(dataset, vae, output=tmp_path / "run", prediction_type="sample", groups=16)) == 2
    assert "4 groups of 4 channels" in capsys.readouterr().err

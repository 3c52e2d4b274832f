"""What each trainer writes, on a tiny data set: it keeps what is frozen, and leaves whole files."""

import pytest
import torch
import training_runs as runs

from diffharmony_models import checkpoint
from diffharmony_models.__main__ import main
from diffharmony_models.training import (
    autoencoder,
    loop,
    recipe,
)

pytestmark = pytest.mark.slow


def test_stage_one_file_is_whole_and_leaves_the_vae_alone(vae, stage1):
    found, before = checkpoint.read(stage1), checkpoint.read(vae)
    assert found.prediction_type == "v_prediction" and found.resolution == 64
    assert found.unet.config["in_channels"] == 9 and found.null_text.shape == (8, 64)
    assert all(torch.equal(found.vae.state[name], before.vae.state[name]) for name in before.vae.state)
    assert len(list((stage1.parent / "samples").glob("*.jpg"))) == 2


def test_only_so_many_checkpoints_are_kept(dataset, vae, tmp_path):
    often = {"checkpoint_every": 1, "keep_checkpoints": 2, "sample_every": 0}
    assert main(runs.harmonizer(dataset, vae, output=tmp_path / "run", **often)) == 0
    assert [path.name for path in loop.checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-4"]


def test_refiner_trains_on_stage_one_and_joins_its_file(dataset, stage1, tmp_path):
    for folder, settings in (("cached", {"cache_outputs": 1, "crop": 32}), ("anew", {})):
        assert main(runs.refiner(dataset, stage1, output=tmp_path / folder, steps=2, **settings)) == 0
    before = checkpoint.read(stage1)
    for folder in ("cached", "anew"):
        found = checkpoint.read(tmp_path / folder / "diffharmony.safetensors")
        assert found.refiner.config["in_channels"] == 7
        assert all(torch.equal(found.unet.state[name], before.unet.state[name]) for name in before.unet.state)


def test_harmony_vae_starts_from_the_vae_and_keeps_its_encoder(dataset, vae, tmp_path):
    assert main(runs.harmony_vae(dataset, vae, output=tmp_path / "run", steps=2)) == 0
    found, before = checkpoint.read(tmp_path / "run/harmony_vae.safetensors"), checkpoint.read(vae).vae.state
    assert all(
        torch.equal(found.harmony_vae.state[name], before[name])
        for name in before
        if name.startswith(("encoder.", "quant_conv."))
    )
    assert any(
        not torch.equal(found.harmony_vae.state[name], before[name]) for name in before if name.startswith("decoder.")
    )


def test_normalized_latents_have_unit_variance_and_decode_alike(vae):
    network = checkpoint.build_vae(checkpoint.read(vae).vae)
    with torch.no_grad():
        network.quant_conv.weight.mul_(3)
        network.quant_conv.bias.add_(0.5)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = network.decode(network.encode(images * 2 - 1).latent_dist.mode()).sample
        autoencoder.normalize_latents(network, images)
        latents = network.encode(images * 2 - 1).latent_dist.mode()
        after = network.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-4)
    scaled = latents * network.config.scaling_factor
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)


def test_the_shipped_recipes_train_every_part(dataset, tmp_path):
    """At a tiny size, for two steps, each on the files of the ones before."""
    tiny = {"steps": 2, "batch_size": 2, "size": 64, "workers": 0, "sample_every": 2, "warmup": 1, "crop": 32}
    colors, vae, stage1 = (
        tmp_path / name
        for name in (
            "color_regressor/color_regressor.safetensors",
            "autoencoder/vae.safetensors",
            "harmonizer/harmonizer.safetensors",
        )
    )
    runs_of = [
        ("small", "color_regressor", [dataset]),
        ("small", "autoencoder", [dataset]),
        ("small", "harmony_vae", [dataset, "--from", vae]),
        ("small", "harmonizer", [dataset, "--vae", vae, "--colors", colors]),
        ("small", "refiner", [dataset, "--from", stage1]),
        ("published", "harmonizer", [dataset, "--from", stage1]),
        ("published", "refiner", [dataset, "--from", stage1]),
    ]
    for name, part, arguments in runs_of:
        table = recipe._read(recipe.RECIPES / f"{name}.toml")[part]
        settings = table | {key: value for key, value in tiny.items() if key != "crop" or key in table}
        if (name, part) == ("published", "refiner"):
            settings |= {"resolution": 64, "widths": [32, 32]}
        output = tmp_path / (part if name == "small" else f"{name}-{part}")
        command = "train-" + part.replace("_", "-")
        line = runs.command(command, *arguments, output=output, **settings)
        assert runs.run(line, tmp_path / "stderr") == 0, (tmp_path / "stderr").read_text()
        assert list(output.glob("*.safetensors")) and list(output.glob("samples/*.jpg"))
    found = checkpoint.read(tmp_path / "refiner/diffharmony.safetensors")
    assert found.prediction_type == "sample" and found.refiner.config["in_channels"] == 7
    assert all((found.unet, found.vae, found.refiner, found.color_regressor))

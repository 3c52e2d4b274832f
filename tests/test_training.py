"""The three trainers on a tiny data set: they learn, resume to the same losses, keep what is frozen, and leave whole files."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffharmony_models import checkpoint, sampling
from diffharmony_models.__main__ import main
from diffharmony_models.training import autoencoder, cache, data, harmonizer, loop

SMALL = [
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--log-every",
    "1",
    "--sample-every",
    "2",
    "--checkpoint-every",
    "2",
    "--learning-rate",
    "1e-3",
    "--warmup",
    "1",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six pairs in the shape of iHarmony4: smooth pictures, a rectangle darkened."""
    root = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for folder in ("composite_images", "masks", "real_images"):
        (root / "Small" / folder).mkdir(parents=True)
    names = []
    for index in range(6):
        real = np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
        )
        mask = np.zeros((72, 96), np.uint8)
        mask[20:50, 20:70] = 255
        composite = np.where(mask[..., None] > 0, real // 2, real)
        Image.fromarray(real).save(root / "Small/real_images" / f"p{index}.jpg")
        Image.fromarray(mask).save(root / "Small/masks" / f"p{index}_1.png")
        Image.fromarray(composite.astype(np.uint8)).save(root / "Small/composite_images" / f"p{index}_1_1.jpg")
        names.append(f"Small/composite_images/p{index}_1_1.jpg")
    (root / "IHD_train.txt").write_text("\n".join(names))
    return root


@pytest.fixture(scope="module")
def vae(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("vae")
    assert (
        train(
            "train-autoencoder",
            dataset / "Small/real_images",
            "--size",
            "32",
            "--widths",
            "32",
            "32",
            "32",
            "32",
            output=output,
        )
        == 0
    )
    return output / "vae.safetensors"


@pytest.fixture(scope="module")
def stage1(dataset, vae, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage1")
    assert train_stage1(dataset, vae, output) == 0
    return output / "harmonizer.safetensors"


def train(command, *arguments, output, steps=4):
    return main([command, *SMALL, "--output", str(output), "--steps", str(steps), *map(str, arguments)]) or 0


def train_stage1(dataset, vae, output, *more, steps=4):
    return train(
        "train-harmonizer",
        dataset,
        "--vae",
        vae,
        "--size",
        "64",
        "--widths",
        "32",
        "32",
        "32",
        "32",
        "--prediction-type",
        "v_prediction",
        "--sampler-share",
        "0.5",
        *more,
        output=output,
        steps=steps,
    )


def losses(output) -> dict[int, float]:
    found = {}
    for file in sorted(output.glob("logs/**/events*")):
        events = EventAccumulator(str(file)).Reload()
        if "loss" in events.Tags()["scalars"]:
            found |= {scalar.step: scalar.value for scalar in events.Scalars("loss")}
    return found


@pytest.mark.parametrize(
    "caching",
    [("--recolor", "--start-as-copy"), ("--cache-latents", "1", "--root")],
    ids=["encoding anew", "cached latents"],
)
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(dataset, vae, tmp_path, caching):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_stage1(dataset, vae, whole, *caching) == 0
    # What a kill during the writing of the second checkpoint leaves: the first one, and part of the second.
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    (broken / "partial-4").mkdir()
    (broken / "partial-4" / "model.safetensors").write_bytes(b"half")
    assert train_stage1(dataset, vae, broken, *caching) == 0
    assert sorted(losses(broken)) == [3, 4]
    assert losses(broken) == {step: value for step, value in losses(whole).items() if step > 2}
    first, second = (checkpoint.read(folder / "harmonizer.safetensors").unet.state for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(broken.glob("partial-*"))


def test_stage_one_file_is_whole_and_leaves_the_vae_alone(vae, stage1):
    found, before = checkpoint.read(stage1), checkpoint.read(vae)
    assert found.prediction_type == "v_prediction" and found.resolution == 64
    assert found.unet.config["in_channels"] == 9 and found.null_text.shape == (8, 64)
    assert all(torch.equal(found.vae.state[name], before.vae.state[name]) for name in before.vae.state)
    assert len(list((stage1.parent / "samples").glob("*.jpg"))) == 2


def test_only_so_many_checkpoints_are_kept(dataset, vae, tmp_path):
    assert (
        train_stage1(
            dataset, vae, tmp_path / "run", "--checkpoint-every", "1", "--keep-checkpoints", "2", "--sample-every", "0"
        )
        == 0
    )
    assert [path.name for path in loop.checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-4"]


def test_refiner_trains_on_stage_one_and_joins_its_file(dataset, stage1, tmp_path):
    arguments = (dataset, "--from", stage1, "--size", "64", "--widths", "32", "32", "32", "32", "--layers", "1")
    assert (
        train("train-refiner", *arguments, "--cache-outputs", "1", "--crop", "32", output=tmp_path / "cached", steps=2)
        == 0
    )
    assert train("train-refiner", *arguments, "--in-channels", "4", output=tmp_path / "anew", steps=2) == 0
    before = checkpoint.read(stage1)
    for folder, channels in (("cached", 7), ("anew", 4)):
        found = checkpoint.read(tmp_path / folder / "diffharmony.safetensors")
        assert found.refiner.config["in_channels"] == channels
        assert all(torch.equal(found.unet.state[name], before.unet.state[name]) for name in before.unet.state)


def test_harmony_vae_starts_from_the_vae_and_keeps_its_encoder(dataset, vae, tmp_path):
    assert (
        train("train-autoencoder", "--harmony", dataset, "--from", vae, "--size", "32", output=tmp_path, steps=2) == 0
    )
    found, before = checkpoint.read(tmp_path / "harmony_vae.safetensors"), checkpoint.read(vae).vae.state
    assert all(
        torch.equal(found.harmony_vae.state[name], before[name])
        for name in before
        if name.startswith(("encoder.", "quant_conv."))
    )
    assert any(
        not torch.equal(found.harmony_vae.state[name], before[name]) for name in before if name.startswith("decoder.")
    )


def test_the_average_leaves_the_live_weights_alone():
    from diffusers.training_utils import EMAModel

    model = torch.nn.Linear(2, 2)
    ema = EMAModel(model.parameters(), decay=0.5)
    ema.shadow_params = [torch.zeros_like(p) for p in model.parameters()]
    live = [p.detach().clone() for p in model.parameters()]
    with loop._averaged(ema, model) as averaged:
        assert all(p.abs().sum() == 0 for p in averaged.parameters())
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), live)) and model.training


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
    autoencoder.block_means(vae)
    colors = torch.rand(8, 3, 1, 1).expand(-1, -1, 32, 32) * 2 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(colors).latent_dist.mode()).sample
    error = (decoded - colors).mean(dim=(2, 3))
    assert (
        error.abs().max() < 0.45 and error.abs().mean() < 0.2
    )  # pure colours, the hardest; random weights are at 0.5 and more
    assert torch.corrcoef(torch.stack([decoded.mean(dim=(2, 3)).flatten(), colors[:, :, 0, 0].flatten()]))[0, 1] > 0.95


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


def test_foreground_weight_is_the_published_one():
    mask = torch.zeros(3, 1, 8, 8)
    mask[0] = 1
    mask[1, :, :4] = 1
    mask[2, :, 0, 0] = 1
    assert harmonizer.foreground_weight(mask).tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize("prediction", sampling.PREDICTIONS)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_perfect_network_has_no_loss(prediction, share):
    """The target of every sample, also of those that stand on the model's own estimate, leads back to the real picture."""
    real = torch.randn(6, 4, 8, 8)
    batch = {"real": real, "composite": torch.randn(6, 4, 8, 8), "mask": torch.ones(6, 1, 8, 8)}
    objective = harmonizer.Objective(prediction, "foreground", share, torch.zeros(2, 3))

    class Perfect:
        def __call__(self, x, timesteps, encoder_hidden_states):
            sigma = objective.sigma(timesteps)[:, None, None, None]
            noisy = x[:, :4] * (sigma**2 + 1).sqrt()
            # x0 is known by the composite's latent, in which the batch is looked up.
            which = [next(i for i in range(6) if torch.equal(batch["composite"][i], row)) for row in x[:, 5:]]
            x0 = real[which]
            sample = (
                (noisy - x0) / sigma
                if prediction == "epsilon"
                else (noisy / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma
            )
            return type("Output", (), {"sample": sample})

    loss, _ = objective(Perfect(), batch, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-6
    worse, _ = objective(
        lambda *a, **k: type("Output", (), {"sample": Perfect()(*a, **k).sample + 1}),
        batch,
        torch.Generator().manual_seed(0),
    )
    assert worse.item() == pytest.approx(1.0, rel=1e-3)


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
    )
    composite, noise = torch.randn(4, 4, 16, 16) * 0.8, torch.randn(4, 4, 16, 16)
    x = torch.cat([noise, torch.ones(4, 1, 16, 16), composite], dim=1)

    def error():
        with torch.no_grad():
            return (
                unet(x, torch.full((4,), 999.0), encoder_hidden_states=torch.randn(4, 8, 64)).sample + composite
            ).square().mean() / composite.square().mean()

    assert error() > 0.5
    harmonizer.start_as_copy(unet)
    assert error() < 0.03


def test_too_few_channels_for_a_copy_are_refused(dataset, vae, tmp_path, capsys):
    assert train_stage1(dataset, vae, tmp_path, "--start-as-copy", "--groups", "16") == 2
    assert "4 groups of 4 channels" in capsys.readouterr().err


def test_rooted_loss_counts_by_distance():
    """Twice the error costs twice, not four times."""
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.ones(2, 1, 8, 8)}
    objective = harmonizer.Objective("epsilon", "foreground", 1.0, torch.zeros(1, 3), first_share=1.0, root=True)

    def loss(distance):
        def network(x, timesteps, encoder_hidden_states):
            assert (timesteps == 999).all()  # nothing of the picture is in x, so the target is known
            sigma = objective.sigma(timesteps)[:, None, None, None]
            return type("Output", (), {"sample": (x[:, :4] * (sigma**2 + 1).sqrt() - batch["real"]) / sigma + distance})

        return objective(network, batch, torch.Generator().manual_seed(0))[0].item()

    assert loss(4.0) / loss(2.0) == pytest.approx(2.0, rel=1e-3)


def test_recolored_pairs_differ_in_the_foreground_alone_and_each_time(dataset):
    pairs = data.Recolored(dataset, "IHD_train.txt", 64)
    first, again, other = (pairs.get(1, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["composite"], other["composite"])
    for sample in (first, other):
        outside = (1 - sample["mask"]).bool().expand(3, -1, -1)
        assert torch.equal(sample["composite"][outside], sample["real"][outside])
        assert (sample["composite"] - sample["real"]).abs().max() > 0.03
        assert 0 < sample["mask"].mean() < 1 and sample["composite"].min() >= 0 and sample["composite"].max() <= 1


def test_foreground_loss_does_not_look_at_the_background():
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.zeros(2, 1, 8, 8)}
    batch["mask"][:, :, :4] = 1
    network = lambda x, *_, **__: type(
        "Output", (), {"sample": torch.where(batch["mask"] > 0, 0.0, 1e3).expand(-1, 4, -1, -1)}
    )
    quiet = lambda x, *_, **__: type("Output", (), {"sample": torch.zeros(2, 4, 8, 8)})  # noqa: E731
    values = [
        harmonizer.Objective("epsilon", "foreground", 0.0, torch.zeros(1, 3))(
            net, batch, torch.Generator().manual_seed(0)
        )[0]
        for net in (network, quiet)
    ]
    assert values[0].item() == pytest.approx(values[1].item())


def test_samples_depend_on_their_position_alone(dataset):
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    first, again = loop.Positions(pairs, 3), loop.Positions(pairs, 3)
    for position in (0, 5, 6, 13):
        a, b = first[position], again[position]
        assert all(torch.equal(a[name], b[name]) for name in a)
    epoch = [first._epoch[1].tolist() for position in (0, 6) if first[position] is not None]
    assert sorted(epoch[0]) == sorted(epoch[1]) == list(range(6))


def test_crops_keep_a_foreground(dataset):
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    for position in range(12):
        sample = pairs.get(position % 6, np.random.default_rng(position))
        assert sample["mask"].mean() > 0.01 and set(sample["mask"].unique().tolist()) <= {0.0, 1.0}
        outside = (1 - sample["mask"]).bool().expand(3, -1, -1)
        inner = torch.nn.functional.max_pool2d(sample["mask"][None], 9, 1, 4)[0].expand(3, -1, -1) == 0
        assert (sample["composite"] - sample["real"])[outside & inner].abs().max() < 0.15  # JPEG


def test_cache_is_made_anew_for_other_data(dataset, tmp_path):
    import argparse

    args = argparse.Namespace(dataset=dataset, list="IHD_train.txt", size=64, seed=0, workers=0)
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    calls = []

    def make(batch, seeds):
        calls.append(seeds)
        return {"mask": batch["mask"]}

    for repeats, wanted in ((1, [6]), (1, []), (2, [8, 4])):  # twelve samples are two batches
        calls.clear()
        cached = cache.Cached(tmp_path / "c.safetensors", pairs, args, repeats, make, torch.uint8, {})
        assert len(cached) == 6 * repeats
        assert list(map(len, calls)) == [*wanted, 1]  # the last: what the file must look like
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train-harmonizer", "{dataset}", "--size", "64"], "No VAE"),
        (["train-harmonizer", "{dataset}", "--size", "60", "--vae", "{vae}"], "multiple of 64"),
        (["train-harmonizer", "{dataset}", "--size", "64", "--from", "{vae}"], "no 9-channel UNet"),
        (["train-harmonizer", "{dataset}", "--size", "64", "--vae", "{vae}", "--list", "none.txt"], "none.txt"),
        (["train-autoencoder"], "No photos"),
        (["train-autoencoder", "{dataset}", "--groups", "32"], "--groups 32"),
        (["train-autoencoder", "--harmony", "{dataset}"], "--from"),
        (["train-refiner", "{dataset}", "--from", "{vae}", "--crop", "30"], "--crop"),
    ],
)
def test_bad_input_is_one_line(dataset, vae, tmp_path, capsys, arguments, words):
    arguments = [argument.format(dataset=dataset, vae=vae) for argument in arguments]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1

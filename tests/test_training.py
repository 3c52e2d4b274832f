"""The three trainers on a tiny data set: they keep what is frozen, leave whole files, and say what is wrong."""

import argparse
import dataclasses
import math
import pickle
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
import training_runs as runs
from PIL import Image
from safetensors.torch import load_file, save_file

from diffharmony_models import checkpoint, sampling
from diffharmony_models.__main__ import _parser, main
from diffharmony_models.errors import InputError
from diffharmony_models.training import (
    autoencoder,
    cache,
    color_regressor,
    data,
    harmonizer,
    harmony_vae,
    loop,
    recipe,
    refiner,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def vae(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("vae")
    assert main(runs.autoencoder(dataset, output=output)) == 0
    return output / "vae.safetensors"


@pytest.fixture(scope="module")
def stage1(dataset, vae, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage1")
    assert main(runs.harmonizer(dataset, vae, output=output)) == 0
    return output / "harmonizer.safetensors"


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
    for folder, settings in (("cached", {"cache_outputs": 1, "crop": 32}), ("anew", {"in_channels": 4})):
        assert main(runs.refiner(dataset, stage1, output=tmp_path / folder, steps=2, **settings)) == 0
    before = checkpoint.read(stage1)
    for folder, channels in (("cached", 7), ("anew", 4)):
        found = checkpoint.read(tmp_path / folder / "diffharmony.safetensors")
        assert found.refiner.config["in_channels"] == channels
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
    """The target of every sample, also of those that stand on the model's own estimate, leads to the real picture."""
    real = torch.randn(6, 4, 8, 8)
    batch = {"real": real, "composite": torch.randn(6, 4, 8, 8), "mask": torch.ones(6, 1, 8, 8)}
    objective = harmonizer.Objective(prediction, torch.zeros(2, 3), share)

    class Perfect:
        def __call__(self, x, timesteps, encoder_hidden_states):
            sigma = objective.sigma(timesteps)[:, None, None, None]
            noisy = x[:, :4] * (sigma**2 + 1).sqrt()
            # x0 is known by the composite's latent, in which the batch is looked up.
            which = [next(i for i in range(6) if torch.equal(batch["composite"][i], row)) for row in x[:, 5:]]
            x0 = real[which]
            sample = {
                "epsilon": (noisy - x0) / sigma,
                "v_prediction": (noisy / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma,
                "sample": x0,
            }
            return type("Output", (), {"sample": sample[prediction]})

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
    harmonizer.start_as_copy(unet)
    assert error() < 0.03


def test_too_few_channels_for_a_copy_are_refused(dataset, vae, tmp_path, capsys):
    assert main(runs.harmonizer(dataset, vae, output=tmp_path / "run", prediction_type="sample", groups=16)) == 2
    assert "4 groups of 4 channels" in capsys.readouterr().err


def test_rooted_loss_counts_by_distance(monkeypatch):
    """Twice the error costs twice, not four times."""
    monkeypatch.setattr(harmonizer, "FIRST_SHARE", 1.0)
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.ones(2, 1, 8, 8)}
    objective = harmonizer.Objective("epsilon", torch.zeros(1, 3), sampler_share=1.0, root=True)

    def loss(distance):
        def network(x, timesteps, encoder_hidden_states):
            assert (timesteps == 999).all()  # nothing of the picture is in x, so the target is known
            sigma = objective.sigma(timesteps)[:, None, None, None]
            return type("Output", (), {"sample": (x[:, :4] * (sigma**2 + 1).sqrt() - batch["real"]) / sigma + distance})

        return objective(network, batch, torch.Generator().manual_seed(0))[0].item()

    assert loss(4.0) / loss(2.0) == pytest.approx(2.0, rel=1e-3)


def test_foregrounds_are_drawn_by_position_and_lend_each_other_colors(dataset):
    samples = data.Foregrounds(dataset, "IHD_train.txt", 64)
    first, again, other = (samples.get(1, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["photo"], other["photo"])
    assert first["photo"].shape == (3, 64, 64) and set(first["mask"].unique().tolist()) == {0.0, 1.0}
    means = {tuple(samples.get(0, np.random.default_rng(seed))["mean"].tolist()) for seed in range(40)}
    assert len(means) == len(samples) == 6


def test_a_subset_can_be_held_out(dataset):
    with pytest.raises(InputError, match="no picture that is not held out"):
        data.Foregrounds(dataset, "IHD_train.txt", 64, ["Small"])


def test_a_subset_that_is_not_there_is_said(dataset, caplog):
    """A recipe names what its own data had."""
    assert len(data.Foregrounds(dataset, "IHD_train.txt", 64, ["small"])) == 6
    assert "no subset small" in caplog.text


def test_foreground_loss_does_not_look_at_the_background():
    batch = {"real": torch.randn(2, 4, 8, 8), "composite": torch.randn(2, 4, 8, 8), "mask": torch.zeros(2, 1, 8, 8)}
    batch["mask"][:, :, :4] = 1

    def network(sample):
        return lambda *_, **__: argparse.Namespace(sample=sample)

    loud = network(torch.where(batch["mask"] > 0, 0.0, 1e3).expand(-1, 4, -1, -1))
    quiet = network(torch.zeros(2, 4, 8, 8))
    values = [
        harmonizer.Objective("epsilon", torch.zeros(1, 3))(net, batch, torch.Generator().manual_seed(0))[0]
        for net in (loud, quiet)
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
    assert epoch[0] != epoch[1]


def test_crops_keep_a_foreground(dataset):
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    for position in range(12):
        sample = pairs.get(position % 6, np.random.default_rng(position))
        assert sample["mask"].mean() > 0.01 and set(sample["mask"].unique().tolist()) <= {0.0, 1.0}
        outside = (1 - sample["mask"]).bool().expand(3, -1, -1)
        inner = torch.nn.functional.max_pool2d(sample["mask"][None], 9, 1, 4)[0].expand(3, -1, -1) == 0
        assert (sample["composite"] - sample["real"])[outside & inner].abs().max() < 0.15  # JPEG


def test_cache_is_made_anew_for_other_data(dataset, tmp_path):
    settings = recipe.Settings(workers=0)
    pairs = data.Pairs(dataset, "IHD_train.txt", 64)
    calls = []

    def make(batch, seeds):
        calls.append(seeds)
        return {"mask": batch["mask"]}

    for repeats, wanted in ((1, [6]), (1, []), (2, [8, 4])):  # twelve samples are two batches
        calls.clear()
        cached = cache.Cached(tmp_path / "c.safetensors", pairs, settings, repeats, make, torch.uint8, {})
        assert len(cached) == 6 * repeats
        assert list(map(len, calls)) == [*wanted, 1]  # the last: what the file must look like
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("mask"),
        lambda tensors: tensors.update(mask=tensors["mask"][:3]),
        lambda tensors: tensors.update(mask=tensors["mask"].half()),
        lambda tensors: tensors.update(more=tensors["mask"].clone()),
        None,
    ],
    ids=["lacks", "too few", "dtype", "has more", "cut short"],
)
def test_a_cache_that_is_not_its_own_is_refused(dataset, tmp_path, damage):
    settings = recipe.Settings(workers=0)
    pairs, path = data.Pairs(dataset, "IHD_train.txt", 64), tmp_path / "c.safetensors"

    def cached():
        return cache.Cached(path, pairs, settings, 1, lambda batch, seeds: batch, torch.uint8, {})

    cached()
    if damage is None:
        path.write_bytes(path.read_bytes()[:-8])
    else:
        tensors, facts = load_file(path), cache.state.metadata(path)
        damage(tensors)
        save_file(tensors, path, facts)
    with pytest.raises(ValueError, match=r"c\.safetensors") as caught:
        cached()
    assert type(caught.value).__name__ == "InputError"


def test_samples_can_be_sent_to_workers(dataset):
    """On systems whose processes are not forked, each worker gets a pickled copy."""
    positions = loop.Positions(data.Pairs(dataset, "IHD_train.txt", 64), 3)
    sample, copy = positions[4], pickle.loads(pickle.dumps(positions))[4]
    assert all(torch.equal(sample[name], copy[name]) for name in sample)


def refused(arguments, capsys) -> str:
    """The one line with which a run ends."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if not re.search(r"\d/\d+ \[|^note: |^$", line)]  # but for bars and notes
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 600, lines
    return lines[0]


TRAINERS = {
    "train-color-regressor": color_regressor,
    "train-autoencoder": autoencoder,
    "train-harmony-vae": harmony_vae,
    "train-harmonizer": harmonizer,
    "train-refiner": refiner,
}
FLAGS = {
    "--steps": ["0", "-1", "1e3", "x", "", "1.5", "9" * 5000, "nan"],
    "--batch-size": ["0", "-1", "1000000000000"],
    "--workers": ["-1", "100000"],
    "--seed": ["-1", "1.5", str(2**63)],
}
OWN_FLAGS = {
    "train-color-regressor": {**FLAGS, "--size": ["0", "-64", "32", "80", "100000", "x"]},
    "train-autoencoder": {**FLAGS, "--size": ["0", "-8", "8", "60", "100000"]},
    "train-harmony-vae": {**FLAGS, "--size": ["0", "60"]},
    "train-harmonizer": {**FLAGS, "--size": ["0", "-64", "60", "32", "1000000"]},
    "train-refiner": {**FLAGS, "--size": ["0", "-1", "100000"]},
    "make-composites": {
        "--seed": ["-1", "x"],
        "--test-share": ["1", "2", "-0.1", "nan"],
        "--local-share": ["-0.1", "1.1", "nan"],
        "--size": ["-1", "10000000"],
        "--per-mask": ["0", "-1"],
        "--workers": ["0", "-1"],
    },
}


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_every_flag_has_a_range(command, tmp_path, capsys):
    """No file named here is there: a number is refused before anything is looked at."""
    required = ["--from", "none"] if command in ("train-refiner", "train-harmony-vae") else []
    place = [str(tmp_path / "run")] if command == "make-composites" else ["none", "--output", str(tmp_path / "run")]
    for option, values in OWN_FLAGS[command].items():
        for value in values:
            line = refused([command, *place, *required, option, value], capsys)
            assert f"argument {option}: " in line, (option, value, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_there_are_few_flags_and_each_is_tried(command):
    parser = _parser([command])._subparsers._group_actions[0].choices[command]
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings} - {"-h"}
    assert len(flags) <= 12
    words = {"--config", "--output", "--mixed-precision", "--from", "--vae", "--colors", "--list"}
    words |= {"--index", "--photos", "--masks", "--unmasked"}
    assert flags - words == OWN_FLAGS[command].keys()


BAD = {
    "number": [True, "5", [5], -1e300, math.nan, math.inf],
    "numbers": [5, [], [0, 0, 0, 0], [True] * 4, ["32"] * 4, [32, 32, 32, 99999]],
    "choice": ["of no kind", 5, [], True],
    "switch": [0, 1, "true"],
    "names": ["davis", [5], 5],
}


@pytest.mark.parametrize("command", TRAINERS)
def test_every_setting_of_a_recipe_has_a_range(command, tmp_path, capsys):
    """The kind of a field is told by its default."""
    part = command.removeprefix("train-").replace("-", "_")
    for field in dataclasses.fields(TRAINERS[command].Settings):
        kind = {bool: "switch", str: "choice", type(None): "choice", tuple: "numbers"}.get(
            type(field.default), "number"
        )
        kind = {"hold_out": "names", "in_channels": "choice"}.get(field.name, kind)
        for value in BAD[kind]:
            with pytest.raises(argparse.ArgumentTypeError):
                field.metadata["read"](value)
        assert field.metadata["help"]
    runs.write_recipe(tmp_path / "bad.toml", part, {"warmup": -1})
    required = ["--from", "none"] if command in ("train-refiner", "train-harmony-vae") else []
    config = ["--config", str(tmp_path / "bad.toml"), "--output", str(tmp_path / "run")]
    line = refused([command, "none", *required, *config], capsys)
    assert f"bad.toml, [{part}]: warmup must be a whole number from 0" in line


@pytest.mark.parametrize("name", recipe.bundled())
def test_the_shipped_recipes_are_read(name):
    """Every table is a trainer's."""
    tables = recipe._read(recipe.RECIPES / f"{name}.toml")
    for part, table in tables.items():
        settings = TRAINERS["train-" + part.replace("_", "-")].Settings
        found = recipe.settle(settings, part, argparse.Namespace(config=name, seed=7, steps=None))
        assert found.seed == 7 and found.steps == table["steps"]
    assert name != "small" or len(tables) == len(TRAINERS)


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


BAD_RECIPES = {
    "no TOML": ("text", "no recipe"),
    "another part": ("[autoencoder]\n[harmoniser]", "no part 'harmoniser'"),
    "no such part": ("[refiner]\nsteps = 5", "no table [autoencoder]; it has refiner"),
    "no table": ("autoencoder = 5", "no table [autoencoder]"),
    "unknown": ("[autoencoder]\nlearnrate = 5", "no setting 'learnrate'; known are steps, batch_size, learning_rate"),
    "a long number": ("[autoencoder]\nsteps = " + "9" * 5000, "bad.toml"),
    "deep": ("a = " + "[" * 100_000, "no recipe"),
    "no UTF-8": ("\udcff", "no recipe"),
    "gone": (None, "no recipe"),
}


@pytest.mark.parametrize("text, words", BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_a_bad_recipe_is_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    arguments = ["train-autoencoder", "none", "--config", str(path), "--output", str(tmp_path / "run")]
    assert words in refused(arguments, capsys)


@pytest.mark.parametrize(
    "arguments, settings, words",
    [
        (["train-harmonizer", "{dataset}", "--size", "64"], {}, "No VAE"),
        (["train-harmonizer", "{dataset}", "--size", "60", "--vae", "{vae}"], {}, "multiple of 64"),
        (["train-harmonizer", "{dataset}", "--size", "64", "--from", "{vae}"], {}, "no 9-channel UNet"),
        (["train-harmonizer", "{dataset}", "--size", "64", "--vae", "{vae}", "--list", "none.txt"], {}, "none.txt"),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}"], {"groups": 24}, "groups (24)"),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}"], {"heads": 24}, "heads (24)"),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}", "--mixed-precision", "fp16"], {}, "--mixed-precision"),
        (["train-autoencoder"], {}, "photos"),
        (["train-autoencoder", "none"], {}, "none"),
        (["train-autoencoder", "{dataset}"], {"groups": 32}, "groups (32)"),
        (["train-harmony-vae", "{dataset}"], {}, "--from"),
        (["train-autoencoder", "{dataset}", "--output", "{vae}"], {}, "not a folder"),
        (["train-autoencoder", "{dataset}", "--output", "{vae}/run"], {}, "not a folder"),
        (["train-refiner", "{dataset}", "--from", "{vae}"], {"crop": 30}, "crop must be a multiple of 8"),
        (["train-refiner", "{dataset}", "--from", "{vae}"], {"size": 64, "crop": 72}, "crop (72)"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"size": 60}, "size must be a multiple of 8"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"widths": [48]}, "multiples of norm_num_groups"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"resolution": 8}, "resolution must be at least"),
    ],
)
def test_bad_input_is_one_line(dataset, vae, stage1, tmp_path, capsys, arguments, settings, words):
    name, *rest = [argument.format(dataset=dataset, vae=vae, stage1=stage1) for argument in arguments]
    assert words in refused(runs.command(name, *rest, output=tmp_path / "run", **settings), capsys)


def test_a_vae_of_another_scale_is_refused(dataset, tmp_path, capsys):
    from diffusers.models import AutoencoderKL

    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(
        block_out_channels=(32,) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8, **levels
    )
    checkpoint.write(checkpoint.Checkpoint(name="f4", vae=checkpoint.part_from(vae)), tmp_path / "f4.safetensors")
    line = refused(runs.harmonizer(dataset, tmp_path / "f4.safetensors", output=tmp_path / "run"), capsys)
    assert "1/4" in line and "1/8" in line


def bomb(path):
    """A PNG of 30,000 x 30,000 pixels that has a hundred bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


BAD_PICTURES = {
    "a bomb": bomb,
    "no picture": lambda path: path.write_bytes(b"no picture"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "of other proportions": lambda path: Image.new("RGB", (72, 96)).save(path),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_bad_picture_is_named_in_one_line(vae, tmp_path, capsys, damage, workers):
    """That of one which no sample sheet shows: it is read for training alone, here or by a worker."""
    dataset = runs.make_dataset(tmp_path / "data", pairs=18)
    options = {"workers": workers, "sample_every": 0, "checkpoint_every": 100}
    photo, mask = (dataset / "Small" / name for name in ("real_images/p5.png", "masks/p5_1.png"))
    stage1 = runs.harmonizer(dataset, vae, output=tmp_path / "run", steps=9, **options)
    alone = runs.autoencoder(dataset, output=tmp_path / "photos", steps=9, **options)
    for path, arguments in ((photo, stage1), (mask, stage1), (photo, alone)):
        if arguments == alone and damage in (BAD_PICTURES["gone"], BAD_PICTURES["of other proportions"]):
            continue
        before = path.read_bytes()
        damage(path)
        assert str(path.with_suffix("")) in refused(arguments, capsys)
        path.write_bytes(before)


def alpha_only(path):
    matte = Image.open(path)
    cut = Image.new("LA", matte.size, 0)
    cut.putalpha(matte)
    cut.save(path)


def turned(path):
    """The file lies on its side, and says so."""
    with Image.open(path) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.mark.parametrize("kind", [data.Pairs, data.Foregrounds])
@pytest.mark.parametrize("change, what", [(alpha_only, "masks"), (turned, "masks"), (turned, "*")])
def test_pictures_are_read_as_everywhere(dataset, tmp_path, kind, change, what):
    """A mask may be an alpha channel; what EXIF says is turned upright."""
    other = runs.make_dataset(tmp_path / "data")
    for path in other.glob(f"Small/{what}/*.png"):
        change(path)
    for index in range(3):
        sample, same = (
            kind(root, "IHD_train.txt", 64).get(index, np.random.default_rng(1)) for root in (dataset, other)
        )
        assert sample["mask"].any() and all(torch.equal(sample[name], same[name]) for name in sample)


def test_empty_masks_end_a_training(vae, stage1, tmp_path, capsys):
    dataset = runs.make_dataset(tmp_path / "data", mask=0)
    output = tmp_path / "run"
    for weight in (0, 1):  # the loss is zero, and is not
        settings = {"sample_every": 0, "background_weight": weight}
        line = refused(runs.harmonizer(dataset, vae, output=output, steps=30, **settings), capsys)
        assert "masks of the last 10 batches are empty" in line and not (output / "harmonizer.safetensors").exists()
        assert loop.checkpoints(output)[-1].name == "checkpoint-8"  # the check comes before the tenth step's
        shutil.rmtree(output)
    for arguments in (
        runs.refiner(dataset, stage1, output=output, sample_every=0),
        runs.harmony_vae(dataset, vae, output=output, sample_every=0),
    ):
        assert "masks of the last 4 batches are empty" in refused(arguments, capsys)
        assert not list(output.glob("*.safetensors"))
        shutil.rmtree(output)
    for arguments in (
        runs.harmonizer(dataset, vae, output=output, made=True),
        runs.color_regressor(dataset, output=output),
    ):
        assert "no foreground in any mask" in refused(arguments, capsys)


class Numbers:
    """Eight samples, each a number."""

    def __len__(self):
        return 8

    def get(self, index, rng):
        return {"x": torch.full((1,), float(index))}


def train_line(output, steps, loss, export, **more):
    """The loop itself, with a line through these numbers as its model, which is returned."""
    settings = recipe.Settings(**{**runs.SMALL, "steps": steps, **more})
    loop.seeded(settings)
    line = torch.nn.Linear(1, 1)
    loop.train(settings, output, line, Numbers(), loss, export=export)
    return line


def test_dropout_goes_on_too(tmp_path):
    """What draws from the global generators is the same after a stop."""

    def loss(model, batch, generator):
        return torch.nn.functional.dropout(model(batch["x"])).square().mean(), {}

    weights = []
    for folder, stops in (("whole", (6,)), ("broken", (2, 6))):
        for steps in stops:
            line = train_line(tmp_path / folder, steps, loss, lambda model: None)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in line.parameters()]))
    assert torch.equal(*weights)


def test_a_loss_of_zero_ends_a_training(tmp_path, capsys):
    """Every now and then a batch may have nothing to learn; all of them may not."""

    def train(output, zero, steps=40):
        def loss(model, batch, generator):
            return model(batch["x"]).square().mean() * (0.0 if zero(batch["x"]) else 1.0), {}

        train_line(output, steps, loss, lambda model: (output / "result").write_text("whole"))

    with pytest.raises(ValueError, match="loss of the last 10 batches is exactly zero"):
        train(tmp_path / "zero", lambda x: True)
    with pytest.raises(ValueError, match="loss of the last 4 batches is exactly zero"):
        train(tmp_path / "short", lambda x: True, steps=4)
    train(tmp_path / "half", lambda x: 3 not in x)
    assert not (tmp_path / "zero/result").exists() and (tmp_path / "half/result").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_is_not_kept(tmp_path):
    calls = []

    def loss(model, batch, generator):
        calls.append(1)
        return model(batch["x"]).square().mean() * (torch.nan if len(calls) == 4 else 1.0), {}

    with pytest.raises(ValueError, match=r"became nan at step 3.*learning_rate"):
        train_line(tmp_path / "run", 9, loss, lambda model: None, log_every=100)
    assert [path.name for path in loop.checkpoints(tmp_path / "run")] == ["checkpoint-2"]

import json

import pytest
import torch
from safetensors.torch import load_file

from diffharmony_models import checkpoint, geometry, sampling
from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner
from diffharmony_models.pipeline import DiffHarmony, Noise, default_dtype

FLOAT32 = {"atol": 1e-4, "rtol": 0}


def tiny(**changes) -> DiffHarmony:
    """Every part at tiny width, with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(3)
    widths = (8, 8, 16, 16)
    unet = UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    )
    refiner = Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    harmony_vae = HarmonyVAE(block_out_channels=widths, layers_per_block=1, norm_num_groups=4)
    parts = {"unet": unet, "vae": vae, "refiner": refiner, "harmony_vae": harmony_vae}
    parts = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
    settings = {"null_text": torch.randn(5, 8), "prediction_type": "v_prediction", "resolution": 64, "name": "tiny"}
    return DiffHarmony(**{**parts, **settings, **changes})


@pytest.fixture(scope="module")
def engine():
    return tiny()


def pair(batch: int = 1, height: int = 60, width: int = 52) -> tuple[torch.Tensor, torch.Tensor]:
    composite, mask = torch.rand(batch, 3, height, width), torch.zeros(batch, 1, height, width)
    mask[..., 10:40, 12:41] = 1
    mask[..., 40, 12:41] = 0.5
    return composite, mask


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


# Parity with the published implementation.


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_golden_latents_from_the_published_noise(published, sampler):
    engine, golden = published
    latents = engine.harmonize_latents(*golden_pair(golden), resolution=64, sampler=sampler, noise=golden_noise(golden))
    torch.testing.assert_close(latents, golden[f"latents_{sampler}"], **FLOAT32)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler"])
def test_golden_latents_from_a_generator(published, golden_dir, sampler):
    engine, golden = published
    seed = json.loads((golden_dir / "golden.json").read_text())["seed"]
    generator = torch.Generator().manual_seed(seed)
    latents = engine.harmonize_latents(*golden_pair(golden), resolution=64, sampler=sampler, generator=generator)
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
    image = engine.decode(golden["latents_euler_ancestral"], *golden_pair(golden), harmony_vae=True)
    torch.testing.assert_close(image, (golden["harmony_vae_mode"] / 2 + 0.5).clamp(0, 1), **FLOAT32)


def test_golden_harmony_vae_from_one_generator(published, golden_dir):
    # The Harmony-VAE takes the VAE's place altogether: it encodes too, and draws its condition's posterior last.
    engine, golden = published
    generator = torch.Generator().manual_seed(json.loads((golden_dir / "golden.json").read_text())["seed"])
    result = engine(
        *golden_pair(golden), resolution=64, generator=generator, harmony_vae=True, ending="paper", refine=False
    )
    torch.testing.assert_close(result.harmonized, golden["decoded_harmony_vae"], **FLOAT32)


def test_golden_paper_ending(published):
    engine, golden = published
    composite, mask = golden_pair(golden)
    options = {"resolution": 64, "noise": golden_noise(golden), "ending": "paper", "output_size": (32, 32)}
    result = engine(composite, mask, **options)
    torch.testing.assert_close(result.harmonized, golden["decoded"], **FLOAT32)
    # The golden refiner saw this very image, scaled down; its output lacks only the background.
    small, small_mask = geometry.resize(composite, (32, 32)), geometry.resize(mask, (32, 32))
    expected = geometry.paste((golden["refined"] + 1) / 2, small, small_mask)
    torch.testing.assert_close(result.refined, expected, **FLOAT32)


# The sampler.


def test_schedule_is_the_published_one(golden_dir):
    golden = json.loads((golden_dir / "golden.json").read_text())
    timesteps, sigmas = sampling.schedule(golden["steps"])
    assert timesteps.tolist() == golden["timesteps"]
    assert sigmas.tolist() == pytest.approx(golden["sigmas"], rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_any_number_of_steps_starts_at_pure_noise(steps):
    timesteps, sigmas = sampling.schedule(steps)
    assert timesteps[0] == 999 and len(timesteps) == steps and len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("prediction", sampling.PREDICTIONS)
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_samplers_are_those_of_diffusers(sampler, prediction):
    from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    scheduler = {"euler": EulerDiscreteScheduler, "euler_ancestral": EulerAncestralDiscreteScheduler}[sampler](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        prediction_type=prediction,
    )
    if (sampler, prediction) == ("euler_ancestral", "sample"):
        pytest.skip("diffusers has no such")
    scheduler.set_timesteps(7)
    noise, network = torch.randn(2, 4, 2, 2), lambda x, t: torch.tanh(x + t / 1000)
    generator = torch.Generator().manual_seed(5)
    x = noise * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    draws = sampling.Draws(2, [0, 1], generator=torch.Generator().manual_seed(5))
    ours = sampling.sample(network, noise, 7, sampler, prediction, draws)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", sampling.PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_network_that_knows_the_answer_gives_it(prediction, steps):
    answer, sigma_of = torch.randn(1, 4, 2, 2), dict(zip(*(tensor.tolist() for tensor in sampling.schedule(steps))))

    def oracle(x, timestep):
        sigma = sigma_of[timestep.item()]
        noise = (x * (sigma**2 + 1) ** 0.5 - answer) / sigma
        if prediction == "sample":
            return answer
        return noise if prediction == "epsilon" else (noise - sigma * answer) / (sigma**2 + 1) ** 0.5

    for sampler in sampling.SAMPLERS:
        draws = sampling.Draws(1, [0], 4)
        latents = sampling.sample(oracle, torch.randn(1, 4, 2, 2), steps, sampler, prediction, draws)
        torch.testing.assert_close(latents, answer, atol=1e-4, rtol=1e-4)


# Noise.


def test_a_seed_means_the_same_picture_whatever_the_batch(engine):
    composite, mask = pair(3)
    together = engine(composite, mask, seeds=[7, 8, 9])
    for index, seed in enumerate([7, 8, 9]):
        alone = engine(composite[index : index + 1], mask[index : index + 1], seeds=seed)
        torch.testing.assert_close(alone.harmonized[0], together.harmonized[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.refined[0], together.refined[index], atol=1e-4, rtol=0)
    other = engine.harmonize_latents(composite, mask, seeds=[7, 9, 9])
    same = engine.harmonize_latents(composite, mask, seeds=[7, 8, 9])
    assert (other[1] - same[1]).abs().max() > 1e-2


def test_the_posterior_is_sampled_and_the_mode_is_its_mean(engine):
    composite, _ = pair(1, 64, 64)
    mode, noise = engine.encode(composite), torch.randn(1, 4, 8, 8)
    assert not torch.equal(mode, engine.encode(composite, sample=True))
    drawn = [engine.encode(composite, noise=sign * noise) for sign in (1, -1)]
    torch.testing.assert_close(sum(drawn) / 2, mode, atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(1)
    expected = engine.encode(composite, noise=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(engine.encode(composite, generator=generator), expected)


def test_a_generator_is_drawn_from_for_empty_frames_too(engine):
    composite, mask = pair(2)
    full = engine(composite, mask, generator=torch.Generator().manual_seed(1))
    hollow = mask.clone()
    hollow[0] = 0
    part = engine(composite, hollow, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(part.harmonized[1], full.harmonized[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "source, words",
    [
        ({"seeds": [1, 2]}, "1 images came with 2 seeds"),
        ({"seeds": 1, "generator": torch.Generator()}, "at most one"),
        ({"noise": Noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))}, "steps must be"),
        ({"noise": Noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 8))}, "posterior must be"),
    ],
)
def test_noise_that_does_not_fit(engine, source, words):
    with pytest.raises(ValueError, match=words):
        engine.harmonize_latents(*pair(), **source)


# The endings.


@pytest.mark.parametrize("ending", ["paper", "transfer"])
@pytest.mark.parametrize("batch_of_masks", [1, 2])
def test_the_background_is_bit_for_bit_the_composites(engine, ending, batch_of_masks):
    composite, mask = pair(2)
    before = composite.clone(), mask.clone()
    result = engine(composite, mask[:batch_of_masks], ending=ending, feather=2)
    outside = (mask == 0).expand_as(composite)
    assert torch.equal(result.refined[outside], composite[outside])
    assert not torch.equal(result.refined, composite)
    assert result.refined.shape == composite.shape and result.harmonized.shape == (2, 3, 64, 64)
    assert result.refined.dtype == torch.float32 and not result.refined.is_inference()
    assert result.refined.min() >= 0 and result.refined.max() <= 1
    assert torch.equal(composite, before[0]) and torch.equal(mask, before[1])


@pytest.mark.parametrize("ending", ["paper", "transfer"])
def test_an_empty_mask_gives_the_composite_back_frame_by_frame(ending):
    engine, calls = tiny(), []
    engine.unet.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    composite, mask = pair(3)
    mask[1] = 0
    result = engine(composite, mask, ending=ending)
    assert torch.equal(result.refined[1], composite[1])
    assert not torch.equal(result.refined[0], composite[0]) and not torch.equal(result.refined[2], composite[2])
    assert calls == [2] * 5  # guidance scale 1: one call a step, and only for the frames that have a foreground
    assert torch.equal(engine(composite, torch.zeros(1, 1, 60, 52), ending=ending).refined, composite)
    assert calls == [2] * 5


@pytest.mark.parametrize("ending", ["paper", "transfer"])
@pytest.mark.parametrize("size", [(30, 26), (75, 65)])
def test_output_size(engine, ending, size):
    composite, mask = pair()
    result = engine(composite, mask, output_size=size, ending=ending)
    background = geometry.resize(mask, size) == 0
    resized = geometry.resize(composite, size)
    assert result.refined.shape[-2:] == size
    assert torch.equal(result.refined[background.expand_as(resized)], resized[background.expand_as(resized)])


def test_refining_makes_a_difference_and_can_be_left_out(engine):
    composite, mask = pair()
    refined, plain = (
        engine(composite, mask, ending="paper", refine=refine, harmony_vae=True) for refine in (True, False)
    )
    assert torch.equal(refined.harmonized, plain.harmonized)
    assert not torch.equal(refined.refined, plain.refined)
    expected = geometry.paste(geometry.resize(plain.harmonized, (60, 52)), composite, mask)
    paper = engine(composite, mask, ending="paper", refine=False, harmony_vae=True)
    torch.testing.assert_close(paper.refined, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ending", ["paper", "transfer"])
def test_the_stages_one_by_one_make_what_the_call_makes(engine, ending):
    composite, mask = pair(2)
    result = engine(composite, mask, seeds=[1, 2], ending=ending, harmony_vae=False, feather=1)
    latents = engine.harmonize_latents(composite, mask, seeds=[1, 2])
    harmonized = engine.decode(latents)
    refined = engine.finish(harmonized, composite, mask, ending=ending, feather=1)
    assert torch.equal(harmonized, result.harmonized) and torch.equal(refined, result.refined)


def test_square_and_keep_sizes(engine):
    composite, mask = pair(1, 60, 120)
    assert engine(composite, mask, resolution=128).harmonized.shape[-2:] == (64, 192)
    assert engine(composite, mask, resolution=128, shape="square").harmonized.shape[-2:] == (128, 128)


def test_nothing_is_computed_twice():
    engine, encodings = tiny(), []
    engine.vae.encoder.register_forward_hook(lambda *_: encodings.append(1))
    engine(*pair(), steps=3, ending="paper")
    assert len(encodings) == 1


def test_progress_counts_to_its_end(engine):
    for mask in (pair()[1], torch.zeros(1, 1, 60, 52)):
        seen = []
        engine(pair()[0], mask, steps=2, progress=lambda *done, seen=seen: seen.append(done))
        assert seen[-1] == (5, 5) and seen == sorted(set(seen))


# Bad input, missing parts, broken weights.


def test_sizes_that_differ(engine):
    composite, mask = pair()
    with pytest.raises(ValueError, match=r"Image and mask must be the same size\. 52x60 != 52x59"):
        engine(composite, mask[..., :59, :])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampler": "heun"}, "heun"),
        ({"ending": "photo"}, "photo"),
        ({"steps": -1}, "at least 1 step"),
        ({"shape": "stretch"}, "stretch"),
        ({"resolution": 63}, "too small"),
    ],
)
def test_unknown_options(engine, options, words):
    with pytest.raises(ValueError, match=words):
        engine(*pair(), **options)


@pytest.mark.parametrize(
    "missing, words",
    [
        ("unet", "has no UNet"),
        ("vae", "has no VAE"),
        ("null_text", "has no null text"),
        ("refiner", "has no refiner.*--no-refine"),
        ("harmony_vae", "has no Harmony-VAE"),
    ],
)
def test_a_missing_part_is_named_with_what_to_do(missing, words):
    engine = tiny(**{missing: None})
    with pytest.raises(ValueError, match=words):
        engine(*pair(), harmony_vae=missing == "harmony_vae", ending="paper")


def test_the_transfer_ending_needs_no_refiner():
    composite, mask = pair()
    with_one, without = (tiny(**parts)(composite, mask, seeds=3).refined for parts in ({}, {"refiner": None}))
    assert torch.equal(with_one, without)


def test_a_harmony_vae_can_stand_in_for_the_vae():
    result = tiny(vae=None)(*pair(), ending="paper")
    assert torch.isfinite(result.refined).all()


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
        engine(*pair(), ending="paper")


# Devices and dtypes.


def test_default_dtype_follows_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert default_dtype("cpu") == torch.bfloat16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert default_dtype("cpu") == torch.float32
    assert default_dtype("mps") == torch.float32


def test_bfloat16_stays_near_float32(engine):
    composite, mask = pair()
    exact = engine(composite, mask, ending="paper").refined
    half = tiny()
    for part in (half.unet, half.vae, half.refiner, half.harmony_vae):
        part.to(torch.bfloat16)
    rough = half(composite, mask, ending="paper").refined
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.05


def test_latents_can_be_trained_on(engine):
    latents = engine.harmonize_latents(*pair())
    weight = torch.ones(1, requires_grad=True)
    (latents * weight).square().sum().backward()
    assert weight.grad is not None

"""The samplers and their noise."""

import json

import pytest
import torch
from tiny_pipeline import pair

from diffharmony_models import sampling
from diffharmony_models.pipeline import Noise
from diffharmony_models.settings import Settings


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


def test_a_seed_means_the_same_picture_whatever_the_batch(engine):
    composite, mask = pair(3)
    together = engine(composite, mask, Settings(seed=7))
    for index, seed in enumerate([7, 8, 9]):  # as in a graph
        alone = engine(composite[index : index + 1], mask[index : index + 1], Settings(seed=seed))
        torch.testing.assert_close(alone.harmonized[0], together.harmonized[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.refined[0], together.refined[index], atol=1e-4, rtol=0)
    other = engine.harmonize_latents(composite, mask, seeds=[7, 9, 9])
    same = engine.harmonize_latents(composite, mask, seeds=[7, 8, 9])
    assert (other[1] - same[1]).abs().max() > 1e-2


def test_the_posterior_is_sampled_and_the_mode_is_its_mean(engine):
    composite, _ = pair(1, 64, 64)
    mode, noise = engine.encode(composite), torch.randn(1, 4, 8, 8)
    assert not torch.equal(mode, engine.encode(composite, noise=noise))
    drawn = [engine.encode(composite, noise=sign * noise) for sign in (1, -1)]
    torch.testing.assert_close(sum(drawn) / 2, mode, atol=1e-5, rtol=0)


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
        ({"seeds": [1], "generator": torch.Generator()}, "at most one"),
        ({"noise": Noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))}, "steps must be"),
        ({"noise": Noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 8))}, "posterior must be"),
    ],
)
def test_noise_that_does_not_fit(engine, source, words):
    with pytest.raises(ValueError, match=words):
        engine.harmonize_latents(*pair(), **source)

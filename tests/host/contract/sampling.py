"""Sampling and CONDITIONING."""

import inspect

import comfy.k_diffusion.sampling as k_sampling
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import node_helpers
import torch

from .tiny import CPU, patcher, takes, unet


def model_sampling_is_a_table_of_sigmas() -> None:
    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    assert sampling.num_timesteps == 1000 and sampling.sigmas.shape == (1000,)
    sampling.set_sigmas(torch.linspace(1, 2, 1000))
    assert sampling.sigmas[0] == 1 == sampling.sigma_min and sampling.sigmas[-1] == 2 == sampling.sigma_max


def model_sampling_methods_that_are_replaced() -> None:
    takes(comfy.model_sampling.ModelSamplingDiscrete.timestep, "sigma")
    takes(comfy.model_sampling.ModelSamplingDiscrete.sigma, "timestep")
    takes(comfy.model_sampling.EPS.noise_scaling, "sigma", "noise", "latent_image", "max_denoise")


def predictions_are_mixins_with_one_noise_scaling() -> None:
    for name in ("EPS", "V_PREDICTION", "X0"):
        kind = getattr(comfy.model_sampling, name)
        assert issubclass(kind, comfy.model_sampling.EPS) and not issubclass(kind, torch.nn.Module)
        assert kind.noise_scaling is comfy.model_sampling.EPS.noise_scaling


def scheduler_normal_asks_sigma_and_timestep_alone() -> None:
    class Linear(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
            return sigma

        def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
            return timestep

    sampling = Linear()
    sampling.set_sigmas(torch.linspace(1, 9, 1000))
    found = comfy.samplers.calculate_sigmas(sampling, "normal", 5)
    assert torch.allclose(found, torch.tensor([9.0, 7, 5, 3, 1, 0])), found


def ksampler_gives_sigmas() -> None:
    takes(comfy.samplers.KSampler.__init__, "model", "steps", "device", "sampler", "scheduler", "denoise", after=1)
    assert "euler_ancestral" in comfy.samplers.KSampler.SAMPLERS and "normal" in comfy.samplers.KSampler.SCHEDULERS
    settings = {"device": CPU, "sampler": "euler", "scheduler": "normal", "denoise": 1.0, "model_options": {}}
    assert len(comfy.samplers.KSampler(patcher(), 3, **settings).sigmas) == 4


def sampler_object_takes_options() -> None:
    sampler = comfy.samplers.sampler_object("euler_ancestral")
    assert isinstance(sampler.extra_options, dict)
    takes(sampler.sampler_function, "noise_sampler")
    assert "noise_sampler" not in inspect.signature(comfy.samplers.sampler_object("euler").sampler_function).parameters
    assert "**self.extra_options" in inspect.getsource(type(sampler).sample)


def noise_samplers_are_asked_by_two_sigmas() -> None:
    asked = []

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros(1, 4, 2, 2)

    def model(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        return x * 0

    model.inner_model = unet()  # what the host's wrapper has
    model.inner_model.inner_model = model.inner_model
    sigmas = torch.tensor([3.0, 2.0, 1.0, 0.0])
    k_sampling.sample_euler_ancestral(model, torch.zeros(1, 4, 2, 2), sigmas, disable=True, noise_sampler=noise)
    assert asked == [(3, 2), (2, 1)], asked


def brownian_samplers_are_told_by_name() -> None:
    """Those that ask for noise of overlapping spans are the dpmpp…sde ones, no others."""
    for name in comfy.samplers.KSampler.SAMPLERS:
        if name in ("ddim", "uni_pc", "uni_pc_bh2"):
            continue
        source = inspect.getsource(comfy.samplers.sampler_object(name).sampler_function)
        if "BrownianTreeNoiseSampler" in source:
            assert name.startswith("dpmpp") and "sde" in name, name


def brownian_noise_has_a_seed_for_each_picture() -> None:
    x, low, high = torch.zeros(2, 4, 2, 2), torch.tensor(0.1), torch.tensor(9.0)
    both = k_sampling.BrownianTreeNoiseSampler(x, low, high, seed=[1, 2], cpu=True)(high, low)
    alone = k_sampling.BrownianTreeNoiseSampler(x[1:], low, high, seed=[2], cpu=True)(high, low)
    assert torch.equal(both[1:], alone)


def sample_custom_takes_its_arguments_in_this_order() -> None:
    first = ["model", "noise", "cfg", "sampler", "sigmas", "positive", "negative", "latent_image"]
    assert list(inspect.signature(comfy.sample.sample_custom).parameters)[:8] == first
    takes(comfy.sample.sample_custom, "callback", "disable_pbar", "seed")


def private_keys_stay_in_conditioning() -> None:
    given = [[torch.zeros(1, 77, 16), {"diffharmony_resolution": 128}]]
    found = node_helpers.conditioning_set_values(given, {"concat_mask": 1})
    assert found[0][1] == {"diffharmony_resolution": 128, "concat_mask": 1} and "concat_mask" not in given[0][1]
    assert comfy.sampler_helpers.convert_cond(found)[0]["diffharmony_resolution"] == 128


def inpainting_networks_ask_for_latent_and_mask() -> None:
    model = unet()
    assert tuple(model.concat_keys) == ("mask", "masked_image")
    latent, mask = torch.full((1, 4, 8, 8), 2.0), torch.ones(1, 1, 8, 8)
    given = {"concat_latent_image": latent, "concat_mask": mask, "cross_attn": torch.zeros(1, 77, 16)}
    found = model.extra_conds(noise=torch.zeros(1, 4, 8, 8), device=CPU, **given)
    seen = found["c_concat"].cond
    assert torch.equal(seen[:, :1], mask) and torch.allclose(seen[:, 1:], latent * 0.18215)
    assert "c_crossattn" in found


def clip_encodes_by_schedule() -> None:
    assert callable(comfy.sd.CLIP.tokenize) and callable(comfy.sd.CLIP.encode_from_tokens_scheduled)

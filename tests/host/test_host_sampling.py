"""Our MODEL among the host's own nodes: samplers, LoRA, model patches; and a run that is cancelled."""

import time

import pictures
import pytest
import torch
import weights
from graphs import BUNDLED, LATENT, SEED, STEPS, condition, engine, harmonize, hosts_noise, ksampler, wires
from harness import RUN, Interrupted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.settings import Settings

LORA = "tiny.safetensors"


def custom(graph, model, conditioned):
    guider = graph("BasicGuider", model=model, conditioning=conditioned[0])
    sigmas = graph("BasicScheduler", model=model, scheduler="normal", steps=5, denoise=1.0)
    parts = {"noise": graph("RandomNoise", noise_seed=SEED)[0], "guider": guider[0], "sigmas": sigmas[0]}
    sampler = graph("KSamplerSelect", sampler_name="euler_ancestral")
    return graph("SamplerCustomAdvanced", **parts, sampler=sampler[0], latent_image=conditioned[2])[0]


@pytest.mark.parametrize("sample", [ksampler, custom])
def test_stage_1_by_the_hosts_own_samplers(host, bundled, sample):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, mask)
    (found,) = host.fetch(graph, sample(graph, shared["model"], condition(graph, shared, 64)))
    noise = hosts_noise(tuple(found.shape))
    expected = bundled.harmonize_latents(composite, mask, Settings(resolution=64, steps=STEPS), noise=noise)
    assert (found - expected / bundled.vae.config.scaling_factor).abs().max() <= LATENT


def test_a_frame_with_an_empty_mask_goes_through_ksampler_unharmed(host, bundled):
    composite, mask = pictures.composites(2)
    mask[0] = 0
    graph, shared = wires(host, BUNDLED, composite, mask)
    conditioned = condition(graph, shared, 64)
    found, given = host.fetch(graph, ksampler(graph, shared["model"], conditioned), conditioned[2])
    assert (found[0] - given[0]).abs().max() <= LATENT
    assert (found[1] - given[1]).abs().max() > 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_0_are_the_checkpoints_own(host, steps, tmp_path):
    """Of a file that says how many, and of one that does not, as none did before."""
    content = weights.whole()
    content.steps = steps
    checkpoints.write(content, tmp_path / "steps.safetensors")
    path = host.models / "diffharmony" / f"steps {steps}.safetensors"
    with safe_open(tmp_path / "steps.safetensors", "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "steps" or steps != 5}
    save_file(load_file(tmp_path / "steps.safetensors"), path, metadata)
    composite, mask = pictures.composites()
    graph, shared = wires(host, path.name, composite, mask)
    own, typed, other = host.fetch(graph, *(harmonize(graph, shared, 64, steps=each) for each in (0, steps, 3)))
    assert torch.equal(own, typed) and not torch.equal(own, other)
    expected = engine(path).harmonize_latents(composite, mask, Settings(resolution=64, seed=SEED))
    assert (own - expected / content.vae.config["scaling_factor"]).abs().max() <= LATENT


def lora(path, unet: dict) -> None:
    """A LoRA of rank 2 on all queries of self-attention, under the names that training scripts for SD 1.5 give."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in unet.items():
        if key.endswith("attn1.to_q.weight"):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            state[f"{name}.lora_down.weight"] = torch.randn(2, value.shape[1], generator=generator)
            state[f"{name}.lora_up.weight"] = torch.randn(value.shape[0], 2, generator=generator)
            state[f"{name}.alpha"] = torch.tensor(2.0)
    assert state
    save_file(state, path)


@pytest.fixture(scope="module")
def whole(host) -> str:
    """A checkpoint with attention on its uppermost level, and a LoRA for it."""
    content = weights.whole()
    checkpoints.write(content, host.models / "diffharmony" / "whole.safetensors")
    (host.models / "loras").mkdir(exist_ok=True)
    lora(host.models / "loras" / LORA, content.unet.state)
    return "whole.safetensors"


def lora_loader(graph, model, strength=1.0):
    return graph("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=strength)[0]


def tome(graph, model):
    return graph("TomePatchModel", model=model, ratio=0.5)[0]


def discrete(graph, model):
    return graph("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=True)[0]


def rescale(graph, model):
    return graph("RescaleCFG", model=model, multiplier=0.7)[0]


def untouched(graph, model):
    """The same MODEL, which the host does not know to be the same: what it answers is not from its memory."""
    return graph("TestPause", model=model, calls=0, file="never")[0]


def harmonized(host, checkpoint: str, patch=None, seed: int = SEED) -> torch.Tensor:
    composite, mask = pictures.composites()
    graph, shared = wires(host, checkpoint, composite, mask)
    if patch:
        shared["model"] = patch(graph, shared["model"])
    return host.fetch(graph, harmonize(graph, shared, 64, seed=seed))[0]


@pytest.mark.parametrize("patch", [lora_loader, tome, discrete])
def test_a_model_node_between_takes_effect_and_leaves_the_model_alone(host, whole, patch):
    plain = harmonized(host, whole)
    patched = harmonized(host, whole, patch)
    assert torch.isfinite(patched).all() and (patched - plain).abs().max() > 0.01
    assert torch.equal(harmonized(host, whole, untouched), plain)


@pytest.mark.parametrize(
    "patch", [rescale, lambda graph, model: lora_loader(graph, model, strength=0.0)], ids=["cfg", "lora"]
)
def test_a_model_node_that_has_nothing_to_do_changes_nothing(host, whole, patch):
    assert (harmonized(host, whole, patch) - harmonized(host, whole)).abs().max() <= LATENT


def test_a_cancelled_run_leaves_the_model_fit_for_the_next(host, whole):
    before = harmonized(host, whole)
    graph, shared = wires(host, whole, *pictures.composites())
    shared["model"] = graph("TestPause", model=shared["model"], calls=3, file="paused")[0]
    graph("TestSave", value=harmonize(graph, shared, 64), file="cancelled")
    run = host.queue(graph)
    end = time.monotonic() + RUN
    while not (host.output / "paused").exists():
        assert time.monotonic() < end, "the third step was never reached"
        time.sleep(0.02)
    host.post("/interrupt", {})
    with pytest.raises(Interrupted):
        host.wait(run)
    assert not (host.output / "cancelled").exists()
    assert torch.equal(harmonized(host, whole, untouched), before)
    assert torch.equal(harmonized(host, whole), before)


def test_the_harmonized_latent_goes_on_into_another_sampler(host):
    composite, mask = pictures.composites()
    graph, shared = wires(host, BUNDLED, composite, mask)
    latent = harmonize(graph, shared, 64)
    conditioned = condition(graph, shared, 64)
    wired = ksampler(graph, shared["model"], conditioned, latent_image=latent, denoise=0.3)
    first, second = host.fetch(graph, latent, wired)
    assert torch.isfinite(second).all() and not torch.equal(first, second)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_sde", "heun", "lcm"])
def test_other_samplers_and_schedulers(host, sampler):
    composite, mask = pictures.composites(2)
    graph, shared = wires(host, BUNDLED, composite, mask)
    (together,) = host.fetch(graph, harmonize(graph, shared, 64, sampler_name=sampler, scheduler="karras"))
    assert torch.isfinite(together).all()
    graph, shared = wires(host, BUNDLED, composite[1:], mask[1:])
    (alone,) = host.fetch(graph, harmonize(graph, shared, 64, sampler_name=sampler, scheduler="karras", seed=SEED + 1))
    assert (together[1:] - alone).abs().max() <= LATENT

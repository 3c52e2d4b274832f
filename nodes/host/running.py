"""The one file that knows ComfyUI's internals: its networks, patchers, samplers and folders.

Latents are unscaled here, as everywhere in the host; the MODEL's latent format scales them.
"""

import copy
import inspect
import logging
import os
from collections.abc import Iterator
from typing import Any

import comfy.clip_model
import comfy.diffusers_convert
import comfy.k_diffusion.sampling
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import latent_preview
import node_helpers
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ...diffharmony_models import checkpoint, sampling
from ...diffharmony_models.checkpoint.files import line
from ...diffharmony_models.checkpoint.parts import Part
from ...diffharmony_models.networks import refiner
from . import configs

logger = logging.getLogger(__name__)

FOLDER = "diffharmony"
ATTACHMENT = "diffharmony_resolution"  # on a MODEL and in the null text: the checkpoint's own resolution
VAE_ATTACHMENT = "diffharmony_vae"  # on a MODEL: the first width of the VAE that it was trained with
STEPS_ATTACHMENT = "diffharmony_steps"  # on a MODEL: how many sampling steps the checkpoint was made for
PUBLISHED_RESOLUTION = 1024
WARNINGS = "diffharmony_warnings"  # in what a node tells the page; web/js/warnings.js reads it
SD_VAE_WIDTH = 128  # the first width of Stable Diffusion's VAE
WEIGHT_DTYPES = {"default": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


# Folders.


def register_folder() -> None:
    """models/diffharmony, beside the folders that extra_model_paths.yaml names for it."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | {".safetensors"})


def folders() -> list[str]:
    """Where checkpoints are looked for, the first first."""
    return folder_paths.get_folder_paths(FOLDER)


# The published sampling.


class _Published(comfy.model_sampling.ModelSamplingDiscrete):
    """The host's sampling, with the three things that the published one does otherwise: sigmas between whole timesteps
    are interpolated linearly; the timestep of a sigma is interpolated too, not rounded; the first noise is scaled by
    sigma, not by sqrt(1 + sigma²)."""

    def __init__(self, model_config: object = None) -> None:
        super().__init__(model_config)
        self.set_sigmas(sampling.schedule(self.num_timesteps)[1][:-1].flip(0))

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        return super().noise_scaling(sigma, noise, latent_image, False)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        table = self.sigmas
        value = sigma.to(table).clamp(table[0], table[-1])
        low = (torch.searchsorted(table, value.reshape(-1), right=True) - 1).clamp(0, len(table) - 2).view(value.shape)
        return (low + (value - table[low]) / (table[low + 1] - table[low])).to(sigma.device)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        table = self.sigmas
        t = timestep.to(table).clamp(0, len(table) - 1)
        low = t.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], t - low).to(timestep.device)


class _PublishedEpsilon(_Published, comfy.model_sampling.EPS):
    pass


class _PublishedV(_Published, comfy.model_sampling.V_PREDICTION):
    pass


class _PublishedSample(_Published, comfy.model_sampling.X0):
    pass


_SAMPLINGS = {"epsilon": _PublishedEpsilon, "v_prediction": _PublishedV, "sample": _PublishedSample}


# Loading.


class _Config(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 inpainting at any width."""

    def __init__(self, unet_config: dict, prediction_type: str):
        super().__init__(unet_config)
        self.unet_config["num_heads"] = unet_config["num_heads"]  # the base class has set SD 1.5's
        self.prediction_type = prediction_type

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        types = comfy.model_base.ModelType
        return types.V_PREDICTION if self.prediction_type == "v_prediction" else types.EPS

    def get_model(
        self, state_dict: dict, prefix: str = "", device: torch.device | None = None
    ) -> comfy.model_base.BaseModel:
        model = _Network(self, model_type=self.model_type(state_dict, prefix), device=device)
        model.set_inpaint()
        return model


class _Network(comfy.model_base.BaseModel):
    """The host's inpainting network, which says in words what it cannot take: sampler nodes do not look at
    CONDITIONING.
    """

    ADVICE = (
        "Wire positive and negative of DiffHarmonyConditioning, with the null_text of the LoadDiffHarmony that gave "
        "the MODEL."
    )

    def extra_conds(self, **kwargs: Any) -> dict:
        found, wanted = kwargs.get("cross_attn"), self.model_config.unet_config["context_dim"]
        if found is not None and found.shape[-1] != wanted:
            raise ValueError(
                f"DiffHarmony's MODEL got CONDITIONING of width {found.shape[-1]}; it takes {wanted}. {self.ADVICE}"
            )
        if kwargs.get("concat_latent_image") is None:
            raise ValueError(f"DiffHarmony's MODEL got CONDITIONING without a composite and its mask. {self.ADVICE}")
        return super().extra_conds(**kwargs)


def load_unet(
    part: Part, prediction_type: str, resolution: int, steps: int, weight_dtype: str
) -> comfy.model_patcher.ModelPatcher:
    """A UNet part as a MODEL that samples as published and carries the checkpoint's resolution and number of steps.

    Raises ValueError for a network that the host does not have, and for tensors that do not fit the config.
    """
    unet_config = configs.unet_config(part.config)
    names = comfy.utils.unet_to_diffusers(unet_config)
    state = {names.get(key, key): tensor for key, tensor in part.state.items()}
    config = _Config(unet_config, prediction_type)
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    dtype = WEIGHT_DTYPES[weight_dtype] or mm.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=list(config.supported_inference_dtypes),
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes))
    model = config.get_model(state, "")
    _set_groups(model.diffusion_model, part.config)
    _check_fit("UNet", model.diffusion_model, state)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    if not mm.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state, "", assign=patcher.is_dynamic())
    patcher.add_object_patch("model_sampling", _SAMPLINGS[prediction_type](config))
    patcher.set_attachments(ATTACHMENT, resolution)
    patcher.set_attachments(STEPS_ATTACHMENT, steps)
    return patcher


def pair(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, part: Part) -> None:
    """Tells a MODEL of the VAE that it was trained with, and of the part this was made from: how its latents are
    scaled, what they look like in previews, and how to know it again."""
    scale, width = part.config.get("scaling_factor", 0.18215), part.config["block_out_channels"][0]
    latent_format = comfy.latent_formats.SD15(scale)
    if width != SD_VAE_WIDTH:
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = _preview_factors(vae, scale)
        latent_format.taesd_decoder_name = None  # made for SD's latents
    model.model.latent_format = latent_format
    model.set_attachments(VAE_ATTACHMENT, width)


def _preview_factors(vae: comfy.sd.VAE, scale: float) -> tuple[list, list]:
    """What the host's previews need for latents of a VAE of its own: the linear map from scaled latents to RGB in [-1,
    1] that fits plain colours best, [4][3] and [3]."""
    levels = torch.linspace(0, 1, 4)
    colors = torch.cartesian_prod(levels, levels, levels)
    patches = colors[:, :, None, None].expand(-1, -1, 64, 64)
    latents = encode(vae, patches).mean[:, :, 2:-2, 2:-2].float().cpu().mean(dim=(2, 3)) * scale
    system = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    solution = torch.linalg.lstsq(system, colors * 2 - 1).solution
    return solution[:4].tolist(), solution[4].tolist()


def load_vae(part: Part, weight_dtype: str) -> comfy.sd.VAE:
    """A VAE part as a VAE. fp32 holds for it too; otherwise the host chooses, as for any VAE. Errors as `load_unet`."""
    config = configs.vae_config(part.config)
    state = comfy.diffusers_convert.convert_vae_state_dict(part.state)
    try:
        vae = comfy.sd.VAE(sd=state, config=config, dtype=torch.float32 if weight_dtype == "fp32" else None)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"The VAE's tensors do not fit its config: {line(error)}. Get these weights anew.") from error
    _set_groups(vae.first_stage_model, part.config)
    _check_fit("VAE", vae.first_stage_model, state)
    return vae


def load_refiner(part: Part, weight_dtype: str) -> comfy.model_patcher.ModelPatcher:
    """A refiner in a patcher, with which the host moves it in and out of memory."""
    load_device = mm.get_torch_device()
    parameters = comfy.utils.calculate_parameters(part.state)
    dtype = WEIGHT_DTYPES[weight_dtype] or mm.unet_dtype(load_device, parameters, [torch.bfloat16, torch.float32])
    dtype = (
        mm.unet_manual_cast(dtype, load_device) or dtype
    )  # what the device computes in: this network does not cast as it goes
    # Copies: what is mapped from a file must not outlive the file.
    own = Part(part.config, {key: tensor.to(dtype, copy=True) for key, tensor in part.state.items()})
    module = checkpoint.build_refiner(own).requires_grad_(False)
    return comfy.model_patcher.CoreModelPatcher(
        module, load_device=load_device, offload_device=mm.unet_offload_device()
    )


def null_text_of(encoder: Part) -> torch.Tensor:
    """The embedding of the empty string by a text encoder part, [tokens, width] float32, on the host's own CLIP
    network.
    """
    settings = {"hidden_act": "quick_gelu", "num_attention_heads": 12, **encoder.config, "eos_token_id": 49407}
    with torch.device("meta"):
        network = comfy.clip_model.CLIPTextModel(settings, torch.float32, "meta", comfy.ops.manual_cast).text_model
    state = {key: encoder.state[key].float() for key in network.state_dict() if key in encoder.state}
    _check_fit("text encoder", network, state)
    network.load_state_dict(state, strict=True, assign=True)
    tokens = encoder.config["max_position_embeddings"]
    ids = torch.tensor([[49406] + [49407] * (tokens - 1)])
    with torch.no_grad():
        return network(ids)[0][0]


def conditioning(null_text: torch.Tensor, resolution: int) -> list:
    """A null text [tokens, width] as CONDITIONING that carries the checkpoint's resolution."""
    return [[null_text[None], {ATTACHMENT: resolution}]]


def conditioning_of(clip: comfy.sd.CLIP, resolution: int) -> list:
    """The same from a CLIP."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return node_helpers.conditioning_set_values(encoded, {ATTACHMENT: resolution})


def _set_groups(network: torch.nn.Module, config: dict) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = configs.groups(config)


def _check_fit(name: str, network: torch.nn.Module, state: dict) -> None:
    want = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    for prefix, module in network.named_modules():
        # With dynamic memory the host's layers have no weights before they are loaded.
        if getattr(module, "weight", 0) is None and isinstance(module, torch.nn.Linear):
            want[f"{prefix}.weight"] = (module.out_features, module.in_features)
            if module.comfy_need_lazy_init_bias:
                want[f"{prefix}.bias"] = (module.out_features,)
        elif getattr(module, "weight", 0) is None and isinstance(module, torch.nn.Embedding):
            want[f"{prefix}.weight"] = (module.num_embeddings, module.embedding_dim)
    have = {key: tuple(tensor.shape) for key, tensor in state.items()}
    wrong = [key for key in {**want, **have} if want.get(key) != have.get(key)]
    if wrong:
        first = f"{wrong[0]} is {have.get(wrong[0], 'missing')}, expected {want.get(wrong[0], 'none')}"
        raise ValueError(
            f"The {name}'s tensors do not fit its config: {len(wrong)} of {len(want)} differ ({first}). "
            "Use the config.json that belongs to these weights, or get the weights anew."
        )


# Checks of what other nodes give.


def check_model(model: comfy.model_patcher.ModelPatcher | None, node: str) -> None:
    """ValueError unless this MODEL takes [noisy latent 4, mask 1, composite latent 4] as SD 1.5 inpainting does."""
    if model is None:
        raise ValueError(
            f"{node} got no MODEL: the checkpoint in LoadDiffHarmony has no UNet. Choose one that has (the published "
            "base/, a one-file checkpoint, or the bundled one)."
        )
    inner = model.model
    config = getattr(inner, "model_config", None)
    channels = (getattr(config, "unet_config", None) or {}).get("in_channels")
    harmonizing = channels == 9 and inner.adm_channels == 0 and inner.latent_format.latent_channels == 4
    if not harmonizing or tuple(inner.concat_keys) != ("mask", "masked_image"):
        name = "DiffHarmony" if isinstance(config, _Config) else type(config).__name__
        raise ValueError(
            f"{node} got a MODEL of the kind {name} with {channels} input channels; it needs DiffHarmony's: SD 1.5's "
            "inpainting network with 9 (noisy latent 4, mask 1, composite latent 4). Wire the MODEL of LoadDiffHarmony."
        )


def check_vae(vae: comfy.sd.VAE | None, node: str) -> None:
    """ValueError unless this VAE has 4 latent channels at 1/8 of the size."""
    if vae is None:
        raise ValueError(
            f"{node} got no VAE: the checkpoint in LoadDiffHarmony has none. Wire SD 1.5's from VAELoader: "
            "vae-ft-mse-840000-ema-pruned.safetensors of huggingface.co/stabilityai/sd-vae-ft-mse-original, in "
            "models/vae."
        )
    channels, factor = vae.latent_channels, vae.spacial_compression_decode()
    if channels != 4 or vae.latent_dim != 2 or factor != 8 or vae.first_stage_model is None:
        raise ValueError(
            f"{node} got a VAE with {channels} latent channels at 1/{factor} of the size; it needs one of the SD 1.5 "
            "family, with 4 at 1/8. Wire the VAE of LoadDiffHarmony, or sd-vae-ft-mse from VAELoader."
        )


def doubts_of_vae(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE) -> list[str]:
    """What to say where a MODEL was trained with a VAE of other widths: such latents mean nothing to it."""
    trained = model.get_attachment(VAE_ATTACHMENT)
    first = getattr(getattr(vae.first_stage_model, "encoder", None), "conv_in", None)
    if trained is None or first is None or first.out_channels == trained:
        return []
    return [
        "This MODEL was trained with a VAE of its own; with another one the colours go wrong. "
        "Wire LoadDiffHarmony's VAE."
    ]


def check_text(null_text: list | None, node: str, model: comfy.model_patcher.ModelPatcher | None = None) -> None:
    """ValueError unless this CONDITIONING has the width that the MODEL takes."""
    if not null_text:
        raise ValueError(
            f"{node} got no null text: the checkpoint in LoadDiffHarmony has none. Wire an SD 1.5 CLIP into "
            "LoadDiffHarmony's clip, from CheckpointLoaderSimple with any SD 1.5 checkpoint, or from CLIPLoader with "
            "clip_l.safetensors."
        )
    width = null_text[0][0].shape[-1]
    wanted = model.model.model_config.unet_config["context_dim"] if model is not None else width
    if width != wanted:
        raise ValueError(
            f"{node} got CONDITIONING of width {width}; the MODEL takes {wanted}. Wire the null_text of the same "
            "LoadDiffHarmony."
        )


def resolution_of(null_text: list, model: comfy.model_patcher.ModelPatcher | None = None) -> int:
    """The checkpoint's own resolution, where these come from one of ours; else that of the published one."""
    found = model.get_attachment(ATTACHMENT) if model is not None else None
    return found or null_text[0][1].get(ATTACHMENT) or PUBLISHED_RESOLUTION


def steps_of(model: comfy.model_patcher.ModelPatcher) -> int:
    """How many steps the checkpoint was made for, where the MODEL comes from one of ours; else the published number."""
    return model.get_attachment(STEPS_ATTACHMENT) or checkpoint.STEPS


def warn(node: str, warnings: list[str]) -> dict[str, list[str]] | None:
    """Logs what a node doubts, and gives it as the `ui` of its output; web/js/warnings.js brings that onto the page."""
    for warning in warnings:
        logger.warning("%s: %s", node, warning)
    return {WARNINGS: warnings} if warnings else None


# Running.


class _Moments:
    """The encoder of an AutoencoderKL, giving the moments of its posterior instead of the mode."""

    def __init__(self, network: torch.nn.Module):
        self.network = network

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        moments = self.network.encoder(pixels)
        return self.network.quant_conv(moments) if hasattr(self.network, "quant_conv") else moments


def encode(vae: comfy.sd.VAE, composite: torch.Tensor) -> sampling.Posterior:
    """[B, 3, H, W] in [0, 1], sides multiples of 8, to the posterior over unscaled latents [B, 4, H / 8, W / 8].

    By the VAE's own `encode`, so that its dtype, batches and tiling hold. A VAE without a posterior (TAESD) has no
    spread.
    """
    pixels, network = composite.movedim(1, -1), vae.first_stage_model  # BCHW -> BHWC
    regularization = type(getattr(network, "regularization", None)).__name__
    if regularization != "DiagonalGaussianRegularizer" or getattr(network, "bn", None) is not None:
        mean = vae.encode(pixels)
        return sampling.Posterior(mean, torch.zeros_like(mean))
    view = copy.copy(vae)
    view.first_stage_model, view.latent_channels = _Moments(network), 2 * vae.latent_channels
    return sampling.Posterior.from_moments(view.encode(pixels))


def decode(vae: comfy.sd.VAE, samples: torch.Tensor) -> torch.Tensor:
    """Unscaled latents [B, 4, h, w] to [B, 3, 8h, 8w] in [0, 1]."""
    return vae.decode(samples).float().movedim(-1, 1)  # BHWC -> BCHW


def condition(null_text: list, latent: torch.Tensor, mask: torch.Tensor) -> list:
    """CONDITIONING with what an inpainting UNet sees beside the noisy latent.

    latent: unscaled, [B, 4, h, w]; mask: [B, 1, h, w].
    """
    return node_helpers.conditioning_set_values(null_text, {"concat_latent_image": latent, "concat_mask": mask})


def sample(
    model: comfy.model_patcher.ModelPatcher,
    positive: list,
    noise: torch.Tensor,
    draw: sampling.Noise,
    seeds: list[int],
    steps: int,
    sampler_name: str,
    scheduler: str,
) -> torch.Tensor:
    """The host's sampler, from pure noise [B, 4, h, w] to unscaled latents.

    What it draws on the way comes from `draw`.
    """
    settings = {"device": model.load_device, "denoise": 1.0, "model_options": model.model_options}
    sigmas = comfy.samplers.KSampler(model, steps, sampler=sampler_name, scheduler=scheduler, **settings).sigmas
    sampler = comfy.samplers.sampler_object(sampler_name)
    if "noise_sampler" in inspect.signature(sampler.sampler_function).parameters:
        if sampler_name.startswith("dpmpp") and "sde" in sampler_name:
            # These ask for noise of overlapping spans, which must agree: a Brownian path for each picture.
            low, high = sigmas[sigmas > 0].min(), sigmas.max()
            fresh = comfy.k_diffusion.sampling.BrownianTreeNoiseSampler(noise, low, high, seed=seeds, cpu=True)
        else:
            fresh = _StepNoise(draw, noise.shape[1:], model.load_device)
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": fresh}
    return comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        sampler,
        sigmas,
        positive,
        positive,
        torch.zeros_like(noise),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seeds[0],
    )


class _StepNoise:
    """A sampler's noise, drawn on the CPU: the same numbers on every device, and for a picture in any batch."""

    def __init__(self, draw: sampling.Noise, shape: torch.Size, device: torch.device):
        self.draw, self.shape, self.device = draw, shape, device

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        return self.draw(self.shape).to(self.device)


def refine(
    patcher: comfy.model_patcher.ModelPatcher, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The refiner on [B, 3, H, W] in [0, 1], a picture at a time, with progress and interrupts. ValueError for what can
    never fit into memory."""
    module, device = patcher.model, patcher.load_device
    height, width = composite.shape[-2:]
    # As measured: the widest level holds the skips, a concatenation of two widths and the working copies of one block.
    channels = module.config["block_out_channels"][0] * (module.config["layers_per_block"] + 13)
    needed, there = height * width * channels * mm.dtype_size(module.conv_in.weight.dtype), mm.get_total_memory(device)
    if needed > there:
        raise ValueError(
            f"Refining {width}x{height} takes about {needed / 1e9:.0f} GB; there are {there / 1e9:.0f}. End in "
            "TransferToFullResolution, which takes any size, or scale composite and mask down before."
        )
    mm.load_models_gpu([patcher], memory_required=needed)
    results = harmonized.to(mm.intermediate_device(), torch.float32, copy=True)
    for one in each(results):
        inputs = (tensor[one].to(device) for tensor in (harmonized, composite, mask))
        with torch.no_grad():
            results[one] = refiner.refine(module, *inputs).to(results)
    return results


def each(results: torch.Tensor) -> Iterator[slice]:
    """Slices for one picture after the other, with the progress bar; stops where the user has cancelled.

    results: [B, 3, H, W] in [0, 1], into which the caller writes each result. The preview shows what lies there before
    and after.
    """
    count = len(results)
    bar = comfy.utils.ProgressBar(count)
    for index in range(count):
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(index, count, _preview(results[index]))
        yield slice(index, index + 1)
        bar.update_absolute(index + 1, count, _preview(results[index]))


def _preview(picture: torch.Tensor) -> tuple | None:
    """A picture [3, H, W] as the host's progress bar takes it, which scales it; None where no previews are wanted."""
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    pixels = (picture.clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(0, -1)  # CHW -> HWC
    return "JPEG", Image.fromarray(pixels.numpy()), latent_preview.MAX_PREVIEW_RESOLUTION


def check_refiner(patcher: comfy.model_patcher.ModelPatcher | None, node: str) -> None:
    """ValueError where the checkpoint has no refiner."""
    if patcher is None:
        raise ValueError(
            f"{node} got no refiner: the checkpoint in LoadDiffHarmony has none. End in TransferToFullResolution, "
            "which needs none, or put the published refinement/ beside base/ and load that."
        )


def scale(picture: torch.Tensor, size: tuple[int, int], method: str) -> torch.Tensor:
    """[B, 3, H, W] to [B, 3, *size] by one of the host's methods, in [0, 1]."""
    return comfy.utils.common_upscale(picture, size[1], size[0], method, "disabled").clamp(0, 1)

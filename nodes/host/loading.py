"""The parts of a checkpoint as the host's own objects: UNet, VAE, refiner and null text.

The host builds SD 1.5's networks; ours may have other widths and numbers of groups, which are set here.
"""

from typing import Any

import comfy.clip_model
import comfy.diffusers_convert
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import node_helpers
import torch

from ...diffharmony_models import checkpoint
from ...diffharmony_models.checkpoint.files import line
from ...diffharmony_models.checkpoint.parts import Part
from ...diffharmony_models.errors import InputError
from . import attachments, configs, running, sampling

SD_VAE_WIDTH = 128  # the first width of Stable Diffusion's VAE
WEIGHT_DTYPES = {"default": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class HarmonizerConfig(comfy.supported_models.SD15):
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
            raise InputError(
                f"DiffHarmony's MODEL got CONDITIONING of width {found.shape[-1]}; it takes {wanted}. {self.ADVICE}"
            )
        if kwargs.get("concat_latent_image") is None:
            raise InputError(f"DiffHarmony's MODEL got CONDITIONING without a composite and its mask. {self.ADVICE}")
        return super().extra_conds(**kwargs)


def load_unet(
    part: Part, prediction_type: str, resolution: int, steps: int, weight_dtype: str
) -> comfy.model_patcher.ModelPatcher:
    """A UNet part as a MODEL that samples as published and carries the checkpoint's resolution and number of steps.

    Raises InputError for a network that the host does not have, and for tensors that do not fit the config.
    """
    unet_config = configs.unet_config(part.config)
    names = comfy.utils.unet_to_diffusers(unet_config)
    state = {names.get(key, key): tensor for key, tensor in part.state.items()}
    config = HarmonizerConfig(unet_config, prediction_type)
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
    patcher.add_object_patch("model_sampling", sampling.SAMPLINGS[prediction_type](config))
    attachments.attach(patcher, resolution, steps)
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
    attachments.attach_vae_width(model, width)


def _preview_factors(vae: comfy.sd.VAE, scale: float) -> tuple[list, list]:
    """What the host's previews need for latents of a VAE of its own: the linear map from scaled latents to RGB in [-1,
    1] that fits plain colours best, [4][3] and [3]."""
    levels = torch.linspace(0, 1, 4)
    colors = torch.cartesian_prod(levels, levels, levels)
    patches = colors[:, :, None, None].expand(-1, -1, 64, 64)
    latents = running.encode(vae, patches).mean[:, :, 2:-2, 2:-2].float().cpu().mean(dim=(2, 3)) * scale
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
        raise InputError(f"The VAE's tensors do not fit its config: {line(error)}. Get these weights anew.") from error
    _set_groups(vae.first_stage_model, part.config)
    _check_fit("VAE", vae.first_stage_model, state)
    return vae


def load_refiner(part: Part, weight_dtype: str) -> comfy.model_patcher.ModelPatcher:
    """A refiner in a patcher, with which the host moves it in and out of memory."""
    load_device = mm.get_torch_device()
    parameters = comfy.utils.calculate_parameters(part.state)
    dtype = WEIGHT_DTYPES[weight_dtype] or mm.unet_dtype(load_device, parameters, [torch.bfloat16, torch.float32])
    # What the device computes in: this network does not cast as it goes.
    dtype = mm.unet_manual_cast(dtype, load_device) or dtype
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
    return [[null_text[None], {attachments.RESOLUTION: resolution}]]


def conditioning_of(clip: comfy.sd.CLIP, resolution: int) -> list:
    """The same from a CLIP."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return node_helpers.conditioning_set_values(encoded, {attachments.RESOLUTION: resolution})


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
        raise InputError(
            f"The {name}'s tensors do not fit its config: {len(wrong)} of {len(want)} differ ({first}). "
            "Use the config.json that belongs to these weights, or get the weights anew."
        )

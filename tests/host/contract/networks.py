"""UNet, VAE and text encoder."""

import copy

import comfy.clip_model
import comfy.diffusers_convert
import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch

from .tiny import UNET, patcher, takes, unet, vae


def sd15_is_configured_by_hand() -> None:
    config = comfy.supported_models.SD15({**UNET, "num_heads": 4})
    assert config.unet_config["num_heads"] == 8  # set by the class, and set back by ours
    takes(config.set_inference_dtype, "dtype", "manual_cast_dtype")
    takes(config.get_model, "state_dict", "prefix", "device")
    assert torch.float32 in config.supported_inference_dtypes


def base_model_says_what_it_is() -> None:
    model = unet()
    assert model.adm_channels == 0 and model.latent_format.latent_channels == 4
    assert model.model_config.unet_config["in_channels"] == 9 and model.model_config.unet_config["context_dim"] == 16
    assert {"EPS", "V_PREDICTION"} <= set(comfy.model_base.ModelType.__members__)


def diffusers_names_of_a_unet() -> None:
    names = comfy.utils.unet_to_diffusers(UNET)
    assert set(unet().diffusion_model.state_dict()) <= set(names.values())
    assert names["conv_in.weight"] == "input_blocks.0.0.weight"


def layers_without_weights_say_their_shape() -> None:
    """With dynamic memory a Linear has no weight before it is loaded."""
    layer = comfy.ops.disable_weight_init.Linear(3, 5)
    assert layer.weight is not None or hasattr(layer, "comfy_need_lazy_init_bias")
    assert (layer.in_features, layer.out_features) == (3, 5)


def patchers_carry_attachments_and_patches() -> None:
    found = patcher()
    found.set_attachments("diffharmony_resolution", 128)
    assert found.clone().get_attachment("diffharmony_resolution") == 128
    assert found.get_attachment("absent") is None
    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    found.add_object_patch("model_sampling", sampling)
    assert found.get_model_object("model_sampling") is sampling and not found.is_dynamic()
    takes(found.model.load_model_weights, "sd", "unet_prefix", "assign")


def latent_formats_can_be_changed() -> None:
    found = comfy.latent_formats.SD15(0.3)
    assert found.scale_factor == 0.3 and len(found.latent_rgb_factors) == 4
    assert {"latent_rgb_factors_bias", "taesd_decoder_name"} <= set(dir(found))
    assert torch.allclose(found.process_in(torch.ones(1)), torch.tensor([0.3]))


def vaes_are_built_from_a_config() -> None:
    found = vae()
    assert found.latent_channels == 4 and found.latent_dim == 2 and found.spacial_compression_decode() == 8
    assert found.first_stage_model.encoder.conv_in.out_channels == 32
    takes(comfy.diffusers_convert.convert_vae_state_dict, "vae_state_dict")


def posterior_is_told_by_the_regularizers_name() -> None:
    network = vae().first_stage_model
    assert type(network.regularization).__name__ == "DiagonalGaussianRegularizer"
    assert getattr(network, "bn", None) is None


def first_stage_of_a_vae_can_be_swapped() -> None:
    """`VAE.encode` of a copy gives what another first stage's `encode` gives, of so many channels as it says."""

    class Stage:
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(1, keepdim=True)[..., ::8, ::8].repeat(1, 8, 1, 1)

    whole = vae()
    other = copy.copy(whole)
    other.first_stage_model, other.latent_channels = Stage(), 8
    found = other.encode(torch.full((1, 64, 64, 3), 0.75))
    assert found.shape == (1, 8, 8, 8) and torch.allclose(found, torch.full_like(found, 0.5))  # [0, 1] to [-1, 1]
    assert whole.latent_channels == 4 and not isinstance(whole.first_stage_model, Stage)


def other_shapes_are_a_size_mismatch() -> None:
    try:
        torch.nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(4, 2), "bias": torch.zeros(3)})
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        return
    raise AssertionError("a wrong shape was loaded")


def text_encoder_runs_alone() -> None:
    settings = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    settings |= {"hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}
    kinds = (torch.float32, "cpu", comfy.ops.manual_cast)
    network = comfy.clip_model.CLIPTextModel(settings, *kinds).text_model
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    network.load_state_dict(state, strict=True, assign=True)
    with torch.no_grad():
        assert network(torch.tensor([[49406] + [49407] * 76]))[0].shape == (1, 77, 16)

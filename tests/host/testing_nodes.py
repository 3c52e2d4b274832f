"""Nodes for the tests alone: exact tensors in and out, models of the wrong kind, a run that waits to be cancelled.

The tests put this file into the custom_nodes of a temporary host. It is not part of the package.
"""

import os
import time

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from safetensors.torch import load_file, save_file


class AnyType(str):
    def __ne__(self, other):
        return False


ANY = AnyType("*")


class TestLoad:
    """A file that the test laid down, as IMAGE, MASK, LATENT or CONDITIONING."""

    RETURN_TYPES = (ANY,)
    FUNCTION = "load"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {}), "kind": (["tensor", "latent", "conditioning"],)}}

    def load(self, file, kind):
        value = load_file(os.path.join(folder_paths.get_input_directory(), file))["value"]
        return ({"tensor": value, "latent": {"samples": value}, "conditioning": [[value, {}]]}[kind],)


class TestSave:
    """Any value that holds a tensor, to the output folder; the curves of DIFFHARMONY_COLORS."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY, {}), "file": ("STRING", {})}}

    def save(self, value, file):
        if isinstance(value, dict):
            value = value["samples"]
        if isinstance(value, tuple):  # DIFFHARMONY_COLORS: the change of colour and the amounts
            value = value[0].curve
        if isinstance(value, list):
            value = value[0][0]
        save_file({"value": value.contiguous().cpu()}, os.path.join(folder_paths.get_output_directory(), file))
        return {}


class TestFake:
    """A value of the wrong kind, at tiny width."""

    RETURN_TYPES = (ANY,)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (sorted(KINDS),)}}

    def make(self, kind):
        return (KINDS[kind](),)


class TestPause:
    """A MODEL that, called the n-th time, lays down a file and waits until the run is cancelled.

    calls: n, 0 for never.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "calls": ("INT", {"default": 0}), "file": ("STRING", {})}}

    def patch(self, model, calls, file):
        model, left = model.clone(), [calls]

        def call(apply_model, arguments):
            left[0] -= 1
            if left[0] == 0:
                with open(os.path.join(folder_paths.get_output_directory(), file), "wb"):
                    pass
                while not comfy.model_management.processing_interrupted():
                    time.sleep(0.02)
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

        model.set_model_unet_function_wrapper(call)
        return (model,)


class TestCheckpoint:
    """Writes a checkpoint file that the host's loader takes for SD 1.5 (4 channels) or its inpainting model (9): a UNet
    of SD 1.5's width with random weights and few layers, CLIP with weights of zero, and the VAE of another file."""

    RETURN_TYPES = ()
    FUNCTION = "write"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {}), "channels": ("INT", {}), "vae": ("STRING", {})}}

    def write(self, file, channels, vae):
        config = unet_config(comfy.supported_models.SD15, 320, context_dim=768, in_channels=channels)
        state = {f"model.diffusion_model.{key}": value.half() for key, value in filled(config).items()}
        state |= {f"first_stage_model.{key}": value for key, value in load_file(vae).items()}
        clip = comfy.sd.CLIP(config.clip_target({}), parameters=0)
        for key, value in clip.cond_stage_model.state_dict().items():
            if key.startswith("clip_l.transformer."):
                value = torch.ones_like(value) if "norm" in key and key.endswith("weight") else torch.zeros_like(value)
                state["cond_stage_model." + key.removeprefix("clip_l.")] = value.half()
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        return {}


def unet_config(kind, width, context_dim=32, in_channels=4, **more):
    """A UNet of one of the host's kinds, with one layer a level and attention at the deepest ones only."""
    config = {
        "image_size": 32,
        "in_channels": in_channels,
        "out_channels": 4,
        "model_channels": width,
        "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [1, 1, 1, 1],
        "transformer_depth": [0, 0, 1, 0],
        "transformer_depth_output": [0, 0, 0, 0, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": context_dim,
        "use_linear_in_transformer": False,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "legacy": False,
        "adm_in_channels": None,
        "num_heads": 8,
        "num_head_channels": -1,
        **more,
    }
    return kind(config)


def filled(config, seed=0):
    """The state dict of a host's UNet, with random weights."""
    network = config.get_model({}, "").diffusion_model
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        if value.ndim > 1:
            state[key] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            state[key] = torch.ones_like(value) if key.endswith("weight") else torch.zeros_like(value)
    return state


def patcher(model):
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def unet(kind, width=32, **more):
    return lambda: patcher(unet_config(kind, width, **more).get_model({}, ""))


def flux():
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "vec_in_dim": 16,
            "context_in_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 1.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [4, 6, 6],
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        }
    )
    return patcher(config.get_model({}, ""))


def vae(channels):
    """A VAE as the host makes it for so many latent channels: TAESD, the only kind of any width that it loads by
    itself.
    """

    def make():
        from comfy.taesd.taesd import TAESD

        network = TAESD(latent_channels=channels)
        return comfy.sd.VAE(sd=network.state_dict())

    return make


KINDS = {
    "nothing": lambda: None,
    "SD 1.5": unet(comfy.supported_models.SD15),
    "SDXL": unet(comfy.supported_models.SDXL, use_linear_in_transformer=True, adm_in_channels=2816),
    "SDXL inpainting": unet(
        comfy.supported_models.SDXL, use_linear_in_transformer=True, adm_in_channels=2816, in_channels=9
    ),
    "Flux": flux,
    "Flux VAE": vae(16),
    "tiny VAE": vae(4),
}

NODE_CLASS_MAPPINGS = {node.__name__: node for node in (TestLoad, TestSave, TestFake, TestPause, TestCheckpoint)}

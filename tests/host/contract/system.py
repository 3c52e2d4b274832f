"""The interface for nodes; memory, progress, pictures and folders."""

import inspect
import os

import comfy.model_management as mm
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args

from .tiny import CPU, takes


def api_v0_0_2_has_what_the_nodes_use() -> None:
    from comfy_api.v0_0_2 import ComfyExtension, io

    assert inspect.iscoroutinefunction(ComfyExtension.get_node_list)
    for kind in ("Image", "Mask", "Model", "Vae", "Clip", "Conditioning", "Latent", "Int", "Float", "Combo", "Boolean"):
        takes(getattr(io, kind).Input.__init__, "id", "optional", "tooltip", "advanced")
    takes(io.Schema, "node_id", "display_name", "category", "inputs", "outputs", "description", "search_aliases")
    takes(io.NodeOutput.__init__, "ui")
    assert io.Custom("SOME_TYPE").Input("it").get_io_type() == "SOME_TYPE"


def node_classes_choose_validate_and_fingerprint() -> None:
    from comfy_api.v0_0_2 import io

    assert {"define_schema", "execute", "validate_inputs", "fingerprint_inputs"} <= set(dir(io.ComfyNode))


def memory_is_managed_by_these_functions() -> None:
    takes(mm.load_models_gpu, "models", "memory_required")
    takes(mm.unet_dtype, "device", "model_params", "supported_dtypes", "weight_dtype")
    takes(mm.unet_manual_cast, "weight_dtype", "inference_device", "supported_dtypes")
    assert mm.dtype_size(torch.float16) == 2 and mm.get_total_memory(CPU) > 0 and mm.is_device_cpu(CPU)
    assert {mm.get_torch_device().type, mm.unet_offload_device().type, mm.intermediate_device().type} == {"cpu"}
    assert mm.throw_exception_if_processing_interrupted() is None
    weights = {"a": torch.zeros(2, 3, dtype=torch.float16)}
    assert comfy.utils.calculate_parameters(weights) == 6 and comfy.utils.weight_dtype(weights) == torch.float16


def progress_has_a_preview() -> None:
    takes(comfy.utils.ProgressBar.update_absolute, "value", "total", "preview", after=1)
    takes(latent_preview.prepare_callback, "model", "steps")
    assert isinstance(comfy.utils.PROGRESS_BAR_ENABLED, bool) and latent_preview.MAX_PREVIEW_RESOLUTION > 0
    assert args.preview_method == LatentPreviewMethod.NoPreviews


def pictures_are_scaled_by_name() -> None:
    takes(comfy.utils.common_upscale, "samples", "width", "height", "upscale_method", "crop")
    for method in ("lanczos", "area"):
        found = comfy.utils.common_upscale(torch.rand(1, 3, 8, 8), 6, 4, method, "disabled")
        assert found.shape == (1, 3, 4, 6)


def folders_of_models_are_a_table() -> None:
    folder_paths.add_model_folder_path("contract", "/nowhere")
    paths, extensions = folder_paths.folder_names_and_paths["contract"]
    assert list(paths) == ["/nowhere"] == folder_paths.get_folder_paths("contract") and isinstance(extensions, set)
    assert isinstance(folder_paths.models_dir, str)


def files_are_numbered_in_the_output_folder() -> None:
    takes(folder_paths.get_save_image_path, "filename_prefix", "output_dir")
    output = folder_paths.get_output_directory()
    folder, name, number, _, _ = folder_paths.get_save_image_path("contract", output)
    assert os.path.normpath(folder) == os.path.normpath(output) and name == "contract" and isinstance(number, int)

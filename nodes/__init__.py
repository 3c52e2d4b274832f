"""What ComfyUI sees: one stage a file, each a schema and an `execute`."""

from comfy_api.v0_0_2 import ComfyExtension, io
from typing_extensions import override

from .conditioning import DiffHarmonyConditioning
from .crop import HarmonizeCrop, HarmonizeStitch
from .decode import VAEDecodeHigherRes
from .harmonize import HarmonizeLatent
from .harmonize_colors import HarmonizeColors
from .host.folders import register_folder
from .load import LoadDiffHarmony
from .lut import SaveColorLUT
from .refine import RefineResidual
from .transfer import TransferToFullResolution


class DiffHarmony(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_folder()
        return [
            LoadDiffHarmony,
            HarmonizeColors,
            HarmonizeLatent,
            VAEDecodeHigherRes,
            RefineResidual,
            TransferToFullResolution,
            DiffHarmonyConditioning,
            HarmonizeCrop,
            HarmonizeStitch,
            SaveColorLUT,
        ]

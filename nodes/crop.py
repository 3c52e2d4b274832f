"""A small foreground in a window of its own, before harmonizing; and back into its picture, after."""

import torch
from comfy_api.v0_0_2 import io

from ..diffharmony_models import crop as engine
from ..diffharmony_models import geometry
from ..diffharmony_models.errors import InputError
from . import checks, doubts, schema
from .host import running

CROP, STITCH = "HarmonizeCrop", "HarmonizeStitch"
ALIASES = ["crop and stitch", "inpaint crop", "small foreground", "image harmonization"]


class HarmonizeCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=CROP,
            display_name="Harmonize Crop",
            category=schema.CATEGORY,
            description=(
                "Cuts out a square around the foreground, so that the networks see a small one large. Harmonize the "
                "crop, then put it back with Harmonize Stitch. It helps foregrounds under 2 % of the picture."
            ),
            search_aliases=ALIASES,
            inputs=[
                schema.composite("The picture with the foreground pasted in, at any size."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the foreground is. One for each picture; or several for one picture, one for each "
                    "of its foregrounds: then every foreground has a crop of its own.",
                ),
                io.Float.Input(
                    "context",
                    default=engine.CONTEXT,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    tooltip="The crop's side as a multiple of the foreground's longer side. Larger shows more of the "
                    "background, smaller more of the foreground.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Scales the crops so that their longer side has so many pixels. 0: the picture's own "
                    "pixels, of which none is lost.",
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="The crops, all of one size."),
                io.Mask.Output("MASK", tooltip="Their masks."),
                schema.DiffHarmonyCrop.Output("crop", tooltip="Where they come from, for Harmonize Stitch."),
            ],
        )

    @classmethod
    def execute(cls, composite: torch.Tensor, mask: torch.Tensor, context: float, size: int) -> io.NodeOutput:
        composite = checks.image(composite, "composite", CROP)
        several = composite
        if len(composite) == 1 and torch.is_tensor(mask) and mask.ndim > 2:  # a foreground for each mask
            several = composite.expand(max(1, len(mask)), -1, -1, -1)
        mask = checks.mask(mask, several, CROP)
        windows = engine.alike(mask, context)
        pairs = list(zip(windows, several.split(1), mask.split(1), strict=True))
        crops = torch.cat([window.cut(picture) for window, picture, _ in pairs])
        masks = torch.cat([window.cut(inside) for window, _, inside in pairs])
        if size:
            sides = [max(1, round(side * size / max(crops.shape[-2:]))) for side in crops.shape[-2:]]
            crops, masks = geometry.resize(crops, sides), geometry.resize(masks, sides)
        source = engine.Crops(composite, mask, windows)
        return io.NodeOutput(checks.to_host(crops), masks[:, 0], source, ui=running.warn(CROP, doubts.of_mask(mask)))


class HarmonizeStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=STITCH,
            display_name="Harmonize Stitch",
            category=schema.CATEGORY,
            description=(
                "Puts the harmonized crops of Harmonize Crop back into their picture. Outside the mask the picture "
                "stays as it is, bit for bit."
            ),
            search_aliases=ALIASES,
            inputs=[
                schema.DiffHarmonyCrop.Input("crop", tooltip="The crop of Harmonize Crop."),
                io.Image.Input("harmonized", tooltip="The crops, harmonized; in their order, at any size."),
            ],
            outputs=[io.Image.Output("IMAGE", tooltip="The whole picture, at its full size.")],
        )

    @classmethod
    def execute(cls, crop: engine.Crops | None, harmonized: torch.Tensor) -> io.NodeOutput:
        if not isinstance(crop, engine.Crops):
            raise InputError(f"{STITCH} got no crop, but {type(crop).__name__}. Wire the crop of HarmonizeCrop.")
        harmonized = checks.image(harmonized, "harmonized", STITCH)
        window = crop.windows[0]
        shape = torch.empty(1, 3, window.height, window.width, device="meta")
        checks.same_view(
            harmonized.shape[-2:], shape, f"{STITCH}: the harmonized image", "Wire the crop that was harmonized."
        )
        harmonized = harmonized.to(crop.composite.device).clamp(0, 1)
        return io.NodeOutput(checks.to_host(engine.stitch_all(harmonized, crop)))

"""Lays a relit or edited picture over the composite that it was made from.

Editing models move what they repaint by some pixels and scale it by a percent. Structure is compared, not colour: the
luma with its local mean taken off and its local contrast made equal, so that another light changes little of it.
First the shift and the scale of the whole are found by Gauss-Newton steps on a pyramid (Lucas, Kanade 1981; Baker,
Matthews: Lucas-Kanade 20 Years On, IJCV 2004), then a small smooth flow by the same steps in windows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import geometry
from .errors import InputError
from .networks.color_regressor import LUMA

SIDE = 512  # at most, of the shorter side of the pictures that are compared
COARSEST = 24  # pixels of the shorter side at the top of the pyramid
STEPS = 12  # at each level
TOLERANCE = 3e-3  # pixels; a smaller step is the last
WINDOW = 8  # radius in pixels in which structure is made alike, and of the flow's windows
CONTRAST = 0.02  # below it a window counts as flat
DAMPING = 0.05  # of the flow where there is little structure
FLOW_LEVELS = slice(1, 4)  # of the pyramid: the flow is smooth, half the pixels a side tell it
FLOW_STEPS = 4
REACH = 6.0  # pixels that the flow moves at most
STILL = 0.1  # pixels; what moved less is left as it is, for resampling blurs
GAIN = 0.002  # of the correlation, from which on the flow is worth its blur
POOR = 0.5  # correlation under which the two hardly show the same


@dataclass(frozen=True)
class Fit:
    """How a picture was laid over its composite, and how well it lies.

    shift: (right, down) in pixels of the composite, by which the picture's centre stood off. scale: (across, down),
    above 1 where the picture showed things larger. flow: root mean square in pixels of the composite of what moved
    beyond that. before, after: correlation of the structures, 1 for the same picture under any light, about 0 for
    two that have nothing in common.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    flow: float = 0.0
    before: float = 1.0
    after: float = 1.0

    @property
    def poor(self) -> bool:
        return self.after < POOR

    def __str__(self) -> str:
        return (
            f"moved by {self.shift[0]:+.1f}, {self.shift[1]:+.1f} pixels, scaled by {100 * (self.scale[0] - 1):+.2f} "
            f"and {100 * (self.scale[1] - 1):+.2f} %, {self.flow:.1f} pixels of local drift; "
            f"fits to {self.after:.2f} of 1 ({self.before:.2f} before)"
        )


def align(picture: torch.Tensor, composite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[Fit]]:
    """(the picture with its content where the composite has it, what of it was seen, how well it fits).

    picture: [B, 3, h, w] in [0, 1], the whole composite under another light, at any size. composite: [B, 3, H, W] in
    [0, 1]. The first result is [B, 3, h, w]; a picture that lies right already comes back as it is. What has moved out
    of the frame is its border, repeated; the second, [B, 1, h, w], is 0 there and 1 elsewhere. Raises InputError where
    the batches differ, and for values that are not finite.
    """
    for name, image in (("picture", picture), ("composite", composite)):
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point() or not image.isfinite().all():
            raise InputError(
                f"The {name} must be a float tensor [batch, 3, height, width] of finite values in [0, 1], not "
                f"{image.dtype} {list(image.shape)}."
            )
    if len(picture) != len(composite):
        raise InputError(
            f"{len(picture)} pictures came with {len(composite)} composites; give one picture for each composite."
        )
    found = [_align(one, other) for one, other in zip(picture.split(1), composite.split(1), strict=True)]
    pictures, seen, fits = zip(*found, strict=True)
    return torch.cat(pictures), torch.cat(seen), list(fits)


def _align(picture: torch.Tensor, composite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Fit]:
    full = torch.tensor(composite.shape[:1:-1], dtype=torch.float32)  # width, height
    size = _working_size(picture, composite)
    moving, still = (geometry.resize(image.float().cpu(), size) for image in (picture, composite))
    pyramid = _pyramid(moving, still)
    place = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # scale and shift of (x, y), in half sides of the picture
    for level in reversed(pyramid):
        place = _settle(level[0], level[1], place)
    grid = _grid(size, place)
    structures = pyramid[0]
    before, after = _correlation(*structures, _grid(size, _identity())), _correlation(*structures, grid)
    moved = (place - _identity()).abs().sum(0) * full / 2  # at the corners, which move most
    if after <= before or float(moved.max()) < STILL:
        place, after = _identity(), before
        grid = _grid(size, place)
    flow = geometry.resize(_flow(pyramid[FLOW_LEVELS] or pyramid, place), size).movedim(1, -1)
    flowed = _correlation(*structures, grid + flow)
    if flowed < after + GAIN:
        flow, flowed = torch.zeros_like(flow), after
    pixels = flow * full / 2
    shift, scale = place[1] * full / 2, place[0]
    fit = Fit(_two(shift), _two(scale), float(pixels.square().sum(-1).mean().sqrt()), before, flowed)
    if torch.equal(place, _identity()) and not flow.any():
        return picture, torch.ones_like(picture[:, :1]), fit
    flow = geometry.resize(flow.movedim(-1, 1), picture.shape[-2:]).movedim(1, -1)
    grid = (_grid(tuple(picture.shape[-2:]), place) + flow).to(picture.device)
    moved = F.grid_sample(picture.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    seen = (grid.abs() <= 1).all(-1)[:, None]
    return moved.clamp(0, 1).to(picture.dtype), seen.to(picture.dtype), fit


def _working_size(picture: torch.Tensor, composite: torch.Tensor) -> tuple[int, int]:
    """The composite's proportions, no larger than either, the shorter side at most SIDE."""
    height, width = composite.shape[-2:]
    scale = min(1.0, SIDE / min(height, width), min(picture.shape[-2:]) / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pyramid(moving: torch.Tensor, still: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The structures of both, [1, 1, h, w], from the full size down by halves."""
    levels = []
    while True:
        levels.append((_structure(moving), _structure(still)))
        size = [round(side / 2) for side in moving.shape[-2:]]
        if min(size) < COARSEST:
            return levels
        moving, still = geometry.resize(moving, size), geometry.resize(still, size)


def _structure(image: torch.Tensor) -> torch.Tensor:
    """[1, 3, H, W] to [1, 1, H, W]: luma, its local mean 0, its local deviation at most 1, less where it is flat."""
    luma = (image * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    luma = luma - _mean(luma)
    return (luma / (_mean(luma.square()) + CONTRAST**2).sqrt()).clamp(-3, 3)


def _mean(image: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] under a box of WINDOW twice, the frame's pixels repeated beyond it; by running sums."""
    for _ in range(2):
        for dim, pad in ((-1, (WINDOW + 1, WINDOW, 0, 0)), (-2, (0, 0, WINDOW + 1, WINDOW))):
            total = F.pad(image, pad, mode="replicate").cumsum(dim)
            length = image.shape[dim]
            image = total.narrow(dim, 2 * WINDOW + 1, length) - total.narrow(dim, 0, length)
    return image / (2 * WINDOW + 1) ** 4


def _settle(moving: torch.Tensor, still: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Gauss-Newton steps of the scale and shift [2, 2] of the whole; large differences count little."""
    size = tuple(still.shape[-2:])
    where = _grid(size, _identity())
    half = torch.tensor(size[::-1]) / 2
    for _ in range(STEPS):
        slope, error = _linearized(moving, still, _grid(size, place))
        weight = (1 + error.square()).reciprocal().square()  # Geman, McClure
        jacobian = torch.cat((slope * where, slope), -1).flatten(0, 2)  # scales, shifts
        weighted = jacobian * weight.reshape(-1, 1)
        # The picture's shift is seen to a fraction of a pixel; a direction without structure stays.
        normal = weighted.T @ jacobian + 1e-3 * len(jacobian) * torch.eye(4)
        step = torch.linalg.solve(normal, -(weighted.T @ error.flatten())).view(2, 2)
        place = place + step / half
        if float(step.abs().max()) < TOLERANCE:
            break
    return place


def _flow(pyramid: list[tuple[torch.Tensor, torch.Tensor]], place: torch.Tensor) -> torch.Tensor:
    """[1, 2, h, w] at the size of the first level, in half sides: what moves beyond `place`."""
    flow = torch.zeros(1, 2, *pyramid[-1][1].shape[-2:])
    most = REACH * 2 / torch.tensor(pyramid[0][1].shape[:1:-1])[:, None, None]
    for moving, still in reversed(pyramid):
        size = tuple(still.shape[-2:])
        flow, half = geometry.resize(flow, size), torch.tensor(size[::-1])[:, None, None] / 2
        for _ in range(FLOW_STEPS):
            slope, error = _linearized(moving, still, _grid(size, place) + flow.movedim(1, -1))
            weight = (1 + error.square()).reciprocal().square()
            across, down = slope.unbind(-1)
            products = torch.stack((across * across, across * down, down * down, across * error, down * error), 1)
            xx, xy, yy, xe, ye = _mean(products * weight[:, None]).unbind(1)
            xx, yy = xx + DAMPING, yy + DAMPING
            step = torch.stack((xy * ye - yy * xe, xy * xe - xx * ye), 1) / (xx * yy - xy * xy)[:, None]
            flow = _mean(flow + step / half)
            flow = torch.minimum(torch.maximum(flow, -most), most)
    return flow


def _linearized(moving: torch.Tensor, still: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(slope [1, h, w, 2] by pixels, error [1, h, w]) of the moving structure, read at `grid`, against the other."""
    read = F.grid_sample(moving, grid, mode="bilinear", padding_mode="border", align_corners=False)
    wide = F.pad((read + still) / 2, (1, 1, 1, 1), mode="replicate")
    across = (wide[:, 0, 1:-1, 2:] - wide[:, 0, 1:-1, :-2]) / 2
    down = (wide[:, 0, 2:, 1:-1] - wide[:, 0, :-2, 1:-1]) / 2
    seen = (grid.abs() <= 1).all(-1)
    return torch.stack((across, down), -1) * seen[..., None], (read - still)[:, 0] * seen


def _correlation(moving: torch.Tensor, still: torch.Tensor, grid: torch.Tensor) -> float:
    read = F.grid_sample(moving, grid, mode="bilinear", padding_mode="border", align_corners=False)
    norm = (read.square().mean() * still.square().mean()).sqrt()
    return float((read * still).mean() / norm.clamp_min(1e-9))


def _grid(size: tuple[int, int], place: torch.Tensor) -> torch.Tensor:
    """[1, h, w, 2]: where each pixel reads, (x, y) in half sides from the middle, as `grid_sample` takes it."""
    y, x = ((torch.arange(side) + 0.5) * (2 / side) - 1 for side in size)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return (grid * place[0] + place[1])[None]


def _identity() -> torch.Tensor:
    return torch.tensor([[1.0, 1.0], [0.0, 0.0]])


def _two(values: torch.Tensor) -> tuple[float, float]:
    return float(values[0]), float(values[1])

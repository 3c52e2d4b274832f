"""`train-harmonizer`: stage 1, the inpainting UNet that harmonizes in latent space."""

import argparse
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, geometry, sampling
from ..errors import InputError
from ..numbers import real, whole
from . import cache, data, loop, sheets

# The weight of the published loss: a small foreground counts more, up to this factor.
LARGEST_WEIGHT = 5.0
# Added under the root of a sample's loss, so that a perfect sample's slope stays finite.
ROOT_FLOOR = 1e-3
# The constant channels of a UNet that starts as a copy, in standard deviations of a latent: they make its last normalisation almost constant.
COPY_BOUND = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, help="iHarmony4-shaped data set (iHarmony4 itself, or what make-composites wrote)"
    )
    parser.add_argument(
        "--list", type=Path, default=Path("IHD_train.txt"), help="list in the data set (default %(default)s)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="checkpoint to go on from: an SD 1.5 inpainting folder, or an earlier result",
    )
    parser.add_argument("--vae", type=Path, help="checkpoint that brings the VAE where --from has none, or another one")
    parser.add_argument(
        "--widths",
        type=whole(1, 4096),
        nargs=4,
        default=(32, 64, 128, 256),
        help="of a new UNet, multiples of 32 (default %(default)s)",
    )
    parser.add_argument(
        "--layers", type=whole(1, 64), default=1, help="residual layers a level of a new UNet (default %(default)s)"
    )
    parser.add_argument(
        "--groups",
        type=whole(1, 1024),
        default=8,
        help="normalisation groups of a new UNet; with few channels a group absolute colours are "
        "normalised away (default %(default)s)",
    )
    parser.add_argument(
        "--heads", type=whole(1, 1024), default=8, help="attention heads of a new UNet (default %(default)s)"
    )
    parser.add_argument(
        "--start-as-copy",
        action="store_true",
        help="a new v-predicting UNet begins by answering the composite, not noise; saves a "
        "short training its first tenth",
    )
    parser.add_argument(
        "--top-attention",
        action="store_true",
        help="a new UNet attends on its first level too, as SD 1.5 does (slow on a CPU)",
    )
    parser.add_argument(
        "--null-text",
        type=whole(1, 4096),
        nargs=2,
        default=(8, 64),
        metavar=("TOKENS", "WIDTH"),
        help="shape of a new null text (default %(default)s)",
    )
    parser.add_argument(
        "--prediction-type", choices=sampling.PREDICTIONS, help="of a new UNet (default: that of --from, else epsilon)"
    )
    parser.add_argument(
        "--size",
        type=whole(64, 2048, multiple_of=64),
        default=512,
        help="side of the training pictures, a multiple of 64 (default %(default)s)",
    )
    parser.add_argument(
        "--loss",
        choices=("foreground", "plain"),
        default="foreground",
        help="MSE over the foreground, as published, or over everything",
    )
    parser.add_argument(
        "--background-weight",
        type=real(0, 1e6),
        default=0.0,
        help="with the foreground loss: what the background's error counts; a UNet from "
        "nothing needs some, or it leaves noise there that the decoder smears over the edge (default %(default)s, as published)",
    )
    parser.add_argument(
        "--color-weight",
        type=real(0, 1e6),
        default=0.0,
        help="what the squared error of the foreground's mean counts beside that of each latent; "
        "the mean is its colour as a whole, which a short training finds last (default %(default)s, as published)",
    )
    parser.add_argument(
        "--root",
        action="store_true",
        help="take the root of each sample's loss, so that samples count by how far off they are and not by "
        "its square: PSNR is a mean of logarithms, and the few pairs that nobody could guess do not rule it (default: off, as published)",
    )
    parser.add_argument(
        "--sampler-share",
        type=real(0, 1),
        default=0.0,
        help="share of the samples that are trained where the 5-step sampler "
        "goes: at its timesteps, from the model's own first estimate instead of the real picture (default %(default)s, as published)",
    )
    parser.add_argument(
        "--first-share",
        type=real(0, 1),
        default=0.25,
        help="share of those that stand at its first step, where the colour is found (default %(default)s)",
    )
    parser.add_argument(
        "--cache-latents",
        type=whole(0, 10_000),
        default=0,
        metavar="K",
        help="encode every pair K times before training, each time with another "
        "crop, instead of anew in each step; for slow machines (default %(default)s: off)",
    )
    parser.add_argument(
        "--recolor",
        action="store_true",
        help="make each composite anew from its real picture whenever it is drawn (make-composites' "
        "changes of look), instead of reading the listed one; with --cache-latents, K other ones a pair",
    )
    parser.add_argument(
        "--limit", type=whole(0), default=0, help="use only this many pairs, evenly spread over the list (default: all)"
    )
    loop.add_arguments(parser, steps=100_000, batch_size=16, learning_rate=1e-5)


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/harmonizer.safetensors: UNet, VAE and null text in one file."""
    loop.seeded(args)
    start = _start(args)
    unet, vae = (
        checkpoint.build_unet(start.unet).float().train(),
        checkpoint.build_vae(start.vae).float().requires_grad_(False),
    )
    vae.to(memory_format=torch.channels_last)
    pairs = (data.Recolored if args.recolor else data.Pairs)(args.dataset, args.list, args.size, limit=args.limit)
    samples = pairs
    if args.cache_latents:
        samples = cache.Cached(
            args.output / "latents.safetensors",
            pairs,
            args,
            args.cache_latents,
            lambda batch, seeds: encode(vae, batch, None),
            torch.float16,
            {"vae": cache.fingerprint(vae), "limit": str(args.limit), "recolor": str(args.recolor)},
        )
    null_text = start.null_text.float()
    objective = Objective(
        start.prediction_type,
        args.loss,
        args.sampler_share,
        null_text,
        args.background_weight,
        args.color_weight,
        args.first_share,
        args.root,
    )

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not args.cache_latents:
            vae.to(batch["mask"].device)
            batch = encode(vae, batch, generator)
        return objective(model, batch, generator)

    def export(model):
        result = checkpoint.Checkpoint(
            name=args.output.name,
            unet=checkpoint.part_from(model),
            vae=start.vae,
            refiner=start.refiner,
            harmony_vae=start.harmony_vae,
            null_text=null_text,
            prediction_type=start.prediction_type,
            resolution=args.size,
        )
        checkpoint.write(result, args.output / "harmonizer.safetensors")

    shown = [
        pairs.get(index, np.random.default_rng((17, index))) for index in range(0, len(pairs), max(1, len(pairs) // 8))
    ][:8]

    def sample(model, step):
        from ..pipeline import DiffHarmony

        pipeline = DiffHarmony(
            unet=model, vae=vae, null_text=null_text, prediction_type=start.prediction_type, resolution=args.size
        )
        stacked = {name: torch.stack([item[name] for item in shown]) for name in shown[0]}
        latents = pipeline.harmonize_latents(stacked["composite"], stacked["mask"], seeds=list(range(len(shown))))
        columns = [stacked["composite"], stacked["mask"], pipeline.decode(latents).cpu(), stacked["real"]]
        sheets.save(columns, args.output / "samples" / f"{step:07d}.jpg")

    loop.train(args, unet, samples, loss, export=export, sample=sample)


class Objective:
    """The loss of stage 1 on latents.

    As published: the MSE of the prediction, over the foreground with `foreground_weight` or over everything (`plain`), at timesteps
    drawn evenly. A `sampler_share` of the samples instead stands where the sampler's own run would: x = x̂0 + sigma * noise with x̂0 the
    model's first estimate from pure noise. Such an x knows nothing of the real picture, so the best answer is the mean of what the
    picture may have been, not one draw of it: fewer steps' worth of error add up, and the PSNR of five steps rises.
    """

    def __init__(
        self,
        prediction_type: str,
        kind: str,
        sampler_share: float,
        null_text: torch.Tensor,
        background_weight: float = 0.0,
        color_weight: float = 0.0,
        first_share: float = 0.25,
        root: bool = False,
    ):
        self.background_weight, self.color_weight, self.first_share, self.root = (
            background_weight,
            color_weight,
            first_share,
            root,
        )
        self.prediction_type, self.kind, self.sampler_share, self.null_text = (
            prediction_type,
            kind,
            sampler_share,
            null_text,
        )
        _, table = sampling.schedule(1000)
        self.sigmas = table[:-1].flip(0)  # by timestep, 0 to 999
        self.own_timesteps = sampling.schedule(5)[0][:-1]

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """batch: "composite", "real" scaled latents [B, 4, h, w], "mask" [B, 1, h, w] in {0, 1}. Returns (loss, numbers to log)."""
        real, mask, device = batch["real"], batch["mask"], batch["real"].device
        condition = torch.cat([mask, batch["composite"]], dim=1)
        text = self.null_text.to(device).expand(len(real), -1, -1)

        def uniform(*shape):
            return torch.rand(*shape, generator=generator, device=device)

        def normal():
            return torch.randn(real.shape, generator=generator, device=device)

        def predict(x, sigma, timesteps, chosen=slice(None)):
            scaled = torch.cat([x / (sigma**2 + 1).sqrt(), condition[chosen]], dim=1)
            return model(scaled, timesteps, encoder_hidden_states=text[chosen]).sample.float()

        own = uniform(len(real)) < self.sampler_share
        later = 1 + (uniform(len(real)) * (len(self.own_timesteps) - 1)).long()
        place = torch.where(uniform(len(real)) < self.first_share, 0, later)
        drawn = (uniform(len(real)) * 1000).floor()
        timesteps = torch.where(own, self.own_timesteps.to(device)[place], drawn)
        sigma = self.sigma(timesteps)[:, None, None, None]
        first_noise, noise = normal(), normal()
        first = own & (timesteps == 999)
        start = torch.where(first[:, None, None, None], 0.0, real)
        if self.sampler_share and (chosen := own & ~first).any():
            top = torch.full_like(timesteps[chosen], 999.0)
            highest = self.sigma(top)[:, None, None, None]
            with torch.no_grad():
                x = first_noise[chosen] * highest
                start[chosen] = sampling.denoised(x, predict(x, highest, top, chosen), highest, self.prediction_type)
        x = start + sigma * noise
        if self.prediction_type == "epsilon":
            target = (x - real) / sigma
        else:
            target = (x / (sigma**2 + 1) - real) * (sigma**2 + 1).sqrt() / sigma
        prediction = predict(x, sigma, timesteps)
        error = (prediction - target).square()
        if self.kind == "foreground":
            error = error * (mask + self.background_weight * (1 - mask))
        each = error.mean(dim=(1, 2, 3))
        if self.kind == "foreground":
            each = each * foreground_weight(mask)
        if self.color_weight:
            mean = (mask * (prediction - target)).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp(min=1)
            each = each + self.color_weight * mean.square().mean(dim=1)
        if self.root:
            each = (each + ROOT_FLOOR).sqrt()
        estimate_error = (
            (mask * (sampling.denoised(x, prediction, sigma, self.prediction_type) - real))
            .detach()
            .square()
            .sum(dim=(1, 2, 3))
        )
        per_pixel = estimate_error / (4 * mask.sum(dim=(1, 2, 3)).clamp(min=1))
        numbers = {
            f"error_{name}": (per_pixel * chosen).sum() / chosen.sum()  # NaN where the batch has none of these
            for name, chosen in (("own", own), ("first", timesteps > 998.5))
        }
        return each.mean(), numbers

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels for timesteps in [0, 999], interpolated between whole ones."""
        table = self.sigmas.to(timesteps.device)
        low = timesteps.floor().long().clamp(max=998)
        return torch.lerp(table[low], table[low + 1], timesteps - low)


def foreground_weight(mask: torch.Tensor) -> torch.Tensor:
    """clamp(area / mask area, 1, 5) for each [B, 1, h, w] mask in {0, 1}: [B] (the published training)."""
    area = mask.shape[-1] * mask.shape[-2]
    return (area / mask.sum(dim=(1, 2, 3)).clamp(min=1)).clamp(1, LARGEST_WEIGHT)


@torch.no_grad()
def encode(vae, batch: dict[str, torch.Tensor], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
    """Pictures to scaled latents; posteriors are sampled with a generator, their mode is taken without one."""

    def latent(image):
        posterior = vae.encode(image * 2 - 1).latent_dist
        if generator is None:
            return posterior.mode() * vae.config.scaling_factor
        noise = torch.randn(posterior.mean.shape, generator=generator, device=image.device)
        return (posterior.mean + posterior.std * noise) * vae.config.scaling_factor

    size = tuple(batch["mask"].shape[-2:])
    return {
        "composite": latent(batch["composite"]),
        "real": latent(batch["real"]),
        "mask": geometry.latent_mask(batch["mask"], size),
    }


def _start(args) -> checkpoint.Checkpoint:
    """What training begins with: UNet, VAE, null text; from --from, --vae, or new."""
    start = checkpoint.read(args.start) if args.start else checkpoint.Checkpoint(name=args.output.name)
    if args.vae:
        start.vae = checkpoint.read(args.vae).vae
    if start.vae is None:
        raise InputError(
            "No VAE to train with: name a checkpoint that holds one with --vae (train-autoencoder makes one)"
        )
    if args.start and start.unet is None:
        raise InputError(
            f"{args.start} holds no 9-channel UNet; --from wants an inpainting checkpoint, or leave it out to train a new one"
        )
    if start.unet is None:
        start.unet = _new_unet(args)
        start.prediction_type = args.prediction_type or "epsilon"
        start.null_text = torch.randn(args.null_text, generator=torch.Generator().manual_seed(args.seed))
    elif args.prediction_type not in (None, start.prediction_type):
        raise InputError(
            f"{args.start} predicts {start.prediction_type}, --prediction-type says {args.prediction_type}; leave the flag out"
        )
    if start.null_text is None:
        raise InputError(
            f"{args.start} has no null text and no text encoder to compute it; use a folder with text_encoder/ in it"
        )
    return start


def _new_unet(args: argparse.Namespace) -> checkpoint.Part:
    from diffusers.models import UNet2DConditionModel

    if any(width % args.groups for width in args.widths):
        raise InputError(
            f"--groups {args.groups} does not fit --widths {args.widths}: every width must be a multiple of it"
        )
    attended = args.widths if args.top_attention else args.widths[1:]
    if any(width % args.heads for width in attended):
        raise InputError(f"--heads {args.heads} does not fit --widths: {attended} must be multiples of it")
    top = "CrossAttn" if args.top_attention else ""
    unet = UNet2DConditionModel(
        sample_size=args.size // 8,
        in_channels=9,
        out_channels=4,
        block_out_channels=tuple(args.widths),
        layers_per_block=args.layers,
        attention_head_dim=args.heads,
        norm_num_groups=args.groups,
        cross_attention_dim=args.null_text[1],
        down_block_types=(f"{top}DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", f"{top}UpBlock2D"),
    )
    if args.start_as_copy:
        start_as_copy(unet)
    return checkpoint.part_from(unet)


@torch.no_grad()
def start_as_copy(unet) -> None:
    """Makes a new UNet, a v-predicting one, answer the composite itself at the highest noise: it need not learn first to pass a picture through.

    SD's UNet has a way straight from its first convolution to its last, by the skip of the last residual block, but a normalisation and a SiLU
    stand in it. SiLU(a) - SiLU(-a) = a, so each latent channel travels twice, once negated; and each such pair shares its normalisation group
    with the constants +-`COPY_BOUND`, whose variance is large beside a latent's, so that the group's scale is nearly one number. All
    other channels begin as in any UNet, those of the noise a tenth as strong.

    Raises:
        ValueError: fewer than 4 channels a group, or fewer than 4 groups, in the first level.
    """
    channels, groups = unet.conv_in.out_channels, unet.conv_norm_out.num_groups
    each = channels // groups
    if each < 4 or groups < 4:
        raise InputError(
            f"--start-as-copy needs 4 groups of 4 channels in the first level, got {groups} of {each}: raise --widths or lower --groups"
        )
    last = unet.up_blocks[-1].resnets[-1]
    deep = last.conv_shortcut.in_channels - channels
    unet.conv_in.weight[:, :4] *= 0.1
    unet.conv_out.weight *= 0.1
    unet.conv_out.bias.zero_()
    for block in unet.modules():
        if type(block).__name__ == "ResnetBlock2D":
            block.conv2.weight *= 0.0 if block is last else 0.3
            block.conv2.bias.zero_()
    for attention in list(getattr(unet.up_blocks[-1], "attentions", []))[
        -1:
    ]:  # after the last residual block, with --top-attention
        attention.proj_out.weight.zero_()
        attention.proj_out.bias.zero_()
    scale = ((0.8**2 + COPY_BOUND**2) / 2 * 4 / each) ** 0.5  # the group's standard deviation
    for latent in range(4):
        first = latent * each
        group = slice(first, first + each)
        last.conv_shortcut.weight[group], last.conv_shortcut.bias[group] = 0, 0
        unet.conv_out.weight[:, group] = 0
        for place, (sign, constant) in enumerate(((1, 0), (-1, 0), (0, COPY_BOUND), (0, -COPY_BOUND))):
            unet.conv_in.weight[first + place], unet.conv_in.bias[first + place] = 0, constant
            unet.conv_in.weight[first + place, 5 + latent, 1, 1] = sign
            last.conv_shortcut.weight[first + place, deep + first + place] = 1
            unet.conv_out.weight[latent, first + place, 1, 1] = -scale * sign

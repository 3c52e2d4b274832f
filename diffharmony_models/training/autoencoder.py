"""`train-autoencoder`: a small f8 VAE from nothing, fine-tuning of a given one, or the Harmony-VAE from a VAE."""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import checkpoint
from . import data, loop, sheets

logger = logging.getLogger(__name__)

SCALING_FACTOR = 0.18215


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, nargs="*", help="folders of photos or index files (.jsonl); not with --harmony")
    parser.add_argument("--harmony", type=Path, metavar="DATASET", help="train the Harmony-VAE of --from on this iHarmony4-shaped data set")
    parser.add_argument("--list", type=Path, default=Path("IHD_train.txt"), help="with --harmony: the list in DATASET (default %(default)s)")
    parser.add_argument("--split-seed", type=int, default=0, help="the --seed given to make-composites: its test photos are left out (default %(default)s)")
    parser.add_argument("--test-share", type=float, default=0.08, help="the --test-share given to make-composites (default %(default)s)")
    parser.add_argument("--from", dest="start", type=Path, help="checkpoint whose VAE is trained on (default: a new one)")
    parser.add_argument("--widths", type=int, nargs=4, default=(32, 32, 64, 128), help="of a new VAE, multiples of 32 (default %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="residual layers a level of a new VAE (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the crops, a multiple of 8 (default %(default)s)")
    parser.add_argument("--kl-weight", type=float, default=1e-6, help="weight of the KL term (default %(default)s)")
    parser.add_argument("--color-weight", type=float, default=1.0, help="weight of the L1 between 8 times reduced pictures (default %(default)s)")
    loop.add_arguments(parser, steps=20_000, batch_size=8, learning_rate=5e-4)


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/vae.safetensors (or OUTPUT/harmony_vae.safetensors)."""
    if args.size % 8:
        raise ValueError(f"--size must be a multiple of 8, got {args.size}")
    if args.harmony:
        return _run_harmony(args)
    if not args.photos:
        raise ValueError("No photos were given: name folders of photos or index files, or --harmony DATASET with --from CHECKPOINT")
    paths = [path for source in args.photos for path in data.training_photos(source, args.split_seed, args.test_share)]
    vae = _start(args)
    photos = data.Photos(paths, args.size)

    def loss(model, batch, generator):
        target = batch["image"] * 2 - 1
        decoded, mean, log_variance = model(target, generator=generator)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        l1 = (decoded - target).abs().mean()
        value = l1 + args.color_weight * color_loss(decoded, target) + args.kl_weight * kl
        return value, {"l1": l1.item(), "kl": kl.item(), "psnr": -10 * torch.log10((decoded - target).div(2).square().mean()).item()}

    fixed = torch.stack([photos.get(i, np.random.default_rng((17, i)))["image"] for i in range(0, len(photos), max(1, len(photos) // 8))][:8])

    def sample(model, step):
        with torch.no_grad():
            decoded = model.decode_mode(fixed.to(next(model.parameters()).device) * 2 - 1)
        sheets.save([fixed, decoded.cpu() / 2 + 0.5], args.output / "samples" / f"{step:07d}.jpg")

    def export(model):
        normalize_latents(model.vae, (photos.get(i, np.random.default_rng((17, i)))["image"] for i in range(min(512, len(photos)))))
        part = checkpoint.Part(config=dict(model.vae.config), state=model.vae.state_dict())
        checkpoint.write(checkpoint.Checkpoint(name="vae", vae=part), args.output / "vae.safetensors")

    loop.train(args, Autoencoder(vae), photos, loss, export=export, sample=sample)


class Autoencoder(torch.nn.Module):
    """Encode, sample, decode in one forward pass, so that one wrapper serves data-parallel training."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, images, generator=None):
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar

    def decode_mode(self, images):
        return self.vae.decode(self.vae.encode(images).latent_dist.mode()).sample


def color_loss(decoded: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between the pictures averaged over 8×8 blocks: the colour of a latent's own patch."""
    return F.avg_pool2d(decoded - target, 8).abs().mean()


def _start(args):
    from diffusers.models import AutoencoderKL

    if args.start:
        part = checkpoint.read(args.start).vae
        if part is None:
            raise ValueError(f"{args.start} holds no VAE; --from wants a checkpoint with one")
        return checkpoint.build_vae(part).float().train()
    return AutoencoderKL(
        block_out_channels=tuple(args.widths), layers_per_block=args.layers, latent_channels=4, scaling_factor=SCALING_FACTOR, sample_size=args.size,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )


@torch.no_grad()
def normalize_latents(vae, images) -> None:
    """Folds a scale and a shift per channel into `quant_conv` and `post_quant_conv`, so that latents × scaling factor have mean 0 and deviation 1.

    The decoded picture does not change: with z' = a (z + b), post_quant_conv is given the inverse.

    Args:
        vae: an AutoencoderKL, changed in place.
        images: iterable of [3, H, W] in [0, 1].
    """
    device = next(vae.parameters()).device
    latents = torch.cat([vae.encode(image[None].to(device) * 2 - 1).latent_dist.mode().flatten(2) for image in images], dim=2)[0].double()
    shift = -latents.mean(dim=1)
    scale = 1 / (latents.std(dim=1) * vae.config.scaling_factor)
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(scale)
    weight, bias = quant.weight.double(), quant.bias.double()
    weight[:channels] *= scale[:, None, None, None]
    bias[:channels] = (bias[:channels] + shift) * scale
    bias[channels:] += 2 * scale.log()
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)
    weight = post.weight.double()
    post.bias.copy_(post.bias.double() - (weight * shift[None, :, None, None]).sum(dim=(1, 2, 3)))
    post.weight.copy_(weight / scale[None, :, None, None])


def _run_harmony(args) -> None:
    """Trains and writes OUTPUT/harmony_vae.safetensors: --from with the Harmony-VAE added."""
    from ..harmony_vae import HarmonyVAE

    if not args.start:
        raise ValueError("--harmony wants --from CHECKPOINT, the VAE that the Harmony-VAE starts from")
    start = checkpoint.read(args.start)
    if start.harmony_vae is not None:
        vae = checkpoint.build_harmony_vae(start.harmony_vae).float().train()
    else:
        vae = HarmonyVAE.from_vae(_start(args)).train()
    pairs = data.Pairs(args.harmony, args.list, args.size)

    def loss(model, batch, generator):
        target = batch["real"] * 2 - 1
        l1 = (model(target, batch["composite"] * 2 - 1, batch["mask"]) - target).abs().mean()
        return l1, {"l1": l1.item()}

    shown = [pairs.get(index, np.random.default_rng((17, index))) for index in range(0, len(pairs), max(1, len(pairs) // 6))][:6]

    def sample(model, step):
        batch = {name: torch.stack([item[name] for item in shown]).to(next(model.parameters()).device) for name in shown[0]}
        with torch.no_grad():
            decoded = model(batch["real"] * 2 - 1, batch["composite"] * 2 - 1, batch["mask"]) / 2 + 0.5
        sheets.save([batch["composite"].cpu(), batch["mask"].cpu(), decoded.cpu(), batch["real"].cpu()], args.output / "samples" / f"{step:07d}.jpg")

    def export(model):
        start.harmony_vae = checkpoint.part_from(model.vae)
        checkpoint.write(start, args.output / "harmony_vae.safetensors")

    loop.train(args, Conditioned(vae), pairs, loss, export=export, sample=sample)


class Conditioned(torch.nn.Module):
    """The Harmony-VAE in one forward pass: the real picture's latent (its mode), decoded beside the composite. Images in [-1, 1].

    The encoder of the real picture is frozen, so that the latents stay those that stage 1 was trained on.
    """

    def __init__(self, vae):
        super().__init__()
        self.vae = vae
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    def forward(self, real, composite, mask):
        with torch.no_grad():
            latent = self.vae.encode(real).mean
        return self.vae.decode(latent, self.vae.encode_condition(composite, mask))

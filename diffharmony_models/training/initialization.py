"""What new networks begin as, where random weights would take a small training too long: a VAE that knows colours, a
UNet that answers its composite.

Both set weights of diffusers' own modules by their names; a test says of each that it does what it is there for.
"""

import torch

from ..errors import InputError

# The constant channels of a UNet that starts as a copy, in standard deviations of a latent: they make its last
# normalisation almost constant.
COPY_BOUND = 3.0
# Channels that carry red, green, blue through a new VAE, and constants ±ANCHOR in the same normalisation groups: they
# dominate a group's variance, so that a normalisation hardly touches the colours beside them.
COLORS, HIGH, LOW, ANCHOR = (0, 1, 4), (2, 5), (3, 6), 4.0
LIFT = 2.0  # added before a SiLU: there it is all but linear, with slope
SLOPE = 1.09


@torch.no_grad()
def block_means(vae: torch.nn.Module) -> None:
    """Starts a new VAE, in place, as the codec that keeps each 8×8 block's mean colour in its first three latents.

    From random weights a small VAE spends thousands of steps on brightness alone before it finds colour, which is what
    harmonization is about. Every residual branch begins at zero, the colours pass along the skip paths, and all the
    other channels are random as usual.
    """
    carried = [*COLORS, *HIGH, *LOW]

    def pass_on(conv: torch.nn.Conv2d, kernel: torch.Tensor | float) -> None:
        conv.weight[:, [*HIGH, *LOW]] = 0
        conv.weight[carried] = 0
        conv.bias[carried] = 0
        for channel in carried:
            conv.weight[channel, channel] = kernel

    def anchored(conv: torch.nn.Conv2d, gain: float) -> None:
        conv.weight[carried] = 0
        conv.bias[carried] = 0
        for source, channel in enumerate(COLORS):
            conv.weight[channel, source, 1, 1] = gain
        conv.bias[list(HIGH)], conv.bias[list(LOW)] = ANCHOR, -ANCHOR

    center, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    center[1, 1], mean[:2, :2] = 1.0, 0.25
    for coder in (vae.encoder, vae.decoder):
        for name, module in coder.named_modules():
            if name.endswith("conv2") or name.endswith("to_out.0"):
                module.weight.zero_()
                module.bias.zero_()
            elif name.endswith("conv_shortcut"):
                pass_on(module, 1.0)
            elif name.endswith("downsamplers.0.conv"):
                pass_on(module, mean)
            elif name.endswith("upsamplers.0.conv"):
                pass_on(module, center)
        coder.conv_norm_out.bias[carried] = LIFT
        coder.conv_out.bias.zero_()
    lifted = LIFT * torch.sigmoid(torch.tensor(LIFT))
    groups = vae.config.norm_num_groups
    spread = (
        ANCHOR * (4 * groups / vae.config.block_out_channels[-1]) ** 0.5
    )  # a deviation of the encoder's first group
    anchored(vae.encoder.conv_in, 1.0)
    for latent, channel in enumerate(COLORS):
        vae.encoder.conv_out.weight[latent] = 0
        vae.encoder.conv_out.weight[latent, channel, 1, 1] = spread / SLOPE
        vae.encoder.conv_out.bias[latent] = -lifted * spread / SLOPE
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.quant_conv.bias.zero_()
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -6.0
    vae.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    vae.post_quant_conv.bias.zero_()
    anchored(vae.decoder.conv_in, 1.0)
    spread = ANCHOR * (2 * groups / vae.config.block_out_channels[0]) ** 0.5
    high = torch.tensor(ANCHOR / spread + LIFT)
    vae.decoder.conv_out.weight *= 0.1
    for color, (channel, anchor) in enumerate(zip(COLORS, (HIGH[0], HIGH[0], HIGH[1]))):
        vae.decoder.conv_out.weight[color] *= 0
        vae.decoder.conv_out.weight[color, channel, 1, 1] = spread / SLOPE
        vae.decoder.conv_out.weight[color, anchor, 1, 1] = -spread / SLOPE
        vae.decoder.conv_out.bias[color] = spread / SLOPE * (high * torch.sigmoid(high) - lifted)


@torch.no_grad()
def start_as_copy(unet: torch.nn.Module) -> None:
    """Makes a new UNet answer the composite's latents: what predicts the picture need not learn first to pass it
    through.

    SD's UNet has a way straight from its first convolution to its last, by the skip of the last residual block, but a
    normalisation and a SiLU stand in it. SiLU(a) - SiLU(-a) = a, so each latent channel travels twice, once negated;
    and each such pair shares its normalisation group with the constants +-`COPY_BOUND`, whose variance is large beside
    a latent's, so that the group's scale is nearly one number. All other channels begin as in any UNet, those of the
    noise a tenth as strong.

    Raises:
        InputError: fewer than 4 channels a group, or fewer than 4 groups, in the first level.
    """
    channels, groups = unet.conv_in.out_channels, unet.conv_norm_out.num_groups
    each = channels // groups
    if each < 4 or groups < 4:
        raise InputError(
            f"A UNet that begins as a copy needs 4 groups of 4 channels in the first level, got {groups} of {each}: "
            "raise the recipe's widths or lower its groups"
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
            unet.conv_out.weight[latent, first + place, 1, 1] = scale * sign

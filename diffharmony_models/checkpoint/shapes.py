"""The tensors that a clean config asks for, by name and shape, without building anything.

So a file is known to hold a whole network before memory is taken for one, in ComfyUI too, where diffusers is not
loaded. Names are diffusers'. Plain Python.
"""

from collections.abc import Callable
from functools import partial

from .rules import each

Shapes = dict[str, tuple[int, ...]]


def unet(config: dict) -> Shapes:
    widths, text = config["block_out_channels"], config["cross_attention_dim"]
    levels, time = len(widths), 4 * widths[0]
    layers = each(config["layers_per_block"], levels)
    depths = each(config["transformer_layers_per_block"], levels)
    linear = config["use_linear_projection"]
    shapes = {
        **_conv("conv_in", config["in_channels"], widths[0], 3),
        **_linear("time_embedding.linear_1", widths[0], time),
        **_linear("time_embedding.linear_2", time, time),
        **_norm("conv_norm_out", widths[0]),
        **_conv("conv_out", widths[0], config["out_channels"], 3),
    }
    width, skips = widths[0], [widths[0]]
    for level, out in enumerate(widths):
        block = f"down_blocks.{level}"
        for layer in range(layers[level]):
            shapes |= _resnet(f"{block}.resnets.{layer}", width, out, time)
            if config["down_block_types"][level] == "CrossAttnDownBlock2D":
                shapes |= _transformer(f"{block}.attentions.{layer}", out, text, depths[level], linear)
            width = out
            skips.append(out)
        if level < levels - 1:
            shapes |= _conv(f"{block}.downsamplers.0.conv", out, out, 3)
            skips.append(out)
    for layer in range(2):
        shapes |= _resnet(f"mid_block.resnets.{layer}", width, width, time)
    shapes |= _transformer("mid_block.attentions.0", width, text, depths[-1], linear)
    for number, out in enumerate(reversed(widths)):
        block, level = f"up_blocks.{number}", levels - 1 - number
        for layer in range(layers[level] + 1):
            shapes |= _resnet(f"{block}.resnets.{layer}", width + skips.pop(), out, time)
            if config["up_block_types"][number] == "CrossAttnUpBlock2D":
                shapes |= _transformer(f"{block}.attentions.{layer}", out, text, depths[level], linear)
            width = out
        if number < levels - 1:
            shapes |= _conv(f"{block}.upsamplers.0.conv", out, out, 3)
    return shapes


def vae(config: dict) -> Shapes:
    widths, layers, latent = config["block_out_channels"], config["layers_per_block"], config["latent_channels"]
    attention = config["mid_block_add_attention"]
    shapes = {
        **_conv("encoder.conv_in", config["in_channels"], widths[0], 3),
        **_middle("encoder", widths[-1], attention),
        **_norm("encoder.conv_norm_out", widths[-1]),
        **_conv("encoder.conv_out", widths[-1], 2 * latent, 3),
        **_conv("quant_conv", 2 * latent, 2 * latent, 1),
        **_conv("post_quant_conv", latent, latent, 1),
        **_conv("decoder.conv_in", latent, widths[-1], 3),
        **_middle("decoder", widths[-1], attention),
        **_norm("decoder.conv_norm_out", widths[0]),
        **_conv("decoder.conv_out", widths[0], config["out_channels"], 3),
    }
    for side, blocks, sampler, order, count in (
        ("encoder", "down_blocks", "downsamplers", widths, layers),
        ("decoder", "up_blocks", "upsamplers", widths[::-1], layers + 1),
    ):
        width = order[0]
        for level, out in enumerate(order):
            for layer in range(count):
                shapes |= _resnet(f"{side}.{blocks}.{level}.resnets.{layer}", width, out)
                width = out
            if level < len(order) - 1:
                shapes |= _conv(f"{side}.{blocks}.{level}.{sampler}.0.conv", out, out, 3)
    return shapes


def text_encoder(config: dict) -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.token_embedding.weight": (config["vocab_size"], width),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
        **_norm("final_layer_norm", width),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", width, inner) | _linear(f"{layer}.mlp.fc2", inner, width)
    return shapes


def _resnet(name: str, width: int, out: int, time: int | None = None) -> Shapes:
    shapes = _norm(f"{name}.norm1", width) | _conv(f"{name}.conv1", width, out, 3)
    shapes |= _norm(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out, 3)
    if time is not None:
        shapes |= _linear(f"{name}.time_emb_proj", time, out)
    if width != out:
        shapes |= _conv(f"{name}.conv_shortcut", width, out, 1)
    return shapes


def _middle(side: str, width: int, attention: bool) -> Shapes:
    shapes: Shapes = {}
    for number in range(2):
        shapes |= _resnet(f"{side}.mid_block.resnets.{number}", width, width)
    if attention:
        name = f"{side}.mid_block.attentions.0"
        shapes |= _norm(f"{name}.group_norm", width)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _linear(f"{name}.{layer}", width, width)
    return shapes


def _transformer(name: str, width: int, text: int, depth: int, linear: bool) -> Shapes:
    project: Callable[[str, int, int], Shapes] = _linear if linear else partial(_conv, kernel=1)
    shapes = _norm(f"{name}.norm", width)
    shapes |= project(f"{name}.proj_in", width, width) | project(f"{name}.proj_out", width, width)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for layer, source in (("attn1", width), ("attn2", text)):
            shapes |= _linear(f"{block}.{layer}.to_q", width, width, bias=False)
            shapes |= _linear(f"{block}.{layer}.to_k", source, width, bias=False)
            shapes |= _linear(f"{block}.{layer}.to_v", source, width, bias=False)
            shapes |= _linear(f"{block}.{layer}.to_out.0", width, width)
        for layer in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}.{layer}", width)
        shapes |= _linear(f"{block}.ff.net.0.proj", width, 8 * width) | _linear(f"{block}.ff.net.2", 4 * width, width)
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, width: int, out: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def _conv(name: str, width: int, out: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (out, width, kernel, kernel), f"{name}.bias": (out,)}

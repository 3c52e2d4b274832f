"""What the user sees while a graph runs: the progress bar and the live previews, as a browser receives them."""

import base64
import io
import json

import pictures
import pytest
import torch
from graphs import BUNDLED, condition, decode, harmonize, ksampler, pick, wires

STEPS = 3
# Runs by the host's Python, which has aiohttp. Prints [kind, node, content] for each progress and preview of a prompt.
WATCH = """
import asyncio, base64, json, sys, aiohttp

async def main(address, graph, method):
    seen, node = [], None
    url = f"{address}/ws?clientId=watcher"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        extra = {"preview_method": method}
        content = {"prompt": json.loads(open(graph).read()), "client_id": "watcher", "extra_data": extra}
        async with session.post(f"{address}/prompt", json=content) as answer:
            assert answer.status == 200, await answer.text()
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind = int.from_bytes(message.data[:4], "big")
                if kind == 1:  # PREVIEW_IMAGE: kind, format, file
                    seen.append(["preview", node, base64.b64encode(message.data[8:]).decode()])
            elif message.type == aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                data = event["data"]
                if event["type"] == "executing":
                    node = data["node"]
                elif event["type"] == "progress":
                    seen.append(["progress", data["node"], [data["value"], data["max"]]])
                elif event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    assert event["type"] == "execution_success", data
                    print(json.dumps(seen))
                    return

asyncio.run(main(*sys.argv[1:]))
"""


def watch(host, graph, output: list, method: str = "auto") -> tuple[dict, dict]:
    """Runs a graph up to an output. Progress as (value, max) and previews as [1, 3, h, w], by the class of the node."""
    graph("TestSave", value=output, file="watched")
    file = host.base / "watched.json"
    file.write_text(json.dumps(graph.prompt))
    progress, previews = {}, {}
    for kind, node, content in json.loads(host.script(WATCH, host.address, file, method)):
        name = graph.prompt[node]["class_type"]
        if kind == "progress":
            progress.setdefault(name, []).append(tuple(content))
        else:
            file = io.BytesIO(base64.b64decode(content))
            previews.setdefault(name, []).append(pictures.read(file))
    return progress, previews


def seen(picture: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A picture at the size of another."""
    return torch.nn.functional.interpolate(picture, size=like.shape[-2:], mode="bilinear", antialias=True)


@pytest.mark.parametrize("node", ["HarmonizeLatent", "KSampler"])
def test_sampling_shows_each_step(host, node):
    composite, mask = pictures.composites(1, 128, 128, seed=5)
    graph, shared = wires(host, BUNDLED, composite, mask)
    if node == "KSampler":
        latent = ksampler(graph, shared["model"], condition(graph, shared, 128), steps=STEPS)
    else:
        latent = harmonize(graph, shared, 128, steps=STEPS)
    (result,) = host.fetch(graph, decode(graph, shared, latent))
    graph.prompt[latent[0]]["inputs"]["seed"] += 1  # so that it runs anew
    progress, previews = watch(host, graph, latent)
    assert [value for value, _ in progress[node] if value] == list(range(1, STEPS + 1))
    assert {most for _, most in progress[node]} == {STEPS}
    assert len(previews[node]) == STEPS
    last = previews[node][-1]
    # Its latents are not Stable Diffusion's, and yet the preview has the picture's colours.
    assert pictures.psnr(last, seen(result.movedim(-1, 1), last)) >= 20


@pytest.mark.parametrize("node", ["RefineResidual", "TransferToFullResolution"])
def test_an_ending_shows_each_picture(host, node):
    composite, mask = pictures.composites(2, 96, 128, seed=6)
    graph, shared = wires(host, BUNDLED, composite, mask)
    harmonized = 0.5 * composite
    shared["harmonized"] = graph("TestLoad", file=host.give(value=pictures.image(harmonized)), kind="tensor")[0]
    inputs = pick(shared, "harmonized", "composite", "mask")
    if node == "RefineResidual":
        ending = graph(node, refiner=shared["refiner"], strength=1.0, keep_background=True, feather=0, **inputs)
    else:
        ending = graph(node, radius=12, detail=1.0, feather=0, **inputs)
    progress, previews = watch(host, graph, ending[0])
    assert progress[node][-1] == (2, 2)
    before, after = previews[node][0::2], previews[node][1::2]
    assert len(before) == len(after) == 2
    started = harmonized if node == "RefineResidual" else composite
    (result,) = host.fetch(graph, ending[0])
    for index in range(2):
        shown, harmonized = (seen(preview[index], composite) for preview in (before, after))
        assert pictures.psnr(shown, started[index : index + 1]) >= 28  # a JPEG
        inside = mask[index : index + 1].expand(1, 3, -1, -1) > 0
        assert pictures.psnr(harmonized[inside], result.movedim(-1, 1)[index : index + 1][inside]) >= 28


def test_no_previews_for_who_wants_none(host):
    graph, shared = wires(host, BUNDLED, *pictures.composites())
    ending = graph(
        "TransferToFullResolution",
        radius=12,
        detail=1.0,
        feather=0,
        harmonized=shared["composite"],
        **pick(shared, "composite", "mask"),
    )
    progress, previews = watch(host, graph, ending[0], "none")
    assert progress["TransferToFullResolution"][-1] == (1, 1) and not previews

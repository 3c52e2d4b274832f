"""HarmonizeColors in the host: the engine's result, whatever the size, the batch and the amounts."""

import time
from pathlib import Path

import graphs
import pictures
import pytest
import torch
import weights
from graphs import colors
from harness import Failed, Graph, Refused, forget_peak

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models import recolor
from diffharmony_models.benchmark.host import peak_memory

TWELVE = (3000, 4000)  # height, width: 12 megapixels


def given(host, composite: torch.Tensor, mask: torch.Tensor) -> tuple[Graph, list, list]:
    graph = Graph()
    values = (pictures.image(composite), pictures.mask(mask))
    return graph, *(graph("TestLoad", file=host.give(value=value), kind="tensor")[0] for value in values)


def harmonized(host, composite: torch.Tensor, mask: torch.Tensor, **changes) -> torch.Tensor:
    graph, image, matte = given(host, composite, mask)
    (found,) = host.fetch(graph, colors(graph, image, matte, **changes)[0])
    return found.movedim(-1, 1)


def soft(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(mask, 9, 1, 4)


# Settings of the node, and the same for the engine.
SETTINGS = {
    "as predicted": ({}, {}),
    "half": ({"strength": 0.5}, {"amounts": recolor.Amounts(strength=0.5)}),
    "amounts": (
        {"strength": 1.5, "light": 0.2, "color": 1.4, "local": 0.5},
        {"amounts": recolor.Amounts(1.5, 0.2, 1.4, 0.5)},
    ),
    "feather": ({"feather": 7}, {"feather": 7}),
    "one change": ({"frames": "one change for all"}, {"frames": "one change for all"}),
    "smoothed": ({"frames": "smoothed"}, {"frames": "smoothed"}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_node_gives_what_the_engine_gives(host, regressor, case):
    changes, options = SETTINGS[case]
    composite, mask = pictures.composites(3, 97, 131)
    mask[1] *= 0.4  # nowhere half white: a frame without a foreground
    mask[2] = soft(mask)[2]
    options = {**options, "amounts": options.get("amounts")}
    expected, change = recolor.harmonize(regressor, composite, mask, **options)
    graph, image, matte = given(host, composite, mask)
    node = colors(graph, image, matte, **changes)
    found, curve = host.fetch(graph, node[0], node[1])
    found = found.movedim(-1, 1)
    assert (found - expected).abs().max() <= 1e-5
    assert (curve - change.curve).abs().max() <= 1e-5
    outside = (mask == 0).expand_as(composite)
    assert torch.equal(found[outside], composite[outside]) and torch.equal(found[1], composite[1])
    assert pictures.psnr(found[0], composite[0]) < 40, "nothing was harmonized"


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (64, 64), (333, 517)])
def test_any_size(host, regressor, size):
    composite = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, *size)
    mask[..., : size[0] // 2 + 1, : size[1] // 2 + 1] = 1
    expected, _ = recolor.harmonize(regressor, composite, mask)
    assert (harmonized(host, composite, mask) - expected).abs().max() <= 1e-5


def test_strength_0_is_the_composite(host, regressor):
    composite, mask = pictures.composites(2)
    assert torch.equal(harmonized(host, composite, soft(mask), strength=0.0), composite)


def test_a_picture_of_a_batch_is_what_it_is_alone(host, regressor):
    """With one mask for all, too."""
    composite, mask = pictures.composites(3)
    together = harmonized(host, composite, mask[:1])
    alone = [harmonized(host, one, mask[:1]) for one in composite.split(1)]
    assert torch.equal(together, torch.cat(alone))


def test_a_mask_of_the_same_proportions_is_scaled(host, regressor):
    composite, mask = pictures.composites()
    large = torch.nn.functional.interpolate(mask, scale_factor=2, mode="nearest")
    assert pictures.psnr(harmonized(host, composite, large), harmonized(host, composite, mask)) > 25


def test_it_goes_on_into_stage_1_and_the_transfer(host, regressor):
    """Its result is a composite as any other."""
    composite, mask = pictures.composites()
    graph, shared = graphs.wires(host, graphs.BUNDLED, composite, mask)
    shared["composite"] = colors(graph, shared["composite"], shared["mask"])[0]
    decoded = graphs.decode(graph, shared, graphs.harmonize(graph, shared, 64, steps=1))
    settings = {"radius": 12, "detail": 1.0, "feather": 0}
    inputs = {**graphs.pick(shared, "composite", "mask"), "harmonized": decoded}
    (found,) = host.fetch(graph, graph("TransferToFullResolution", **inputs, **settings)[0])
    outside = mask[:, 0] == 0
    assert torch.equal(found[outside], pictures.image(composite)[outside]) and torch.isfinite(found).all()


def test_weights_without_a_regressor_are_named(host):
    checkpoints.write(weights.whole(), host.models / "diffharmony" / "no colors.safetensors")
    graph, image, matte = given(host, *pictures.composites())
    with pytest.raises(Failed, match=r"no colors\.safetensors.* no colour regressor.*train-color-regressor"):
        host.fetch(graph, colors(graph, image, matte, weights="no colors.safetensors")[0])


@pytest.mark.parametrize("name", ["absent.safetensors", "../colors.safetensors", "/etc/passwd"])
def test_weights_that_are_not_there(host, regressor, name):
    graph, image, matte = given(host, *pictures.composites())
    colors(graph, image, matte, weights=name)
    with pytest.raises(Refused, match="checkpoint"):
        host.fetch(graph, colors(graph, image, matte, weights=name)[0])


def test_weights_that_have_changed_are_read_again(host, regressor):
    """Though the graph is the same, and the last regressor is kept in memory."""
    composite, mask = pictures.composites()
    path = host.models / "diffharmony" / "changing.safetensors"
    found = []
    for gain in (0.5, 1.0):
        config = {**regressor.config, "gain": gain}
        part = checkpoints.Part(config, regressor.state_dict())
        checkpoints.write(checkpoints.Checkpoint("changing", color_regressor=part), path)
        found.append(harmonized(host, composite, mask, weights=path.name))
    assert not torch.equal(*found)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are forgotten by Linux alone")
def test_twelve_megapixels_take_less_than_a_gigabyte(host, regressor):
    """Beyond the picture, the mask and what has been loaded. The time is printed: it is the machine's."""
    composite, mask = pictures.composites(1, *TWELVE)
    graph, image, matte = given(host, composite, mask)
    host.fetch(graph, colors(graph, image, matte, strength=0.9)[1])
    graph.prompt.popitem()  # the pictures are read and the network is there; now the same with other amounts
    node = colors(graph, image, matte)
    graph("TestSave", value=node[1], file="twelve")
    forget_peak(host.process.pid)
    before, start = peak_memory(host.process.pid), time.monotonic()
    assert host.run(graph).cached >= {image[0], matte[0]}
    taken = peak_memory(host.process.pid) - before
    print(f"{time.monotonic() - start:.2f} s, {taken / 1e9:.2f} GB")
    assert 0 < taken < 1e9

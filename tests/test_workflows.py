"""How the workflows that ship are laid out: nothing covers anything, no wire runs behind a node, no group stands empty.

Read off the files alone. How the page shows them is in tests/host/test_host_layout.py.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "workflows").glob("*.json"))
TITLE = 30  # height of a node's title bar, which stands above its position
LARGEST = (1990, 1230)  # in units of the canvas; the page fits a template into three quarters of the window
FULLEST = 0.35  # the least share of a group that its nodes cover

Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]


def box(node: dict) -> Box:
    """What a node covers, with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def within(mine: Box, area: Box) -> bool:
    """Whether a node stands in a group, below its title."""
    return mine[0] >= area[0] and mine[1] >= area[1] + TITLE and mine[2] <= area[2] and mine[3] <= area[3]


def crosses(start: Point, end: Point, other: Box) -> bool:
    """Whether a straight line runs through a box: clipped to it, something is left."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        way = end[axis] - start[axis]
        if way == 0:
            if not other[axis] < start[axis] < other[axis + 2]:
                return False
            continue
        near, far = sorted(((other[axis] - start[axis]) / way, (other[axis + 2] - start[axis]) / way))
        low, high = max(low, near), min(high, far)
    return low < high


def wires(workflow: dict) -> Iterator[tuple[set[int], list[Point]]]:
    """Each link's two nodes, and the points that it runs through: the output, the reroutes, the input."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    bends = {bend["id"]: bend for bend in workflow["extra"].get("reroutes", [])}
    last = {link["id"]: link["parentId"] for link in workflow["extra"].get("linkExtensions", [])}
    for identity, origin, output, target, slot, _ in workflow["links"]:
        one, other = nodes[origin], nodes[target]
        points = [(other["pos"][0], other["pos"][1] + 20 * (slot + 0.7))]
        bend = last.get(identity)
        while bend is not None:
            points.append(tuple(bends[bend]["pos"]))
            bend = bends[bend].get("parentId")
        points.append((one["pos"][0] + one["size"][0], one["pos"][1] + 20 * (output + 0.7)))
        yield {origin, target}, points[::-1]


def faults(workflow: dict) -> list[str]:
    """What is wrong with a workflow's layout, in words."""
    boxes = {node["id"]: box(node) for node in workflow["nodes"]}
    names = {node["id"]: f"{node['id']} {node.get('title', node['type'])}" for node in workflow["nodes"]}
    groups = [(group["title"], *group["bounding"]) for group in workflow["groups"]]
    areas = {title: (x, y, x + width, y + height) for title, x, y, width, height in groups}
    found = []
    for one, mine in boxes.items():
        covered = [other for other in boxes if other < one and overlap(mine, boxes[other])]
        found += [f"{names[one]} and {names[other]} overlap" for other in covered]
        touched = [area for area in areas.values() if overlap(mine, area)]
        if len(touched) > 1 or not all(within(mine, area) for area in touched):
            found.append(f"{names[one]} sticks out of a group")
    for ends, points in wires(workflow):
        wire = f"a wire {[names[each] for each in sorted(ends)]}"
        others = [other for other in boxes if other not in ends]
        for start, end in itertools.pairwise(points):
            found += [f"{wire} runs behind {names[other]}" for other in others if crosses(start, end, boxes[other])]
        if len(points) == 2 and points[0][0] >= points[1][0]:
            found.append(f"{wire} runs back")
    for title, area in areas.items():
        held = [each for each in boxes.values() if overlap(each, area)]
        share = sum((b[2] - b[0]) * (b[3] - b[1]) for b in held) / ((area[2] - area[0]) * (area[3] - area[1]))
        if share < FULLEST:
            found.append(f'the group "{title}" is {100 * share:.0f} % full')
        met = [other for other in areas if other < title and overlap(area, areas[other])]
        found += [f"the groups {title} and {other} overlap" for other in met]
    left, top, right, bottom = (pick(b[i] for b in boxes.values()) for i, pick in enumerate((min, min, max, max)))
    if right - left > LARGEST[0] or bottom - top > LARGEST[1]:
        found.append(f"it is {right - left:.0f} x {bottom - top:.0f}, which opens below the zoom of text")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_can_be_read(path):
    assert faults(json.loads(path.read_text(encoding="utf-8"))) == []


def test_what_cannot_be_read_is_found():
    """Two nodes one on the other, a wire behind a third, an empty group, and a graph too wide."""
    nodes = [
        {"id": n, "type": f"N{n}", "pos": [x, 0], "size": [100, 50]}
        for n, x in ((1, 0), (2, 150), (3, 3000), (4, 3050))
    ]
    groups = [{"title": "empty", "bounding": [0, 500, 100, 100]}]
    workflow = {"nodes": nodes, "links": [[1, 1, 0, 3, 0, "IMAGE"]], "groups": groups, "extra": {}}
    words = " | ".join(faults(workflow))
    assert (
        "4 N4 and 3 N3 overlap" in words and "runs behind 2 N2" in words and "0 % full" in words and "3150 x" in words
    )
    bends = [{"id": 1, "pos": [120, 100]}, {"id": 2, "parentId": 1, "pos": [2900, 100]}]
    workflow["extra"] = {"reroutes": bends, "linkExtensions": [{"id": 1, "parentId": 2}]}
    assert "runs behind" not in " | ".join(faults(workflow)), "a wire goes where its reroutes lead it"

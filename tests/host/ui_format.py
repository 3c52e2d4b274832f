"""A workflow file as ComfyUI's page saves it (UI format, 0.4) to the prompt that the page queues for it (API format).

What the shipped workflows use and no more: nodes, links, widgets, notes, muted nodes. ValueError for the rest.
"""

from harness import Host

NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a combo whose choices have inputs of their own, "format.codec" those of "format"
TYPED = {
    "BOOLEAN",
    "COMBO",
    DYNAMIC,
    "FLOAT",
    "INT",
    "STRING",
}  # inputs that have a widget, and a value in the file
SENT = {
    "IMAGECOMPARE": {"__value__": ["", ""]}
}  # widgets whose value is not in the file, and what the page sends for them
UPLOADS = ("image_upload", "video_upload")  # loaders with these have one value more, the last, of their upload button


def prompt(workflow: dict, host: Host) -> dict:
    """The prompt of a workflow's JSON, with the node definitions of a running host: {id: class_type, inputs, _meta}."""
    links = {link[0]: link for link in workflow["links"]}
    nodes = {}
    for node in workflow["nodes"]:
        if node["mode"] == BYPASSED or node["type"] == "Reroute":
            raise ValueError(
                f"Node {node['id']} ({node['type']}) is bypassed or a reroute, which this does not follow. Wire past "
                "it."
            )
        if node["mode"] != MUTED and node["type"] not in NOTES:
            nodes[str(node["id"])] = node
    result = {}
    for identity, node in nodes.items():
        info = host.get(f"/object_info/{node['type']}")[node["type"]]
        inputs = _values(node, info)
        for slot in node["inputs"]:
            if slot["link"] is not None:
                origin, output = str(links[slot["link"]][1]), links[slot["link"]][2]
                inputs.pop(slot["name"], None)
                if origin in nodes:
                    inputs[slot["name"]] = [origin, output]
        result[identity] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", info["display_name"])},
        }
    return result


def _values(node: dict, info: dict) -> dict:
    """The widgets' values by name; the file has them in the order of the definition."""
    left, found = list(node.get("widgets_values", [])), {}
    required = [settings[0] for _, *settings in info["input"].get("required", {}).values() if settings]
    if any(settings.get(upload) for settings in required for upload in UPLOADS):
        left.pop()
    _take(info["input"], left, found)
    if left:
        raise ValueError(f"{node['type']} {node['id']}: the file has values more than there are widgets: {left}")
    return found


def _take(inputs: dict, left: list, found: dict, above: str = "") -> None:
    """Moves these inputs' values from the front of `left` to `found`. above: the dynamic combo that holds them."""
    for name, (kind, *settings) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        name, settings = above + name, settings[0] if settings else {}
        kind = "COMBO" if isinstance(kind, list) else kind  # the choices themselves, in nodes of the old style
        if kind in SENT:
            found[name] = SENT[kind]
        if kind not in TYPED or settings.get("forceInput"):
            continue
        # A widget that is newer than the file has its default.
        found[name] = left.pop(0) if left else _default(kind, settings)
        if kind == DYNAMIC:
            option = next(option for option in settings["options"] if option["key"] == found[name])
            _take(option["inputs"], left, found, f"{name}.")
        if settings.get("control_after_generate"):
            left.pop(0)


def _default(kind: str, settings: dict) -> bool | float | str:
    return settings["options"][0]["key"] if kind == DYNAMIC else settings["default"]

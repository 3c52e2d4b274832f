"""The only way from a config to a network, here and in ComfyUI. Plain Python.

A config.json is as untrusted as the weights beside it: it is checked value by value, and whatever else stands in it is
dropped.
"""

from typing import Any

from ..errors import InputError
from .kinds import KINDS
from .rules import MISSING, NEEDED, Wrong, ignored, shown
from .schemas import RESOLUTIONS

_ADVICE = "Use the config.json that belongs to these weights."


def clean(kind: str, config: dict, where: object = None) -> dict:
    """The config with the keys that a network of this kind is built by, and no others: given, else default.

    where: named in the InputError for a value that is none of the allowed, and for values that do not go together.
    """
    name, known = prefix(where, kind), KINDS[kind]
    result: dict[str, Any] = {}
    for key, (rule, default) in known.schema.items():
        value = default(result) if callable(default) else default
        if rule is not ignored:
            value = config.get(key, value)
        if value is NEEDED:
            raise InputError(f"{name}'s config says no {key}. {_ADVICE}")
        if value is MISSING:
            continue
        try:
            result[key] = rule(value)
        except Wrong:
            raise InputError(f"{name}'s config says {key} {shown(value)}; expected {rule}. {_ADVICE}") from None
    if known.channels and result["in_channels"] not in known.channels:
        raise InputError(f"{name} takes {result['in_channels']} channels; {known.wanted}.")
    if words := known.contradiction(result):
        raise InputError(f"{name}'s config says {words}. {_ADVICE}")
    version = config.get("_diffusers_version")
    if isinstance(version, str) and len(version) <= 32:
        result["_diffusers_version"] = version
    return result


def resolution(value: Any, where: object) -> int:
    """A checkpoint's own resolution, from its metadata. InputError for what is no such number."""
    return _number(value, "resolution", RESOLUTIONS, "pixels", where)


def steps(value: Any, where: object) -> int:
    """How many sampling steps a checkpoint was made for, from its metadata. InputError for what is no such number."""
    return _number(value, "steps", range(1, 1001), "sampling steps", where)


def _number(value: Any, name: str, allowed: range, unit: str, where: object) -> int:
    text = value if isinstance(value, str) else str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) in allowed):
        limits = f"{allowed[0]} to {allowed[-1]}"
        raise InputError(
            f'{where}: {name} "{shown(text)}" is no number of {unit} from {limits}. Get or convert it again.'
        )
    return int(text)


def prefix(where: object, kind: str) -> str:
    """How a message begins that is about a part."""
    return f"The {KINDS[kind].title}" if where is None else f"{where}: the {KINDS[kind].title}"

"""What the nodes lean on inside ComfyUI: every function of these modules is one promise, so that a change has a name.

`test_host_contract.py` lets the host's own Python run them. Nothing of the package itself is imported here.
"""

import inspect
import json
import sys
import traceback

from . import networks, sampling, system


def main() -> None:
    """Prints what is broken as JSON: the traceback for each promise by name, None where it holds."""
    faults: dict[str, str | None] = {}
    for module in (sampling, networks, system):
        for name, promise in inspect.getmembers(module, inspect.isfunction):
            if promise.__module__ != module.__name__:
                continue
            try:
                promise()
                faults[name] = None
            except Exception:
                faults[name] = traceback.format_exc()
    sys.stdout.write("\n" + json.dumps(faults) + "\n")

"""A real ComfyUI for the tests: `benchmark.server` with a second place for models, nodes for tests and exact tensors.

Its folders are all temporary: no file of the user's installation is read or written, apart from the program itself.
"""

import os
import subprocess
import uuid
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffharmony_models.benchmark.memory import forget_peak
from diffharmony_models.benchmark.server import (
    PACK,
    ROOT,
    RUN_SECONDS,
    START_SECONDS,
    Failed,
    Interrupted,
    Refused,
    Server,
)

__all__ = [
    "PACK",
    "ROOT",
    "RUN_SECONDS",
    "Failed",
    "Graph",
    "Host",
    "Interrupted",
    "Refused",
    "Run",
    "find",
    "forget_peak",
]


class Node:
    """A node of a `Graph`; node[n] is its n-th output, to be wired."""

    def __init__(self, identity: str):
        self.identity = identity

    def __getitem__(self, output: int) -> list:
        return [self.identity, output]


class Graph:
    """A prompt in the making: graph("SomeNode", an_input=1, another=node[0]) adds a node."""

    def __init__(self, prompt: dict | None = None):
        self.prompt = dict(prompt or {})

    def __call__(self, class_type: str, /, **inputs) -> Node:
        identity = f"test{len(self.prompt)}"
        self.prompt[identity] = {"class_type": class_type, "inputs": inputs}
        return Node(identity)


class Run:
    """What one prompt gave.

    outputs: what the output nodes told the browser, by node; cached: nodes that did not run.
    """

    def __init__(self, outputs: dict, cached: set[str]):
        self.outputs, self.cached = outputs, cached


class Host(Server):
    """A running host. models, input, output: folders in its base; more_models: a second place for models, which its
    extra_model_paths.yaml names."""

    def __init__(self, root: Path, python: Path, base: Path):
        self.models, self.input, self.output = (base / name for name in ("models", "input", "output"))
        self.more_models = base / "elsewhere"
        paths = base / "extra_model_paths.yaml"
        super().__init__(root, python, base, "--cpu", "--extra-model-paths-config", paths)
        (self.more_models / "harmonizers").mkdir(parents=True)
        (base / "custom_nodes" / "diffharmony_testing.py").symlink_to(Path(__file__).with_name("testing_nodes.py"))
        paths.write_text(f"elsewhere:\n    base_path: {self.more_models}\n    diffharmony: harmonizers\n")

    def queue(self, prompt: Graph | dict) -> str:
        return super().queue(prompt.prompt if isinstance(prompt, Graph) else prompt)

    def run(self, prompt: Graph | dict) -> Run:
        entry = self.wait(self.queue(prompt))
        cached = (content["nodes"] for kind, content in entry["status"]["messages"] if kind == "execution_cached")
        return Run(entry["outputs"], set().union(*cached))

    def give(self, **tensors: torch.Tensor) -> str:
        """Lays tensors down for the node TestLoad; gives the name under which it finds them."""
        name = uuid.uuid4().hex
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.input / name)
        return name

    def fetch(self, prompt: Graph, *outputs: list) -> list[torch.Tensor]:
        """Runs a prompt and gives what comes out of these outputs, exactly: IMAGE [B, H, W, C], MASK, or a LATENT's
        samples.
        """
        names = [uuid.uuid4().hex for _ in outputs]
        graph = Graph(prompt.prompt)
        for name, output in zip(names, outputs):
            graph("TestSave", value=output, file=name)
        self.run(graph)
        return [load_file(self.output / name)["value"] for name in names]

    def script(self, code: str, *arguments: str) -> str:
        """What a script prints that runs by the host's Python in the host's folder, without a server."""
        command = [self.python, "-c", code, *arguments]
        done = subprocess.run(
            list(map(str, command)), cwd=self.root, capture_output=True, text=True, timeout=START_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def find() -> tuple[Path, Path] | str:
    """The host's folder and its Python, or why there is none.

    COMFYUI_PATH names the folder (~/comfy/ComfyUI if it is not set), COMFYUI_PYTHON its Python (that of its .venv)."""
    root = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    if not (root / "main.py").is_file():
        return f"no ComfyUI in {root}; set COMFYUI_PATH to its folder to run the tests of the nodes"
    choices = [root / ".venv/bin/python", root / "venv/bin/python", root / ".venv/Scripts/python.exe"]
    if "COMFYUI_PYTHON" in os.environ:
        choices = [Path(os.environ["COMFYUI_PYTHON"]).expanduser()]
    python = next((path for path in choices if path.is_file()), None)
    return (root, python) if python else f"no .venv in {root}; set COMFYUI_PYTHON to the Python that runs ComfyUI"

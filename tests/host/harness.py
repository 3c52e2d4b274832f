"""A real ComfyUI in a process of its own, and the client that the tests speak to it with.

Its folders are all temporary: no file of the user's installation is read or written, apart from the program itself.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PACK = "diffharmony"  # the name of our folder in custom_nodes
START = 900  # seconds; a minute where the machine has nothing else to do
RUN = 1800


class Refused(Exception):
    """The host did not take the prompt; str() is everything that it said."""


class Failed(Exception):
    """A node failed. node: its class; str() is the message that the user sees."""

    def __init__(self, message: str, node: str, kind: str):
        super().__init__(message)
        self.node, self.kind = node, kind


class Interrupted(Exception):
    """The run was cancelled."""


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


class Host:
    """A running host. base: its folders (models, input, output, custom_nodes, user); more_models: a second place for
    models, which its extra_model_paths.yaml names."""

    def __init__(self, root: Path, python: Path, base: Path):
        self.root, self.python, self.base = root, python, base
        self.models, self.input, self.output = (base / name for name in ("models", "input", "output"))
        self.more_models = base / "elsewhere"
        self.log = base / "log.txt"
        self.process = None

    def start(self) -> None:
        for folder in (
            "models/diffharmony",
            "input",
            "output",
            "user",
            "temp",
            "custom_nodes",
            "elsewhere/harmonizers",
        ):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        (self.base / "custom_nodes" / "diffharmony_testing.py").symlink_to(Path(__file__).with_name("testing_nodes.py"))
        paths = self.base / "extra_model_paths.yaml"
        paths.write_text(f"elsewhere:\n    base_path: {self.more_models}\n    diffharmony: harmonizers\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [self.python, "main.py", "--cpu", "--port", self.address.rpartition(":")[2], "--disable-auto-launch"]
        command += ["--base-directory", self.base, "--extra-model-paths-config", paths, "--disable-api-nodes"]
        command += ["--database-url", f"sqlite:///{self.base / 'comfyui.db'}"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=self.root, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + START
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"ComfyUI in {self.root} did not start:\n{self.said()[-3000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def read(self, path: str) -> bytes:
        """A file that the host serves."""
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self.read(path))

    def post(self, path: str, content: dict):
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def queue(self, prompt: Graph | dict) -> str:
        """Queues a prompt and gives its id; Refused where the host does not take it."""
        content = prompt.prompt if isinstance(prompt, Graph) else prompt
        try:
            return self.post("/prompt", {"prompt": content, "client_id": uuid.uuid4().hex})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            faults = [answer["error"]] + [each for node in answer["node_errors"].values() for each in node["errors"]]
            raise Refused("; ".join(f"{each['message']}: {each['details']}" for each in faults)) from None

    def wait(self, identity: str) -> Run:
        """What became of a queued prompt; Failed or Interrupted where it did not end well."""
        end = time.monotonic() + RUN
        while identity not in (history := self.get(f"/history/{identity}")):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The host did not finish:\n{self.said()[-3000:]}")
            time.sleep(0.02)
        entry = history[identity]
        cached = set()
        for kind, content in entry["status"]["messages"]:
            if kind == "execution_error":
                raise Failed(content["exception_message"].strip(), content["node_type"], content["exception_type"])
            if kind == "execution_interrupted":
                raise Interrupted
            if kind == "execution_cached":
                cached |= set(content["nodes"])
        return Run(entry["outputs"], cached)

    def run(self, prompt: Graph | dict) -> Run:
        return self.wait(self.queue(prompt))

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
        done = subprocess.run(list(map(str, command)), cwd=self.root, capture_output=True, text=True, timeout=START)
        assert done.returncode == 0, done.stderr
        return done.stdout


def forget_peak(process: int) -> None:
    """From now on the peak of a process's memory is that of what comes; on Linux."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


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

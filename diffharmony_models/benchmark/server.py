"""A ComfyUI in a process of its own, spoken to over HTTP. Nothing of it is imported.

Its folders all lie in one base folder: no file of the installation is read or written, apart from the program itself.
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
from typing import Any

from ..errors import InputError

PACK = "diffharmony"  # the name of our folder in custom_nodes
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("models/diffharmony", "input", "output", "temp", "user", "custom_nodes")
START_SECONDS = 900  # for it to answer; a minute where the machine has nothing else to do
RUN_SECONDS = 1800  # for a graph
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # this machine's own, whatever proxy is set


class Refused(InputError):
    """ComfyUI did not take the graph; str() is everything that it said."""


class Failed(InputError):
    """A node failed. node: its class; str() is the message that the user sees."""

    def __init__(self, message: str, node: str, kind: str):
        super().__init__(message)
        self.node, self.kind = node, kind


class Interrupted(Exception):
    """The run was cancelled."""


class Server:
    """root: ComfyUI's folder. python: what runs it. base: its folders (models, input, output, custom_nodes with this
    pack in it, user), made where they are not there. options: more of main.py's."""

    def __init__(self, root: Path, python: Path, base: Path, *options: object):
        self.root, self.python, self.base, self.options = root, python, base, options
        self.log = base / "log.txt"
        self.process: subprocess.Popen | None = None
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        pack = base / "custom_nodes" / PACK
        if not pack.exists():
            pack.symlink_to(ROOT, target_is_directory=True)

    def start(self) -> None:
        """Starts it and waits until it answers. RuntimeError, with the end of its log, where it does not."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [self.python, "main.py", "--port", port, "--base-directory", self.base, "--disable-auto-launch"]
        command += ["--disable-api-nodes", "--database-url", f"sqlite:///{self.base / 'comfyui.db'}", *self.options]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:  # URLError is one
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

    @property
    def pid(self) -> int:
        """Of its process, which has been started."""
        assert self.process is not None
        return self.process.pid

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def read(self, path: str) -> bytes:
        """A file that it serves."""
        with _OPEN(self.address + path, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """What it answers, read from JSON."""
        return json.loads(self.read(path))

    def post(self, path: str, content: dict) -> Any:
        """What it answers, read from JSON; None for nothing."""
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with _OPEN(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def queue(self, prompt: dict) -> str:
        """Queues a graph in the API's format and gives its id; Refused where the host does not take it."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            faults = [answer["error"]] + [each for node in answer["node_errors"].values() for each in node["errors"]]
            raise Refused("; ".join(f"{each['message']}: {each['details']}" for each in faults)) from None

    def wait(self, identity: str) -> dict:
        """The history of a queued graph once it has run; Failed or Interrupted where it did not end well."""
        end = time.monotonic() + RUN_SECONDS
        while identity not in (history := self.get(f"/history/{identity}")):
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not finish:\n{self.said()[-3000:]}")
            time.sleep(0.02)
        for kind, content in history[identity]["status"]["messages"]:
            if kind == "execution_error":
                raise Failed(content["exception_message"].strip(), content["node_type"], content["exception_type"])
            if kind == "execution_interrupted":
                raise Interrupted
        return history[identity]

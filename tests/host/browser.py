"""ComfyUI's own page in a headless Chromium: what a person does there, done by a test.

Nothing outside the host is asked: requests to other addresses are refused, as on a machine without internet.
"""

import importlib.util
import os
import re
import shutil
from pathlib import Path

from harness import Failed, Host

START = 300_000  # ms until the page is ready, and RUN until a queued workflow has ended; a busy machine needs them
RUN = 900_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

_URL = re.compile(r"https?://[^\s'\")]+")
_READY = "() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.api.clientId"

# Queues the open workflow as the Run button does. The page hears of a prompt by events alone, so it listens before.
# Whether the host took it is read off the host's answer: what app.queuePrompt returns means different things in
# different front ends.
_QUEUE = """async (patience) => {
    const api = app.api, outputs = {}
    let answer
    api.queuePrompt = async (...args) => {
        delete api.queuePrompt
        return (answer = await api.queuePrompt(...args))
    }
    const ended = new Promise((resolve) => {
        api.addEventListener("executed", ({ detail }) => {
            outputs[detail.display_node ?? detail.node] = detail.output
        })
        api.addEventListener("execution_success", () => resolve({ outputs }))
        api.addEventListener("execution_error", ({ detail }) => resolve({ failed: detail }))
        api.addEventListener("execution_interrupted", () => resolve({ refused: "it was interrupted" }))
        setTimeout(() => resolve({ refused: "it did not end in time" }), patience)
    })
    await app.queuePrompt(0)
    return answer?.prompt_id ? await ended : { refused: "the page could not queue it" }
}"""

# Sets widgets of the one node of a class (and title), as if they had been typed in. Front end 1.37 names a subgraph's
# widget by the node inside too: "2: seed".
_CHANGE = """([type, title, values]) => {
    const found = app.graph.nodes.filter((node) => node.type == type && (title == null || node.title.includes(title)))
    if (found.length != 1) throw Error(`${found.length} nodes ${type} ${title ?? ""}`)
    for (const [name, value] of Object.entries(values)) {
        const widget = found[0].widgets.find((each) => each.name.replace(/^\\d+: /, "") == name)
        if (!widget) throw Error(`${type} has no widget ${name}`)
        widget.value = value
        widget.callback?.(value)
    }
}"""

_VISIBLE = '[role="dialog"]:visible, [data-testid="error-overlay"]:visible, .p-toast-message-error:visible'


class Tab:
    """A tab of a new visitor with the host's page open. browser: playwright's; page: the page, for all that is not
    here.

    errors: what the page said in its console as an error since it was ready, and exceptions that nobody caught."""

    def __init__(self, browser, host: Host):
        host.post("/settings", {"Comfy.TutorialCompleted": True})  # or the templates stand open at the first start
        self.context = browser.new_context(viewport={"width": 1600, "height": 1000})
        self.context.route(lambda url: not url.startswith(host.address), lambda route: route.abort())
        self.page = self.context.new_page()
        self.page.goto(host.address, timeout=START)
        self.page.wait_for_function(_READY, timeout=START)
        self.page.evaluate(
            "app.extensionManager.command.execute('Comfy.NewBlankWorkflow')"
        )  # the default one lacks its models
        self.errors = []
        self.page.on(
            "console",
            lambda said: said.type == "error" and self._hear(f"{said.text} ({said.location.get('url')})", host.address),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _hear(self, said: str, address: str) -> None:
        """Keeps an error, unless it is that another address cannot be asked: the page looks for its default workflow's
        models.
        """
        if all(url.startswith(address) for url in _URL.findall(said)):
            self.errors.append(said)

    def close(self) -> None:
        self.context.close()

    def open(self, path: Path) -> None:
        """Opens a workflow as the menu's Open does, and waits until its nodes are there. Dialogs are closed before."""
        closing = self.page.locator(".p-dialog-close-button:visible")
        while closing.count():
            closing.last.click()
            self.page.wait_for_timeout(500)
        self.page.evaluate("app.graph.clear()")
        self.page.set_input_files("input#comfy-file-input", path)
        self.page.wait_for_function(
            "(name) => app.extensionManager.workflow.activeWorkflow.path.includes(name) && app.graph.nodes.length",
            arg=path.stem,
        )
        self.page.wait_for_timeout(500)  # what is missing is said a moment later

    def complaints(self) -> list[str]:
        """The words of all dialogs and error messages that the page shows."""
        return self.page.locator(_VISIBLE).all_inner_texts()

    def messages(self) -> list[str]:
        """The words of the messages that stand in the page's corner, once they have come in or gone out."""
        self.page.wait_for_timeout(1000)
        return self.page.locator(".p-toast-message:visible").all_inner_texts()

    def unknown(self) -> list[str]:
        """Classes of nodes in the graph that the page does not know."""
        return self.page.evaluate(
            "app.graph.nodes.map((node) => node.type).filter((type) => !(type in LiteGraph.registered_node_types))"
        )

    def prompt(self) -> dict:
        """What the page would queue, in the API format, without what its video player adds at its leisure."""
        prompt = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        for node in prompt.values():
            node["inputs"].pop("video-preview", None)
        return prompt

    def change(self, type: str, title: str | None = None, **values) -> None:
        """Sets widgets of the one node of a class (and with these words in its title)."""
        self.page.evaluate(_CHANGE, [type, title, values])

    def search(self, name: str) -> None:
        """Opens the search for nodes and types a name into it."""
        for _ in range(30):
            self.page.mouse.dblclick(700, 600)  # a page that is still busy with its start does not answer
            self.page.wait_for_timeout(2000)
            if self.page.evaluate("document.activeElement.matches('input')"):
                break
        else:
            raise AssertionError("the search for nodes did not open")
        self.page.keyboard.type(name)

    def queue(self) -> dict:
        """Runs the workflow; gives what its output nodes told the page, by node id.

        Failed where it did not end well.
        """
        ended = self.page.evaluate(_QUEUE, RUN)
        if "failed" in ended:
            failed = ended["failed"]
            raise Failed(failed["exception_message"].strip(), failed["node_type"], failed["exception_type"])
        if "refused" in ended:
            raise Failed(f"{ended['refused']}: {self.complaints()} {self.errors}", "", "")
        return ended["outputs"]

    def shot(self, path: Path) -> None:
        """A picture of the page, the whole graph in view."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=path)


def find() -> Path | str:
    """The Chromium of this machine, or why the page cannot be tried.

    CHROMIUM_PATH names one that is not on the PATH.
    """
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed; it comes with the extra `test`"
    if "CHROMIUM_PATH" in os.environ:
        path = Path(os.environ["CHROMIUM_PATH"]).expanduser()
        return path if path.is_file() else f"CHROMIUM_PATH is {path}, where there is no file"
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return (
        Path(found)
        if found
        else f"no {', '.join(NAMES)} on the PATH; install Chromium or set CHROMIUM_PATH to try the nodes in the browser"
    )

// What a node of this pack doubts (a mask that is empty, or looks inverted, …) as a message on the page. It stays until it is
// closed, or until the node runs again and has nothing to say any more.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const shown = new Map() // what stands on the page: words -> { node, message }

app.registerExtension({
  name: "DiffHarmony.Warnings",

  setup() {
    const { toast } = app.extensionManager

    // Not sent for a node whose result is still known: what it said then holds.
    api.addEventListener("executing", ({ detail: node }) => {
      for (const [words, { node: speaker, message }] of shown) {
        if (speaker !== node) continue
        toast.remove(message)
        shown.delete(words)
      }
    })

    api.addEventListener("executed", ({ detail }) => {
      for (const words of detail.output?.diffharmony_warnings ?? []) {
        if (shown.has(words)) continue // several nodes have the same mask
        const message = { severity: "warn", summary: "DiffHarmony", detail: words }
        shown.set(words, { node: detail.display_node ?? detail.node, message })
        toast.add(message)
      }
    })
  },
})

// The workflows that come with this pack work on pictures of its own, and ComfyUI's loaders see the input folder alone.
// So when a workflow is opened that names one of these pictures, it is uploaded first, unless there is a file of that name.
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const EXAMPLES = [
  "diffharmony_astronaut.jpg",
  "diffharmony_astronaut_mask.png",
  "diffharmony_clip.mp4",
  "diffharmony_clip_mask.webm",
  "diffharmony_cutout.png",
  "diffharmony_evening.png",
  "diffharmony_relit.jpg",
]
const pack = import.meta.url.split("/").at(-3) // of /extensions/<folder of this pack>/js/example_pictures.js
const present = new Set() // examples that are in the input folder

/** The file names that a loader offers now; the page's own list is as old as the page. */
async function offered(loader) {
  const info = await (await api.fetchApi(`/object_info/${loader}`)).json()
  const inputs = Object.values(info[loader]?.input?.required ?? {})
  return inputs.flatMap(([kind, settings]) => (Array.isArray(kind) ? kind : settings?.options ?? []))
}

async function upload(name) {
  const picture = await api.fetchApi(`/workflow_templates/${pack}/pictures/${name}`)
  if (!picture.ok) throw new Error(`${picture.status} ${picture.statusText}`)
  const body = new FormData()
  body.append("image", await picture.blob(), name) // /upload/image takes videos too, and overwrites nothing unasked
  const answer = await api.fetchApi("/upload/image", { method: "POST", body })
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`)
}

app.registerExtension({
  name: "DiffHarmony.ExamplePictures",

  async beforeConfigureGraph(workflow) {
    const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])]
    for (const { type, widgets_values } of graphs.flatMap(({ nodes }) => nodes ?? [])) {
      for (const name of Object.values(widgets_values ?? {}).filter((value) => EXAMPLES.includes(value))) {
        try {
          if (!(await offered(type)).includes(name)) await upload(name)
          present.add(name)
        } catch (error) {
          console.warn(`DiffHarmony: the example picture ${name} could not be laid into the input folder:`, error)
        }
      }
    }
  },

  // The page calls a picture missing that is not in its list, which is older than the upload.
  loadedGraphNode(node) {
    for (const { value, options } of node.widgets ?? []) {
      if (present.has(value) && Array.isArray(options?.values) && !options.values.includes(value)) options.values.push(value)
    }
  },
})

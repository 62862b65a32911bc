// Search runs in a worker, and browsers refuse workers to pages that were opened from a folder. There,
// this stands in for one: the same script, in a hidden frame. The theme would fetch such a stand-in
// from another server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data =>
        this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script")
        script.src = new URL(url, location.href).href
        script.onload = resolve
        script.onerror = reject
        frame.contentDocument.documentElement.append(script)
      })
    }

    postMessage(data) {
      const event = new this.inside.MessageEvent("message", { data })
      this.ready.then(() => this.inside.dispatchEvent(event))
    }
  }
}

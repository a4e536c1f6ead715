"use strict"
// Updates the page each second with the HTML that the server sends, by the IDs of its elements.
const live = document.getElementById("live")
const pause = document.getElementById("pause")
const RETRY = 3000 // milliseconds
const shown = {}
let events, paused = false

function announce(text) { // a screen reader reads it aloud each time that it is set
  if (live.textContent !== text) live.textContent = text
}

// Change an element into a copy of its model. Nodes that are equal in both stay, and with them the
// focus, the selection, and what is unfolded. Rows have keys, because they may be added, removed and
// moved.
function update(element, model) {
  for (const { name } of [...element.attributes]) {
    if (name !== "open" && !model.hasAttribute(name)) element.removeAttribute(name)
  }
  for (const { name, value } of model.attributes) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value)
  }
  const keys = new Set(Array.from(model.children, child => child.dataset.key))
  const rows = new Map()
  for (const child of [...element.children]) {
    const key = child.dataset.key
    // Removed now and not at the end: otherwise each row after them would move, and lose the focus.
    if (key && !keys.has(key)) child.remove()
    else if (key) rows.set(key, child)
  }
  let next = element.firstChild
  for (const wanted of [...model.childNodes]) {
    const key = wanted.dataset?.key
    const found = key ? rows.get(key) : next
    rows.delete(key) // two servers in a process may both have a connection with this ID
    if (!found || found.nodeName !== wanted.nodeName || found.dataset?.key !== key) {
      element.insertBefore(wanted, next)
      continue
    }
    if (found === next) next = next.nextSibling
    else element.insertBefore(found, next)
    if (wanted.nodeType === Node.ELEMENT_NODE) update(found, wanted)
    else if (found.data !== wanted.data) found.data = wanted.data
  }
  while (next) {
    const last = next
    next = next.nextSibling
    last.remove()
  }
}

function show(id, html) {
  const part = document.getElementById(id)
  const model = part.cloneNode(false)
  model.innerHTML = shown[id] = html
  const focused = document.activeElement
  update(part, model)
  if (focused.isConnected) focused.focus({ preventScroll: true }) // a move has removed the focus
}

function listen() {
  events?.close()
  // A hidden page uses none of the few connections that a browser opens to a host.
  if (paused || document.hidden) return
  events = new EventSource(location.href)
  events.onmessage = ({ data }) => {
    announce("live")
    for (const [id, html] of Object.entries(JSON.parse(data))) {
      if (shown[id] !== html) show(id, html)
    }
  }
  events.onerror = () => {
    announce("not connected: the numbers are old")
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, RETRY)
  }
}

pause.onclick = () => {
  paused = !paused
  announce(paused ? "paused" : "live")
  pause.textContent = paused ? "Resume" : "Pause"
  listen()
}

document.onvisibilitychange = listen
live.parentElement.hidden = false
listen()

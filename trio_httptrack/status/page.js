"use strict"
// Puts in what the server sends each second: ready-made parts of the page, by their ids.
const live = document.getElementById("live")
const pause = document.getElementById("pause")
const RETRY = 3000 // milliseconds
const shown = {}
let events, paused = false

function say(text) { // a screen reader reads it out each time that it is set
  if (live.textContent !== text) live.textContent = text
}

// Make an element like its model. What is the same in both stays, and with it the focus, what
// somebody has selected, and what is unfolded. Rows have keys: they may come, go and change places.
function follow(element, model) {
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
    // Were they removed last, each row behind them would have to move, and so lose the focus.
    if (key && !keys.has(key)) child.remove()
    else if (key) rows.set(key, child)
  }
  let next = element.firstChild
  for (const wanted of [...model.childNodes]) {
    const key = wanted.dataset?.key
    const found = key ? rows.get(key) : next
    rows.delete(key) // two servers in a process may both have a connection of this number
    if (!found || found.nodeName !== wanted.nodeName || found.dataset?.key !== key) {
      element.insertBefore(wanted, next)
      continue
    }
    if (found === next) next = next.nextSibling
    else element.insertBefore(found, next)
    if (wanted.nodeType === Node.ELEMENT_NODE) follow(found, wanted)
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
  follow(part, model)
  if (focused.isConnected) focused.focus({ preventScroll: true }) // it may have moved
}

function listen() {
  events?.close()
  // Of the few connections that a browser has for a host, a page that is not seen takes none.
  if (paused || document.hidden) return
  events = new EventSource(location.href)
  events.onmessage = ({ data }) => {
    say("live")
    for (const [id, html] of Object.entries(JSON.parse(data))) {
      if (shown[id] !== html) show(id, html)
    }
  }
  events.onerror = () => {
    say("not connected: the numbers are old")
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, RETRY)
  }
}

pause.onclick = () => {
  paused = !paused
  say(paused ? "paused" : "live")
  pause.textContent = paused ? "Resume" : "Pause"
  listen()
}

document.onvisibilitychange = listen
live.parentElement.hidden = false
listen()

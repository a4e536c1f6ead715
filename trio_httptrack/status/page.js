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

function show(id, html) {
  const part = document.getElementById(id)
  const link = part.contains(document.activeElement) && document.activeElement.rel
  part.innerHTML = shown[id] = html
  if (link) part.querySelector(`[rel=${link}]`)?.focus()
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

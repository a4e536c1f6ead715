"use strict"
// Puts in what the server sends each second: ready-made parts of the page, by their ids.
const live = document.getElementById("live")
const pause = document.getElementById("pause")
const shown = {}
let events

function listen() {
  events = new EventSource(location.href)
  events.onmessage = ({ data }) => {
    live.textContent = "live"
    for (const [id, html] of Object.entries(JSON.parse(data))) {
      if (shown[id] !== html) document.getElementById(id).innerHTML = shown[id] = html
    }
  }
  events.onerror = () => { live.textContent = "not connected: the numbers are old" }
}

pause.onclick = () => {
  const paused = events.readyState !== EventSource.CLOSED
  if (paused) events.close()
  else listen()
  live.textContent = paused ? "paused" : "live"
  pause.textContent = paused ? "Go on" : "Pause"
}

live.parentElement.hidden = false
listen()

"""The live view: what it shows, and what its keys change."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import trio

from .._monitor.formatting import display_width, duration, visible
from .._monitor.monitor import SAMPLE_INTERVAL
from .._monitor.query import LARGEST_FIRST, MAX_FILTER_LENGTH, ORDERS, Query
from .._monitor.text import (
    Line,
    Span,
    cut_to_width,
    numbers,
    rates,
    selection,
    table,
    title,
    workers,
)
from .._monitor.view import View
from .._states import ConnState
from ._sources import Source, SourceError, open_source
from ._terminal import Terminal, terminal

MAX_LISTED = 5  # requests of a connection: one client must not fill the screen
LAST_LINE = 10**9  # greater than any line number
STATES = ["", *map(str, ConnState)]

FOOTER = "s sort  r reverse  f state  c client  / path  g group  spc pause  ? help  q quit"
HELP = """
s          sort by the next of
           {orders}
r          reverse the order
f          show only the next state; after the last state, show all
c          show only clients whose address begins with what you type
/          show only requests whose path contains what you type
g          group by client address, or ungroup
space      pause or resume
PgUp PgDn  scroll by a page; up and down scroll by a line
?          show or hide this help
q Ctrl-C   quit

Connections that may be stuck come first: those with the oldest requests.
""".format(orders=f"\n{'':11}".join(wrap(", ".join(ORDERS), 60)))
QUIT_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
OTHER_SIGNALS = {signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT}
PROMPTS = {"client": "Client address begins with", "path": "Path contains"}


@dataclass
class Prompt:
    """A filter that is being typed."""

    field: str
    text: str


class Live:
    """The state of the view: the query, the last data, and the position."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.paused = False
        self.quitting = False
        self._view: View | None = None
        self._error = ""
        self._error_since = 0.0
        self._prompt: Prompt | None = None
        self._help = False
        self._offset = 0  # the first line of the table to show; LAST_LINE for the last page
        self._top = 0  # the first line that the last frame has shown
        self._visible = 1  # how many lines the last frame had room for
        self._total = 0  # how many lines the table had in the last frame
        self._changed = trio.Event()
        self._refresh = trio.Event()

    # Data

    async def watch(self, source: Source) -> None:
        """Fetch a view once a second, and at once when the query changes."""
        while True:
            self._refresh = trio.Event()
            due = trio.current_time() + SAMPLE_INTERVAL
            query = self.query
            try:
                self.show(await source.view(query), query)
            except SourceError as error:
                self.fail(str(error))
            with trio.move_on_at(due):
                await self._refresh.wait()
            if self.paused:
                await self._refresh.wait()

    def show(self, view: View, query: Query) -> None:
        self._view, self._error = view, ""
        if query == self.query:  # there may be fewer pages now
            self.query = replace(query, page=view["query"]["page"])
        self._changed.set()

    def fail(self, error: str) -> None:
        if not self._error:
            self._error_since = trio.current_time()
        self._error = error
        self._changed.set()

    def repaint(self) -> None:
        self._changed.set()

    async def changed(self) -> None:
        """Wait until there is something new to paint, but at most a second: an error shows its
        age."""
        with trio.move_on_after(SAMPLE_INTERVAL):
            await self._changed.wait()
        self._changed = trio.Event()

    # Keys

    def press(self, key: str) -> None:
        self._changed.set()
        if self._prompt is not None:
            self._type(self._prompt, key)
        elif key == "q":
            self.quitting = True
        elif key == "?":
            self._help = not self._help
        elif self._help:
            self._help = key != "escape"
        elif key == " ":
            self.paused = not self.paused
            if not self.paused:
                self._refresh.set()
        elif key == "c":
            self._prompt = Prompt("client", self.query.client)
        elif key == "/":
            self._prompt = Prompt("path", self.query.path)
        elif key in ("up", "down", "page up", "page down"):
            self._scroll(key)
        else:
            self._press_view_key(key)

    def _press_view_key(self, key: str) -> None:
        query = self.query
        if key == "s":
            names = list(ORDERS)
            name = names[(names.index(query.order) + 1) % len(names)]
            self._change_query(sort=f"-{name}" if name in LARGEST_FIRST else name)
        elif key == "r":
            self._change_query(sort=query.order if query.descending else f"-{query.order}")
        elif key == "f":
            self._change_query(state=STATES[(STATES.index(query.state) + 1) % len(STATES)])
        elif key == "g":
            self._change_query(group="" if query.group else "client")

    def _type(self, prompt: Prompt, key: str) -> None:
        if key == "escape":
            self._prompt = None
        elif key == "enter":
            self._prompt = None
            self._change_query(**{prompt.field: prompt.text})
        elif key == "backspace":
            prompt.text = prompt.text[:-1]
        elif len(key) == 1:
            prompt.text = f"{prompt.text}{key}"[:MAX_FILTER_LENGTH]

    def _change_query(self, **changes: Any) -> None:
        self.query = replace(self.query, **{"page": 1, **changes})
        self._offset = 0
        self._refresh.set()

    def _scroll(self, key: str) -> None:
        """Scroll within a page. At its end, go to the next page."""
        step = 1 if key in ("up", "down") else max(1, self._visible - 1)
        page = self.query.page
        if key in ("up", "page up"):
            if self._top > 0:
                self._top = self._offset = max(0, self._top - step)
            elif page > 1:
                self._change_query(page=page - 1)
                self._offset = LAST_LINE
        elif self._top + self._visible < self._total:
            self._top = self._offset = self._top + step
        elif self._view is not None and page < self._view["pages"]:
            self._change_query(page=page + 1)

    # The screen

    def frame(self, width: int, height: int) -> list[Line]:
        """Return the lines of the screen."""
        above = [] if self._view is None else self._above(self._view, height)
        if self._error:
            silence = duration(trio.current_time() - self._error_since)
            wrapped = wrap(f"No data for {silence}: {self._error}", width)
            above[1:1] = [[Span(each, "trouble")] for each in wrapped]
        elif self._view is None:
            above.append([Span("Loading ...")])
        self._visible = max(1, height - len(above) - 2)
        if self._help:
            headings, lines = (
                [Span("Keys", "heading")],
                [[Span(each)] for each in HELP.splitlines()],
            )
        elif self._view is not None:
            headings, lines = table(self._view, width, MAX_LISTED)
        else:
            headings, lines = [], []
        self._total = len(lines)
        self._top = max(0, min(self._offset, self._total - self._visible))
        shown = lines[self._top :][: self._visible]
        if len(shown) < len(lines):
            last = self._top + len(shown)
            above[0] = [
                *above[0],
                Span(f"  lines {self._top + 1}-{last} of {len(lines)}", "weak"),
            ]
        shown += [[]] * (self._visible - len(shown))
        return [*above, filled(headings, width), *shown, self._footer(width)]

    def _above(self, view: View, height: int) -> list[Line]:
        heading = title(view)
        if self.paused:
            heading += [Span("  "), Span(" paused ", "heading")]
        return [
            heading,
            *self._workers(view, max(2, height // 4)),
            numbers(view),
            *rates(view),
            selection(view),
        ]

    @staticmethod
    def _workers(view: View, at_most: int) -> list[Line]:
        """Return the lines of at most so many workers, those with problems first."""
        found = view["workers"]
        if len(found) <= at_most:
            return workers(view)
        worst = sorted(
            found, key=lambda each: (each["silent"] or 0, each["lag"] or 0), reverse=True
        )
        shown = workers(View(**{**view, "workers": worst[: at_most - 1]}))
        return [*shown, [Span(f"and {len(found) - at_most + 1} more workers", "weak")]]

    def _footer(self, width: int) -> Line:
        if self._prompt is None:
            return filled([Span(FOOTER, "heading")], width)
        typed = visible(self._prompt.text)
        return [
            Span(f"{PROMPTS[self._prompt.field]}: ", "strong"),
            Span(typed),
            Span(" ", "heading"),
            Span("  Enter: filter  Escape: cancel", "weak"),
        ]


def filled(line: Line, width: int) -> Line:
    """Return a line that is filled with blanks in its last style, to the edge of the screen."""
    line = cut_to_width(line, width)
    blanks = " " * (width - sum(display_width(span.text) for span in line))
    return [*line, Span(blanks, line[-1].style)] if line else []


async def run(target: str | None) -> None:
    """Show a source until the user quits.

    Raises:
      SourceError: it can never be shown.
    """
    async with open_source(target) as source:
        # Before the terminal is changed, so that no signal can leave it changed.
        with trio.open_signal_receiver(*QUIT_SIGNALS, *OTHER_SIGNALS) as received:
            async with terminal() as screen, trio.open_nursery() as nursery:
                live = Live(source.query)
                nursery.start_soon(live.watch, source)
                nursery.start_soon(paint, live, screen)
                nursery.start_soon(press, live, screen, nursery.cancel_scope)
                async for number in received:
                    if number in QUIT_SIGNALS:
                        break
                    if number == signal.SIGTSTP:
                        await screen.leave()
                        os.kill(os.getpid(), signal.SIGSTOP)
                    elif number == signal.SIGCONT:
                        await screen.enter()
                    else:
                        screen.forget()
                    live.repaint()
                nursery.cancel_scope.cancel()


async def paint(live: Live, screen: Terminal) -> None:
    while True:
        await screen.paint(live.frame(*screen.size))
        await live.changed()


async def press(live: Live, screen: Terminal, cancel_scope: trio.CancelScope) -> None:
    async for key in screen.pressed():
        live.press(key)
        if live.quitting:
            break
    cancel_scope.cancel()

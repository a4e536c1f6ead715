"""The live view: what is shown, and what the keys change of it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import trio

from .._monitor.monitor import INTERVAL
from .._monitor.query import LARGEST_FIRST, LONGEST_FILTER, ORDERS, Query
from .._monitor.text import (
    Line,
    Span,
    chosen,
    fitting,
    numbers,
    rates,
    table,
    title,
    workers,
)
from .._monitor.view import View
from .._monitor.words import cells, duration, visible
from .._states import ConnState
from ._sources import Source, SourceError, opened
from ._terminal import Terminal, terminal

LISTED = 5  # requests of a connection: one client must not fill the screen
END = 10**9  # a line behind the last one
STATES = ["", *map(str, ConnState)]

FOOTER = "s sort  r reverse  f state  c client  / path  g group  spc pause  ? help  q quit"
HELP = """
s          sort by the next of
           {orders}
r          reverse the order
f          show one state only: the next one, and at last all again
c          show clients only whose address begins with what you type
/          show requests only that have in their path what you type
g          group by client address, and back
space      pause, and go on
PgUp PgDn  the lines before and after these; also up and down, for a single line
?          this help, and back
q Ctrl-C   quit

A connection that may be stuck comes first: that of the oldest request.
""".format(orders=f"\n{'':11}".join(wrap(", ".join(ORDERS), 60)))
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
HANDLED = {signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT}
PROMPTS = {"client": "Client address begins with", "path": "Path has in it"}


@dataclass
class Prompt:
    """A filter while it is typed."""

    field: str
    text: str


class Live:
    """What one person looks at."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.paused = False
        self.ended = False
        self._view: View | None = None
        self._error = ""
        self._error_since = 0.0
        self._prompt: Prompt | None = None
        self._help = False
        self._offset = 0  # the first line of the table that is shown; END for the last ones
        self._first = 0  # and what that was in the last frame
        self._room = 1  # for lines of the table, in the last frame
        self._length = 0  # of the table, in the last frame
        self._changed = trio.Event()
        self._asked = trio.Event()

    # What happens in the meantime

    async def watch(self, source: Source) -> None:
        """Look at the source once a second, and at once when something else is to be seen."""
        while True:
            self._asked = trio.Event()
            due = trio.current_time() + INTERVAL
            query = self.query
            try:
                self.show(await source.view(query), query)
            except SourceError as error:
                self.fail(str(error))
            with trio.move_on_at(due):
                await self._asked.wait()
            if self.paused:
                await self._asked.wait()

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
        """Wait until there is something new to paint, and a second at most: errors grow older."""
        with trio.move_on_after(INTERVAL):
            await self._changed.wait()
        self._changed = trio.Event()

    # Keys

    def press(self, key: str) -> None:
        self._changed.set()
        if self._prompt is not None:
            self._type(self._prompt, key)
        elif key == "q":
            self.ended = True
        elif key == "?":
            self._help = not self._help
        elif self._help:
            self._help = key != "escape"
        elif key == " ":
            self.paused = not self.paused
            if not self.paused:
                self._asked.set()
        elif key == "c":
            self._prompt = Prompt("client", self.query.client)
        elif key == "/":
            self._prompt = Prompt("path", self.query.path)
        elif key in ("up", "down", "page up", "page down"):
            self._scroll(key)
        else:
            self._change(key)

    def _change(self, key: str) -> None:
        query = self.query
        if key == "s":
            names = list(ORDERS)
            name = names[(names.index(query.order) + 1) % len(names)]
            self._look_at(sort=f"-{name}" if name in LARGEST_FIRST else name)
        elif key == "r":
            self._look_at(sort=query.order if query.descending else f"-{query.order}")
        elif key == "f":
            self._look_at(state=STATES[(STATES.index(query.state) + 1) % len(STATES)])
        elif key == "g":
            self._look_at(group="" if query.group else "client")

    def _type(self, prompt: Prompt, key: str) -> None:
        if key == "escape":
            self._prompt = None
        elif key == "enter":
            self._prompt = None
            self._look_at(**{prompt.field: prompt.text})
        elif key == "backspace":
            prompt.text = prompt.text[:-1]
        elif len(key) == 1:
            prompt.text = f"{prompt.text}{key}"[:LONGEST_FILTER]

    def _look_at(self, **changes: Any) -> None:
        self.query = replace(self.query, **{"page": 1, **changes})
        self._offset = 0
        self._asked.set()

    def _scroll(self, key: str) -> None:
        """Go through the lines of a page, and then to the next page."""
        step = 1 if key in ("up", "down") else max(1, self._room - 1)
        page = self.query.page
        if key in ("up", "page up"):
            if self._first > 0:
                self._first = self._offset = max(0, self._first - step)
            elif page > 1:
                self._look_at(page=page - 1)
                self._offset = END
        elif self._first + self._room < self._length:
            self._first = self._offset = self._first + step
        elif self._view is not None and page < self._view["pages"]:
            self._look_at(page=page + 1)

    # The screen

    def frame(self, width: int, height: int) -> list[Line]:
        """What is to be seen now."""
        above = [] if self._view is None else self._above(self._view, height)
        if self._error:
            silence = duration(trio.current_time() - self._error_since)
            wrapped = wrap(f"No data for {silence}: {self._error}", width)
            above[1:1] = [[Span(each, "trouble")] for each in wrapped]
        elif self._view is None:
            above.append([Span("Looking ...")])
        self._room = max(1, height - len(above) - 2)
        if self._help:
            headings, lines = (
                [Span("Keys", "heading")],
                [[Span(each)] for each in HELP.splitlines()],
            )
        elif self._view is not None:
            headings, lines = table(self._view, width, LISTED)
        else:
            headings, lines = [], []
        self._length = len(lines)
        self._first = max(0, min(self._offset, self._length - self._room))
        shown = lines[self._first :][: self._room]
        if len(shown) < len(lines):
            last = self._first + len(shown)
            above[0] = [
                *above[0],
                Span(f"  lines {self._first + 1}-{last} of {len(lines)}", "weak"),
            ]
        shown += [[]] * (self._room - len(shown))
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
            chosen(view),
        ]

    @staticmethod
    def _workers(view: View, at_most: int) -> list[Line]:
        """As many as there is room for; those with which something is wrong are among them."""
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
            Span("  Enter: filter  Escape: back", "weak"),
        ]


def filled(line: Line, width: int) -> Line:
    """A line whose last style goes on to the edge of the screen."""
    line = fitting(line, width)
    blanks = " " * (width - sum(cells(span.text) for span in line))
    return [*line, Span(blanks, line[-1].style)] if line else []


async def run(target: str | None) -> None:
    """Show a source until somebody quits.

    Raises:
      SourceError: it cannot be looked at, now or later.
    """
    async with opened(target) as source:
        # Before the terminal is touched: whatever ends us, it is given back.
        with trio.open_signal_receiver(*ENDING, *HANDLED) as received:
            async with terminal() as screen, trio.open_nursery() as nursery:
                live = Live(source.query)
                nursery.start_soon(live.watch, source)
                nursery.start_soon(paint, live, screen)
                nursery.start_soon(press, live, screen, nursery.cancel_scope)
                async for number in received:
                    if number in ENDING:
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
        if live.ended:
            break
    cancel_scope.cancel()

"""Format values for people, on the status page and in a terminal.

Paths, methods and addresses come from clients. Invisible characters in them are escaped. Otherwise
an escape sequence could move the viewer's cursor, and U+202E could reverse the line.
"""

from __future__ import annotations

import unicodedata

from .._states import PATH_LENGTH

NOTHING = "\N{EN DASH}"
SLOW = 10  # seconds; a request that waits longer is highlighted


def size(number: int | None) -> str:
    """
    >>> [size(number) for number in (845, 12_345, 999_960, 3_200_000_000)]
    ['845 B', '12.3 kB', '1.0 MB', '3.2 GB']
    """
    if number is None:
        return NOTHING
    if number < 1000:
        return f"{number} B"
    amount = float(number)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:,.1f} TB"


def rounded(number: float) -> str:
    """
    >>> rounded(0.25), rounded(12345.67)
    ('0.2', '12,346')
    """
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def lateness(seconds: float) -> str:
    """
    >>> lateness(0.0042), lateness(1.26)
    ('4 ms', '1.3 s')
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0, 9.26, 75, 3900, 180000)]
    ['0.0 s', '9.3 s', '1 min 15 s', '1 h 05 min', '2 d 02 h']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24:,} d {hours % 24:02} h"


def visible(text: str) -> str:
    """Escape characters that are invisible, or that change how the rest is displayed.

    >>> print(visible("/a b\\n\\u202e"))
    /a b\\n\\u202e
    """
    shown = "".join(each if each.isprintable() and each != "\\" else escaped(each) for each in text)
    return shown if len(shown) <= PATH_LENGTH else f"{shown[:PATH_LENGTH]}\N{HORIZONTAL ELLIPSIS}"


def escaped(character: str) -> str:
    return character.encode("unicode-escape", "surrogatepass").decode("ascii")


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    >>> [display_width(text) for text in ("abc", "\u65e5\u672c", "e\u0301")]
    [3, 4, 1]
    """
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # drawn over the previous character
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def truncate(text: str, width: int) -> str:
    """Return as much of a text as fits into ``width`` columns of a terminal.

    >>> [truncate("/reports", width) for width in (8, 7, 1, 0)]
    ['/reports', '/repor…', '…', '']
    """
    if display_width(text) <= width:
        return text
    room = width - 1  # one column is for the ellipsis
    for at, character in enumerate(text):
        room -= _character_width(character)
        if room < 0:
            text = text[:at]
            break
    return f"{text}\N{HORIZONTAL ELLIPSIS}" if width > 0 else ""

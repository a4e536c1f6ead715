"""Values as a person reads them, on the status page and in a terminal.

Paths, methods and addresses are other people's text. What cannot be seen of it is spelled out: an
escape sequence would move the cursor of whoever looks, and U+202E would turn the line round.
"""

from __future__ import annotations

import unicodedata

from .._states import PATH_LENGTH

NOTHING = "\N{EN DASH}"
SLOW = 10  # seconds, after which somebody may wait in vain


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
    """Spell out what cannot be seen, or would change how the rest is read.

    >>> print(visible("/a b\\n\\u202e"))
    /a b\\n\\u202e
    """
    shown = "".join(each if each.isprintable() and each != "\\" else spelled(each) for each in text)
    return shown if len(shown) <= PATH_LENGTH else f"{shown[:PATH_LENGTH]}\N{HORIZONTAL ELLIPSIS}"


def spelled(character: str) -> str:
    return character.encode("unicode-escape", "surrogatepass").decode("ascii")


def display_width(text: str) -> int:
    """How many columns of a terminal it takes.

    >>> [display_width(text) for text in ("abc", "\u65e5\u672c", "e\u0301")]
    [3, 4, 1]
    """
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # it is drawn upon the one before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def truncate(text: str, width: int) -> str:
    """As much of it as a number of a terminal's columns has room for.

    >>> [truncate("/reports", width) for width in (8, 7, 1, 0)]
    ['/reports', '/repor…', '…', '']
    """
    if display_width(text) <= width:
        return text
    room = width - 1  # for what is before the ellipsis
    for at, character in enumerate(text):
        room -= _character_width(character)
        if room < 0:
            text = text[:at]
            break
    return f"{text}\N{HORIZONTAL ELLIPSIS}" if width > 0 else ""

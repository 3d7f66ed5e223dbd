"""Text for output: printable, escaped for its file format, and encodable by any terminal."""

from __future__ import annotations

import codecs
import sys
import traceback
import unicodedata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

UNPRINTABLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # Unicode categories
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "could not create a memory", "bad_alloc")
JOINERS = "\u200c\u200d"  # of category Cf, but part of words and of emoji
# what a terminal prints that cannot encode a character; "?" for any other
ASCII = {
    "\u2007": " ", "\xa0": " ", "−": "-", "–": "-", "—": "-", "±": "+-", "×": "x", "·": ".", "…": "...", "†": "+",
    "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "→": "->",
}  # fmt: skip


def printable(text: str) -> str:
    """`text` on one line: line breaks, control and formatting characters become escapes such as `\\n` and `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in UNPRINTABLE and c not in JOINERS else c for c in text)


def one_line(text: str) -> str:
    """Prose on one line: white space becomes single spaces, the rest as in `printable`."""
    return printable(" ".join(text.split()))


def shortened(text: str, width: int) -> str:
    """At most `width` characters of `text`, an ellipsis where it was longer."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def lacks_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: torch raises a RuntimeError on the CPU, Python a MemoryError."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def error_text(error: BaseException, width: int = 300) -> str:
    """The type and message of an exception on one line; without a message, the line that raised it.

    All lines of the message, for the first may say nothing, as "Error(s) in loading state_dict:". Where memory ran
    out, that comes first, because tables cut the text.
    """
    name, message = type(error).__name__, one_line(str(error))
    if lacks_memory(error):
        return shortened(f"out of memory ({message or name})", width)
    if not message and error.__traceback__ is not None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{last.line or 'unknown'} ({Path(last.filename).name}, line {last.lineno})"
    return shortened(f"{name}: {message}" if message else name, width)


def styled(text: str, style: str = "") -> Text:
    """One line of printable text for a rich console, whatever markup it may contain."""
    return Text(printable(text), style)


def styled_lines(text: str, style: str = "") -> Text:
    """The same of several lines."""
    return Text(_printable_lines(text), style)


class PlainConsole(Console):
    """A console that prints strings as they are: no markup, no emoji codes, no escape sequences of theirs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the program without a word."""
        raise ValueError(unwritable("Broken pipe"))

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_printable_lines(text), **options)


def unwritable(reason: str) -> str:
    """The sentence for a standard output that takes no more text."""
    return f"standard output cannot be written ({reason}): redirect it elsewhere"


def print_error(sentence: str) -> None:
    PlainConsole(stderr=True).print(Text.assemble(("error:", "red"), " ", styled(sentence)), soft_wrap=True)


def degrade_output() -> None:
    """Have standard output and error replace what their encoding lacks, instead of raising UnicodeEncodeError."""
    codecs.register_error("degrade", _degraded)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="degrade")


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _degraded(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(ASCII.get(character, "?") for character in lacking), error.end

"""Does text reach every output as it was written, or escaped?"""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO

import pytest

from results.tables import escape_markup
from results.text import PlainConsole, one_line, printable, styled

HOSTILE = "[red]a[/] :x: $x$ tail\\"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain LDN’s é 中 Δ_0", "plain LDN’s é 中 Δ_0"),
        ("two\nlines", "two\\nlines"),
        ("\u2028\x85", "\\u2028\\x85"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udc80", "\\udc80"),
        ("a\u2007b\u200dc", "a\u2007b\u200dc"),
    ],
)
def test_what_cannot_be_printed_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_prose_is_one_line() -> None:
    assert one_line("Does LDN’s width\n    matter?\x1b") == "Does LDN’s width matter?\\x1b"


def test_a_console_prints_text_as_it_is() -> None:
    file = StringIO()
    console = PlainConsole(file=file, width=80, force_terminal=True)
    console.print(HOSTILE)
    console.print(styled(HOSTILE))
    console.print("\x1b[2Jgone\na\tb")
    assert file.getvalue().splitlines() == [HOSTILE, HOSTILE, "\\x1b[2Jgone", "a       b"]


@pytest.mark.parametrize("text", [HOSTILE, "\\[red]", "[/]", "\\", "[link=x]", "a[0]"])
def test_markup_is_escaped_and_nothing_else(text: str) -> None:
    from rich.text import Text

    assert Text.from_markup(f"{escape_markup(text)} [b]x[/b]", emoji=False).plain == f"{text} x"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "? -1.0 +- 2 ?"), ("latin-1", "? -1.0 ± 2 ?"), ("utf-8", "Δ −1.0 ± 2 中")]
)
def test_output_degrades_to_what_the_terminal_can_print(encoding: str, shown: str) -> None:
    program = "from results.text import *; degrade_output(); PlainConsole().print('Δ −1.0 ± 2 中')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.decode(encoding) == f"{shown}\n"

"""Does text reach every output as it was written, or escaped?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text

from results.latex import MACRO, SYMBOLS, T1, escape_latex, latex_label, unknown_to_pdflatex
from results.printing import csv, file_stem
from results.tables import escape_markdown, escape_markup, plain_markdown
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
    assert Text.from_markup(f"{escape_markup(text)} [b]x[/b]", emoji=False).plain == f"{text} x"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "? -1.0 +- 2 ?"), ("latin-1", "? -1.0 ± 2 ?"), ("utf-8", "Δ −1.0 ± 2 中")]
)
def test_output_degrades_to_what_the_terminal_can_print(encoding: str, shown: str) -> None:
    program = "from results.text import *; degrade_output(); PlainConsole().print('Δ −1.0 ± 2 中')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.decode(encoding) == f"{shown}\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b `c` *d* <e> $f$", r"a\|b \`c\` \*d\* \<e> \$f\$"),
        ("_ref of_all [x](y) [z]: 1", r"\_ref of_all [x\](y) [z\]: 1"),
        ("two\nlines\u2028\x1b", r"two\\nlines\\u2028\\x1b"),
        ("# no heading", r"\# no heading"),
        ("- no item", r"\- no item"),
        ("1. no item", r"1\. no item"),
        ("---", r"\---"),
        ("-1.5 and 1.5", "-1.5 and 1.5"),
        ("tail\\", r"tail\\"),
    ],
)
def test_markdown_is_escaped(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_the_heads_of_a_markdown_table_are_escaped() -> None:
    assert plain_markdown(pd.DataFrame({"a|b": ["c|d"]})).splitlines() == ["| a\\|b |", "| :--- |", "| c\\|d |"]


@pytest.mark.parametrize(
    ("text", "escaped", "unknown"),
    [
        (
            "LDN’s “width” – 5 %",
            r"LDN\textquoteright{}s \textquotedblleft{}width\textquotedblright{} \textendash{} 5 \%",
            "",
        ),
        ("Schrödinger, Žižek, Łódź", r"Schr\"{o}dinger, \v{Z}i\v{z}ek, \L{}\'{o}d\'{z}", ""),
        ("e\u0301 ï", r"\'{e} \"{\i}", ""),
        ("α Ω Α ά", r"$\alpha$ $\Omega$ $\mathrm{A}$ $\acute{\alpha}$", ""),
        ("a--b ''", "a-{}-b '{}'", ""),
        ("[a]", "{}[a]", ""),
        ("đ", r"\LDNchar{273}{đ}{{\fontencoding{T1}\selectfont\dj}}", ""),
        ("中 Ж", r"\LDNchar{20013}{中}{[U+4E2D]} \LDNchar{1046}{Ж}{[U+0416]}", "Ж中"),
        ("a\nb", r"a\textbackslash{}nb", ""),
    ],
)
def test_latex_prints_every_character_or_a_code_for_it(text: str, escaped: str, unknown: str) -> None:
    assert escape_latex(text) == escaped
    assert unknown_to_pdflatex(text) == list(unknown)


def test_a_latex_label_has_no_command_in_it() -> None:
    assert latex_label("tab:a}\\input{b}%_c") == "tab:a--input-b--_c"


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex", "lualatex"])
def test_every_engine_of_latex_prints_it(engine: str, tmp_path: Path) -> None:
    if not shutil.which(engine):
        pytest.skip(f"{engine} is not installed")
    if engine == "lualatex" and not shutil.which("luaotfload-tool"):
        pytest.skip("luaotfload is not installed")
    letters = "".join(map(chr, [*range(32, 127), *range(0xA1, 0x180), *range(0x391, 0x3A2), *range(0x3A3, 0x3CA)]))
    text = escape_latex(f"{letters}{''.join(SYMBOLS)}{''.join(T1)} 中文 Ж")
    page = f"\\documentclass{{article}}\\begin{{document}}\n{MACRO}\n\\section{{{text}}}\n\\textbf{{{text}}}\n"
    (tmp_path / "page.tex").write_text(page + "\\end{document}\n", encoding="utf-8")
    draft = ["-no-pdf"] if engine == "xelatex" else ["-draftmode"]
    command = [engine, *draft, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")


def test_text_of_a_csv_file_is_no_formula_and_numbers_stay_numbers() -> None:
    formulas = ["=1+1", "+cmd", "-a", "@x", "\t=1", "plain", "-1.5", "+2e3", None]
    frame = pd.DataFrame({"=head": formulas, "n": range(-4, 5)})
    frame["arm"] = pd.Categorical(formulas)
    lines = csv(frame).decode().splitlines()
    assert lines[:4] == ["'=head,n,arm", "'=1+1,-4,'=1+1", "'+cmd,-3,'+cmd", "'-a,-2,'-a"]
    assert lines[7:] == ["-1.5,2,-1.5", "+2e3,3,+2e3", ",4,"]


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/b", "a\nb", "x" * 300])
def test_a_file_stem_is_never_a_path(name: str) -> None:
    assert Path(file_stem(name)).name == file_stem(name) and len(file_stem(name)) <= 100

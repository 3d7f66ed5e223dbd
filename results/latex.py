"""Text as LaTeX source that prints the same under pdfLaTeX, XeLaTeX and LuaLaTeX."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from results.text import printable

FIGURE_SPACE = "\u2007"  # as wide as a digit
# Prints the second argument where the font of a Unicode engine has that character, else the third. The first is its
# code, decimal because some languages of babel redefine the quotation mark of hexadecimal numbers.
MACRO = r"\DeclareRobustCommand\LDNchar[3]{\ifdefined\Umathchar\iffontchar\font#1 #2\else#3\fi\else#3\fi}"
SYMBOLS = {
    **{symbol: rf"\{symbol}" for symbol in "_%&#${}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': r"\textquotedblright{}",
    "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$",
    "√": r"$\surd$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "≠": r"$\neq$", "∼": r"$\sim$",
    "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↔": r"$\leftrightarrow$", "⇒": r"$\Rightarrow$", "∞": r"$\infty$",
    "∈": r"$\in$", "∑": r"$\sum$", "∏": r"$\prod$", "∂": r"$\partial$", "∇": r"$\nabla$", "ℓ": r"$\ell$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "•": r"$\bullet$", "°": r"$^\circ$", "¬": r"$\neg$", "µ": r"$\mu$",
    "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\ldots{}", "‘": r"\textquoteleft{}", "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "¡": r"\textexclamdown{}", "¿": r"\textquestiondown{}",
    "½": r"$\frac12$", "¼": r"$\frac14$", "¾": r"$\frac34$", "®": r"\textregistered{}", "™": r"\texttrademark{}",
    "§": r"\S{}", "¶": r"\P{}", "©": r"\copyright{}", "£": r"\pounds{}", "\xa0": "~", FIGURE_SPACE: r"\phantom{0}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "å": r"\aa{}", "Å": r"\AA{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}",
    **{digit: f"$^{unicodedata.digit(digit)}$" for digit in "⁰¹²³⁴⁵⁶⁷⁸⁹"},
    **{digit: f"$_{unicodedata.digit(digit)}$" for digit in "₀₁₂₃₄₅₆₇₈₉"},
}  # fmt: skip
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
}  # fmt: skip
BELOW = "dcb"  # these accents leave the dot of an i
MATH_ACCENTS = {"\u0301": "acute", "\u0308": "ddot"}
# not in OT1, the encoding of pdfLaTeX's default fonts
T1 = {
    "Đ": r"\DJ", "đ": r"\dj", "Ð": r"\DH", "ð": r"\dh", "Þ": r"\TH", "þ": r"\th", "Ŋ": r"\NG", "ŋ": r"\ng",
    "«": r"\guillemotleft", "»": r"\guillemotright", "‹": r"\guilsinglleft", "›": r"\guilsinglright",
    "„": r"\quotedblbase", "‚": r"\quotesinglbase", **{letter: rf"\k {unicodedata.normalize('NFD', letter)[0]}"
                                                       for letter in "ĄąĘęĮįŲų"},
}  # fmt: skip
GREEK_AS_LATIN = {"omicron": "o"} | {
    name: rf"\mathrm{{{letter}}}"
    for name, letter in zip(
        ("Alpha", "Beta", "Epsilon", "Zeta", "Eta", "Iota", "Kappa", "Mu", "Nu", "Omicron", "Rho", "Tau", "Chi"),
        "ABEZHIKMNOPTX",
        strict=True,
    )
}


def escape_latex(text: str) -> str:
    """LaTeX source that prints `text` on one line, under pdfLaTeX with codes for `unknown_to_pdflatex`.

    Where the result contains `\\LDNchar`, the document needs MACRO before it.
    """
    escaped = "".join(map(_escaped, _normalised(text)))
    escaped = re.sub(r"(?<=[-'`,!?])(?=[-'`,])", "{}", escaped)  # no ligatures: two hyphens stay two hyphens
    # after the end of a row, these two would be read as its arguments
    return "{}" * escaped.startswith(("[", "*")) + escaped


def unknown_to_pdflatex(text: str) -> list[str]:
    """The characters of `text` that pdfLaTeX prints as a code, such as [U+4E2D]."""
    return sorted({character for character in _normalised(text) if _code(character) in _escaped(character)})


def latex_label(name: str) -> str:
    """A name for `\\label`, without characters that have a meaning in LaTeX."""
    return re.sub(r"[^A-Za-z0-9:._+-]", "-", name)


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFC", printable(text))


@cache
def _escaped(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    if character.isascii():
        return character
    base, *marks = list(unicodedata.normalize("NFD", character))
    greek = _greek(base)
    if greek and not marks:
        return f"${greek}$"
    if greek and len(marks) == 1 and marks[0] in MATH_ACCENTS:
        return rf"$\{MATH_ACCENTS[marks[0]]}{{{greek}}}$"
    if base.isascii() and len(marks) == 1 and marks[0] in ACCENTS:
        accent = ACCENTS[marks[0]]
        dotless = "\\" if base in "ij" and accent not in BELOW else ""
        return rf"\{accent}{{{dotless}{base}}}"
    substitute = rf"{{\fontencoding{{T1}}\selectfont{T1[character]}}}" if character in T1 else _code(character)
    return rf"\LDNchar{{{ord(character)}}}{{{character}}}{{{substitute}}}"


def _greek(letter: str) -> str:
    """The letter in LaTeX's mathematics; "" if it is not Greek."""
    case, _, name = unicodedata.name(letter, "").removeprefix("GREEK ").partition(" LETTER ")
    if not unicodedata.name(letter, "").startswith("GREEK ") or " " in name or case not in ("SMALL", "CAPITAL"):
        return r"\varsigma" if letter == "ς" else ""
    name = name.replace("LAMDA", "LAMBDA")
    name = name.lower() if case == "SMALL" else name.capitalize()
    return GREEK_AS_LATIN.get(name, rf"\{name}")


def _code(character: str) -> str:
    return f"[U+{ord(character):04X}]"

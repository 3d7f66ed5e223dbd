"""How is a summary printed: as Markdown, as LaTeX, in a terminal?

All three print the same cells. Numbers of a column have the same decimals and are padded in front with
figure spaces, which are as wide as a digit: so their points stand below each other in any left-aligned
column, whatever follows them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.markup import escape as escape_markup
from rich.table import Table

from results.summary import UNITS, cost_unit, scale, title

Write = Callable[[str], str]
FIGURE_SPACE = "\u2007"
DASH = "–"
MILLIONS_FROM = 10_000_000  # below, parameters are printed exactly
RIGHT = ("n", "Params", "Params (M)", *UNITS)

LATEX = {
    **{symbol: rf"\{symbol}" for symbol in "_%&#${}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", '"': "''",
    "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "√": r"$\surd$",
    "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$", "∞": r"$\infty$", "–": "--", "—": "---", "…": r"\ldots{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "η": r"$\eta$",
    "θ": r"$\theta$", "κ": r"$\kappa$", "λ": r"$\lambda$", "μ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "φ": r"$\phi$", "ω": r"$\omega$", "Δ": r"$\Delta$", FIGURE_SPACE: r"\phantom{0}",
    **dict.fromkeys("«»ÐÞðþ", "?"),  # not in LaTeX's default encoding
}  # fmt: skip


def markdown(summary: pd.DataFrame, metric: str) -> str:
    """A GitHub table; its column Note, why runs are missing, only where some are."""
    printed = cells(summary, metric, escape_markdown, lambda text: f"**{text}**")
    if not summary["missing"].any():
        printed = printed.drop(columns="Note")
    return _github(printed, RIGHT)


def plain_markdown(table: pd.DataFrame) -> str:
    """A section's table as it stands: text escaped, numbers at the right with four digits, nothing for NaN."""
    right = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    printed = pd.DataFrame(
        {
            str(name): [
                "" if pd.isna(v) else f"{v:,.4g}" if isinstance(v, float) else escape_markdown(str(v)) for v in cells
            ]
            for name, cells in table.items()
        }
    )
    return _github(printed, tuple(map(str, right)))


def _github(printed: pd.DataFrame, right: Sequence[str]) -> str:
    columns = []
    for name in printed.columns:
        width = max(2, *map(len, [name, *printed[name]]))  # a rule has at least one dash beside its colon
        pad, rule = (str.rjust, "-" * (width - 1) + ":") if name in right else (str.ljust, ":" + "-" * (width - 1))
        columns.append([pad(text, width) for text in (name, rule, *printed[name])])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def latex(summary: pd.DataFrame, metric: str, caption: str, label: str, remarks: list[str]) -> str:
    """A float that needs booktabs only. The notes stand under the table, where they may be long."""
    printed = cells(summary, metric, escape_latex, _bold_latex).drop(columns="Note")
    printed["Arm"] = printed["Arm"].mask(_starts_panel(summary), r"\addlinespace " + printed["Arm"])
    printed.columns = [escape_latex(name) for name in printed.columns]
    sides = "".join("r" if name in RIGHT else "l" for name in printed.columns)
    tabular = printed.style.hide(axis="index").to_latex(hrules=True, column_format=f"@{{}}{sides}@{{}}")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}[htbp]",
            "\\centering",
            f"\\caption{{{escape_latex(caption)}}}",
            f"\\label{{{label}}}",
            "\\medskip",
            "\\small",
            "\\setlength{\\tabcolsep}{4pt}",
            tabular.rstrip(),
            *(f"\\par\\smallskip{{\\footnotesize\\raggedright {escape_latex(line)}\\par}}" for line in remarks),
            "\\end{table}\n",
        ]
    )


def terminal(summary: pd.DataFrame, metric: str, caption: str) -> Table:
    """Narrow enough for 80 columns; so it leaves the Note to the lines that are printed under it."""
    printed = cells(summary, metric, escape_markup, lambda text: f"[bold]{text}[/bold]").drop(columns="Note")
    table = Table(title=escape_markup(caption), title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for name in printed.columns:
        table.add_column(escape_markup(name), justify="right" if name in RIGHT else "left", no_wrap=name != "Arm")
    for row, starts in zip(printed.itertuples(index=False), _starts_panel(summary), strict=True):
        if starts:
            table.add_row()
        table.add_row(*row)
    return table


def cells(summary: pd.DataFrame, metric: str, escape: Write, bold: Write) -> pd.DataFrame:
    """The table's text: every piece through `escape`, the best means through `bold`."""
    scaled = summary[["mean", "sd", "difference", "low", "high"]] * scale(metric)
    form = f"z.{_decimals(metric, scaled['mean'], scaled['sd'])}f"
    numbers = {name: _padded(_numbers(scaled[name], form)) for name in ("mean", "sd")}
    numbers["difference"] = _padded(_numbers(scaled["difference"], f"+{form}"))
    numbers |= {name: _numbers(scaled[name], f"+{form}") for name in ("low", "high")}
    rows = summary.assign(**numbers).to_dict("records")
    best = {(row["reference"], row["mean"]) for row in rows if row["best"]}
    # What is printed as the best is bold, even if it is a little worse.
    styles = [bold if (row["reference"], row["mean"]) in best else str for row in rows]
    unit = cost_unit(summary["gmac"])
    params, million, digits = "Params", 1.0, ",.0f"
    if summary["params"].max() >= MILLIONS_FROM:
        params, million, digits = "Params (M)", 1e6, ".2f"
    columns = {
        "Arm": [escape(f"{row['arm']} (reference)" if row["is_reference"] else row["arm"]) for row in rows],
        title(metric): [_result(row, escape, style) for row, style in zip(rows, styles, strict=True)],
        "n": [f"{row['n']}/{row['planned']}" for row in rows],
        "Δ [95% interval]": [escape(_difference(row)) for row in rows],
        params: [escape(text or DASH) for text in _numbers(summary["params"] / million, digits)],
        unit: [escape(text or DASH) for text in _numbers(summary["gmac"] * UNITS[unit], ",.2f")],
        "Note": [escape(row["missing"]) for row in rows],
    }
    return pd.DataFrame(columns)


def escape_markdown(text: str) -> str:
    """An underscore inside a word is left: it is plain there, and the table is read as source as well."""
    return re.sub(r"[\\`*|<~$]|&(?=#?\w+;)|\](?=[(\[])|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", text)


def escape_latex(text: str) -> str:
    """What LaTeX prints as this text; "?" for a symbol that pdflatex may not know."""
    known = (LATEX.get(symbol, symbol if symbol.isprintable() and ord(symbol) < 256 else "?") for symbol in text)
    # After the end of a row, these two would be read as its arguments.
    return "{}" * text.startswith(("[", "*")) + "".join(known)


def _starts_panel(summary: pd.DataFrame) -> pd.Series:
    """Where another reference begins, with the arms that are compared with it."""
    return summary["reference"] != summary["reference"].shift(fill_value=summary["reference"].iloc[0])


def _result(row: dict[Hashable, Any], escape: Write, bold: Write) -> str:
    """As in "97.1 ± 0.4"; the padding in front stays out of the bold."""
    number = row["mean"].lstrip(FIGURE_SPACE)
    padding = row["mean"].removesuffix(number)
    spread = f" ± {row['sd']}" if row["sd"] else ""
    return escape(padding) + bold(escape(number)) + escape(spread) if number else escape(DASH)


def _difference(row: dict[Hashable, Any]) -> str:
    """As in "−1.2 [−2.0, −0.4]"; over how many pairs, where the arm has more results than that."""
    if not row["difference"]:
        return "" if row["is_reference"] else DASH
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    fewer = f" (over {row['pairs']} of {row['n']})" if row["pairs"] < row["n"] else ""
    return row["difference"] + interval + fewer


def _bold_latex(text: str) -> str:
    """Bold digits are wider; hung to the left of a normal number's right end, they move nothing else."""
    return rf"\phantom{{{text}}}\llap{{\textbf{{{text}}}}}"


def _decimals(metric: str, mean: pd.Series, sd: pd.Series) -> int:
    """One for per cents; else as many as show two digits of a typical spread."""
    spread = sd.median() if sd.any() else mean.abs().median() / 100
    if scale(metric) == 100 or not 0 < spread < math.inf:
        return 1
    return min(max(0, 1 - math.floor(math.log10(spread))), 8)


def _numbers(column: pd.Series, form: str) -> list[str]:
    """Formatted, with a true minus sign; "" for NaN."""
    return ["" if math.isnan(value) else format(value, form).replace("-", "−") for value in column]


def _padded(texts: list[str]) -> list[str]:
    width = max(map(len, texts))
    return [text and text.rjust(width, FIGURE_SPACE) for text in texts]

"""How is a summary printed: as Markdown, as LaTeX, in a terminal?

All three print the same cells. Numbers of a column have the same decimals and are padded in front with
figure spaces, which are as wide as a digit: so their points stand below each other in any left-aligned
column, whatever follows them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from results.latex import FIGURE_SPACE, MACRO, escape_latex, latex_label
from results.notes import at_floor, can_show, number
from results.summary import UNITS, cost_unit, rounded, scale, title
from results.text import one_line, printable, styled

Write = Callable[[str], str]
DASH = "–"
MILLIONS_FROM = 10_000_000  # below, parameters are printed exactly
COSTS = ("Params", "Params (M)", *UNITS, "ex/s", "MiB")
RIGHT = ("n", "p (Holm)", *COSTS)


def markdown(summary: pd.DataFrame, metric: str, apart: pd.DataFrame | None = None) -> str:
    """A GitHub table; its column Note, why runs are missing, only where some are."""
    rows = arranged(summary, apart)
    printed = cells(rows, metric, escape_markdown, "**{}**".format, "*{}*".format)
    if not printed["Note"].any():
        printed = printed.drop(columns="Note")
    lines = _github(printed, RIGHT).splitlines()
    empty = re.sub(r"[^|]", " ", lines[0])
    gaps = [[empty] * starts for starts in rows["starts"] & (rows["kind"] != "arm")]
    return "\n".join([*lines[:2], *(text for gap, line in zip(gaps, lines[2:], strict=True) for text in (*gap, line))])


def plain_markdown(table: pd.DataFrame) -> str:
    """A section's table as it stands: text escaped, numbers at the right with four digits, nothing for NaN."""
    right = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    printed = pd.DataFrame(
        {
            escape_markdown(str(name)): [
                "" if pd.isna(v) else rounded(v, 4) if isinstance(v, float) else escape_markdown(str(v)) for v in cells
            ]
            for name, cells in table.items()
        }
    )
    return _github(printed, [escape_markdown(str(name)) for name in right])


def _github(printed: pd.DataFrame, right: Sequence[str]) -> str:
    columns = []
    for name in printed.columns:
        width = max(2, *map(len, [name, *printed[name]]))  # a rule has at least one dash beside its colon
        pad, rule = (str.rjust, "-" * (width - 1) + ":") if name in right else (str.ljust, ":" + "-" * (width - 1))
        columns.append([pad(text, width) for text in (name, rule, *printed[name])])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def latex(
    summary: pd.DataFrame,
    metric: str,
    caption: str,
    label: str,
    remarks: list[str],
    apart: pd.DataFrame | None = None,
) -> str:
    """A float that needs booktabs and graphicx. The notes stand under the table, where they may be long."""
    rows = arranged(summary, apart)
    printed = cells(rows, metric, *LATEX_STYLE).drop(columns="Note")
    return _float(_tabular({"": printed}, list(rows["starts"])), caption, label, remarks)


def latex_by_panel(
    panels: Mapping[str, Mapping[str, pd.DataFrame]], caption: str, label: str, remarks: list[str]
) -> str:
    """Panels side by side, under a head of two levels: of each its metrics and its cost. Rows of one label are one row.

    `panels` maps a metric to what `by_panel` makes of its summary.
    """
    metrics = list(panels)
    first = panels[metrics[0]]
    seen = dict.fromkeys(key for rows in first.values() for key in _keys(rows))
    order = sorted(seen, key=lambda key: ("arm", "floor", "published").index(key[0]))  # stable: else as they came
    groups = {"": pd.DataFrame({"Arm": [_row_label(key, *LATEX_STYLE) for key in order]})}
    for head in first:
        columns = {}
        for metric in metrics:
            rows = panels[metric][head]
            printed = cells(rows, metric, *LATEX_STYLE).set_axis(pd.Index(_keys(rows), tupleize_cols=False))
            printed = printed.reindex(pd.Index(order, tupleize_cols=False), fill_value=escape_latex(DASH))
            columns[title(metric)] = printed[title(metric)]
            columns |= {name: printed[name] for name in printed.columns if name in (*UNITS, "ex/s")}
        groups[head] = pd.DataFrame(columns)[[*map(title, metrics), *(c for c in columns if c in COSTS)]]
        groups[head] = groups[head].reset_index(drop=True)
    starts = [i > 0 and key[0] != order[i - 1][0] for i, key in enumerate(order)]
    return _float(_tabular(groups, starts), caption, label, remarks)


def by_panel(summary: pd.DataFrame, reference: str, apart: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """The rows of each panel under its name, arms without the panel's name in front; {} if there are no panels."""
    panels = {}
    for name, rows in arranged(summary, apart).groupby("reference", sort=False):
        prefix = str(name).removesuffix(reference)
        rows = rows.assign(arm=rows["arm"].str.removeprefix(prefix), reference=reference)
        panels[prefix.removesuffix(": ")] = rows.reset_index(drop=True)
    return panels if len(panels) > 1 else {}


def terminal(summary: pd.DataFrame, metric: str, caption: str, apart: pd.DataFrame | None = None) -> Table:
    """Narrow enough for 80 columns; so it leaves the Note to the lines that are printed under it."""
    rows = arranged(summary, apart)
    printed = cells(rows, metric, escape_markup, "[bold]{}[/bold]".format, "[italic]{}[/italic]".format)
    printed = printed.drop(columns="Note")
    table = Table(title=styled(one_line(caption), "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for name in printed.columns:
        table.add_column(styled(name), justify="right" if name in RIGHT else "left", no_wrap=name != "Arm")
    for row, starts in zip(printed.itertuples(index=False), rows["starts"], strict=True):
        if starts:
            table.add_row()
        table.add_row(*(Text.from_markup(cell, emoji=False) for cell in row))
    return table


def arranged(summary: pd.DataFrame, apart: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows as they are printed: each reference's arms, then what stands apart from them.

    Adds `kind` ("arm", "floor", "published"), `protocol`, and `starts`: whether the row has a gap before it.
    """
    rows = summary.astype({"arm": str}).assign(kind="arm", protocol="", panel=range(len(summary)))
    rows["panel"] = rows.groupby("reference")["panel"].transform("min")
    if apart is not None and len(apart):
        place = rows.drop_duplicates("reference").set_index("reference")["panel"]
        others = apart.rename(columns={"label": "arm"}).assign(panel=apart["reference"].map(place), missing="")
        others = others.assign(**dict.fromkeys(("is_reference", "best", "tied"), False), n=0, planned=0, pairs=0)
        rows = pd.concat(
            [rows, others.assign(collapsed=0, uncounted="").reindex(columns=rows.columns)], ignore_index=True
        )
        rows = rows.sort_values("panel", kind="stable", ignore_index=True)
    block = rows["panel"].astype(str) + rows["kind"]
    return rows.assign(starts=block != block.shift(fill_value=block.iloc[0]))


def cells(rows: pd.DataFrame, metric: str, escape: Write, bold: Write, italic: Write = str) -> pd.DataFrame:
    """The table's text, of a summary or its rows as `arranged`: every piece through `escape`, the best and those tied
    with it through `bold`, what others published through `italic`.

    Throughput and memory are columns where they were measured, p where the seeds can show anything.
    """
    rows = rows if "kind" in rows else arranged(rows)
    # a mean of 97.95 is one, however its sum was rounded: else tables and figures round it to different tenths
    scaled = (rows[["mean", "sd", "difference", "low", "high"]] * scale(metric)).round(10)
    ours = rows["kind"] == "arm"
    form = f"z.{_decimals(metric, scaled['mean'][ours], scaled['sd'][ours])}f"
    numbers = {name: _padded(_numbers(scaled[name], form)) for name in ("mean", "sd")}
    numbers["difference"] = _padded(_numbers(scaled["difference"], f"+{form}"))
    numbers |= {name: _numbers(scaled[name], f"+{form}") for name in ("low", "high")}
    records = rows.assign(**numbers).to_dict("records")
    best = {(row["reference"], row["mean"]) for row in records if row["best"]}
    # What is printed as the best is bold, even if it is a little worse.
    first = [row["tied"] or (row["kind"] == "arm" and (row["reference"], row["mean"]) in best) for row in records]
    styles = [
        bold if is_first else italic if row["kind"] == "published" else str
        for is_first, row in zip(first, records, strict=True)
    ]
    columns = {
        "Arm": [_row_label(key, escape, bold, italic) for key in _keys(rows)],
        title(metric): [_result(row, escape, style) for row, style in zip(records, styles, strict=True)],
        "n": [f"{row['n']}/{row['planned']}" if row["kind"] == "arm" else "" for row in records],
    }
    if (rows["pairs"] > 0).any():
        columns["Δ [95% interval]"] = [escape(_difference(row)) if row["kind"] == "arm" else "" for row in records]
    if can_show(rows[ours]):
        columns["p (Holm)"] = [escape(number(p)) for p in rows["p_holm"]]
    for name, texts in _costs(rows).items():
        columns[name] = [escape(text) for text in texts]
    columns["Note"] = [escape("; ".join(filter(None, (row["missing"], at_floor(row))))) for row in records]
    return pd.DataFrame(columns)


def _costs(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Parameters and multiply-adds, and what was measured of examples per second and memory; a dash where unknown."""
    unit = cost_unit(rows["gmac"])
    params = ("Params", 1.0, ",.0f") if not rows["params"].max() >= MILLIONS_FROM else ("Params (M)", 1e-6, ".2f")
    forms = {"params": params, "gmac": (unit, UNITS[unit], ",.2f")}
    forms |= {"examples_per_second": ("ex/s", 1.0, ",.0f"), "peak_bytes": ("MiB", 2.0**-20, ",.0f")}
    columns = {}
    for column, (head, factor, form) in forms.items():
        if column in ("params", "gmac") or (column in rows and rows[column].notna().any()):
            texts = _numbers(rows[column] * factor, form)
            if column == "gmac":  # a lower bound, where an operation has no count
                texts = [f"≥ {t}" if t and names else t for t, names in zip(texts, rows["uncounted"], strict=True)]
            columns[head] = [
                text or (DASH if kind == "arm" else "") for text, kind in zip(texts, rows["kind"], strict=True)
            ]
    return columns


def escape_markup(text: str) -> str:
    """For rich, whose own function doubles a backslash at the end."""
    return re.sub(r"(\\*)(\[[a-z#/@][^[]*?\])", r"\1\1\\\2", printable(text))


def escape_markdown(text: str) -> str:
    """An underscore inside a word is left: it is plain there, and the table is read as source as well."""
    escaped = re.sub(
        r"[\\`*|<~$]|&(?=#?\w+;)|\](?=[(\[:])|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", printable(text)
    )
    # at the start of a line: a heading, a list, a quotation or a rule
    return re.sub(r"^(\s*\d*)(#(?=#{0,5}(\s|$))|[-+.)](?=\s|$)|>|-(?=-+$)|=(?==*$))", r"\1\\\2", escaped)


def _float(tabular: str, caption: str, label: str, remarks: list[str]) -> str:
    lines = [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\label{{{latex_label(label)}}}",
        "\\medskip",
        "\\small",
        "\\setlength{\\tabcolsep}{4pt}",
        f"\\sbox0{{{tabular}}}%",
        # one that is wider than the text is made smaller, never cut by the page's edge
        "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi",
        *(f"\\par\\smallskip{{\\footnotesize\\raggedright {escape_latex(line)}\\par}}" for line in remarks),
        "\\end{table}\n",
    ]
    macro = [MACRO] if any("\\LDNchar" in line for line in lines) else []
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *macro, *lines])


def _tabular(groups: dict[str, pd.DataFrame], starts: list[bool]) -> str:
    """Columns of LaTeX text; groups of columns have a head over them and a rule under it, the group "" has none."""
    names = [(head, str(name)) for head, printed in groups.items() for name in printed.columns]
    sides = "".join("r" if name in RIGHT else "l" for _, name in names)
    lines = [f"\\begin{{tabular}}{{@{{}}{sides}@{{}}}}", "\\toprule"]
    if len(groups) > 1:
        heads, rules, column = [], [], 1
        for head, printed in groups.items():
            last = column + printed.shape[1] - 1
            heads.append(f"\\multicolumn{{{printed.shape[1]}}}{{c}}{{{escape_latex(head)}}}")
            rules.append(f"\\cmidrule(lr){{{column}-{last}}}" if head else "")
            column = last + 1
        lines += [" & ".join(heads) + r" \\", " ".join(filter(None, rules))]
    lines += [" & ".join(escape_latex(name) for _, name in names) + r" \\", "\\midrule"]
    for row, gap in zip(pd.concat(groups.values(), axis=1).itertuples(index=False), starts, strict=True):
        lines.append(("\\addlinespace " if gap else "") + " & ".join(row) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _keys(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What a row is, so that rows of several panels can be told to be the same: kind, label, protocol."""
    labels = [f"{arm} (reference)" if ref else arm for arm, ref in zip(rows["arm"], rows["is_reference"], strict=True)]
    return list(zip(rows["kind"], labels, rows["protocol"].fillna(""), strict=True))


def _row_label(key: tuple[str, str, str], escape: Write, bold: Write, italic: Write) -> str:
    kind, label, protocol = key
    return italic(escape(f"{label}, {protocol}")) if kind == "published" else escape(label)


def _result(row: dict[Hashable, Any], escape: Write, style: Write) -> str:
    """As in "97.1 ± 0.4"; the padding in front, and the spread, stay out of the style."""
    number = row["mean"].lstrip(FIGURE_SPACE)
    padding = row["mean"].removesuffix(number)
    spread = (f" ± {row['sd']}" if row["sd"] else "") + "†" * bool(row["collapsed"])
    return escape(padding) + style(escape(number)) + escape(spread) if number else escape(DASH)


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


LATEX_STYLE = (escape_latex, _bold_latex, r"\textit{{{}}}".format)


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

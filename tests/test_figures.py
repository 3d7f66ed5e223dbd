"""Do the figures show what there is, and say what there is not?"""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from results import figures
from results.figures import diffusion, style, tuning
from results.summary import summarise

MANY = [f"arm {i} of them" for i in range(20)]


def gathered(names: list[str], seeds: int, cost: bool = True, done: bool = True, reference: str = "") -> pd.DataFrame:
    """Accuracy 0.9, less 0.01 an arm, plus 0.001 a seed; 1 MMAC, and 2 more an arm."""
    rows = [
        {"arm": name, "reference": reference or names[0], "seed": seed, "run_id": f"{i}-{seed}"}
        | {"status": "done" if done else "missing", "reason": ""}
        | ({"test.accuracy": 0.9 - 0.01 * i + 0.001 * seed} if done else {})
        | ({"cost.params": 1000, "cost.gmac": 0.001 * (1 + 2 * i)} if cost and done else {})
        for i, name in enumerate(names)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows).assign(arm=lambda frame: pd.Categorical(frame["arm"], names, ordered=True))


def summarised(frame: pd.DataFrame) -> pd.DataFrame:
    return summarise(frame, "test.accuracy", "max")


def evaluated(frame: pd.DataFrame) -> figures.Curves:
    curve = pd.DataFrame({"step": [0, 300, 600], "valid_loss": [2.3, 1.0, 0.5], "valid_accuracy": [0.1, 0.6, 0.8]})
    return figures.aligned(frame[["arm", "reference", "seed", "run_id"]].merge(curve, how="cross"))


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def visible(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    """Ends of the dashed lines."""
    drawn = [part for part in axes.collections if isinstance(part, LineCollection) and part.get_zorder() == 0]
    return [[tuple(end) for end in line] for part in drawn for line in part.get_segments() if np.isfinite(line).all()]


@pytest.mark.parametrize(
    ("names", "seeds", "cost"),
    [(["one"], 1, True), (["one"], 3, False), (["a", "b", "c"], 1, True), (MANY, 1, False), (MANY, 3, True)],
)
def test_every_figure_is_drawn_for_one_or_many_arms_and_leaves_no_trace(
    names: list[str], seeds: int, cost: bool
) -> None:
    before = dict(matplotlib.rcParams)
    frame = gathered(names, seeds, cost)
    summary = summarised(frame)
    for figure in (
        figures.arms(frame, summary, "test.accuracy"),
        figures.accuracy_against_cost(summary, "test.accuracy"),
        figures.training_curves(evaluated(frame), summary, "test.accuracy"),
    ):
        assert figures.encode(figure, "png").startswith(b"\x89PNG")
        assert figure.get_figwidth() in (style.COLUMN, style.PAGE)
        sizes = [float(text.get_fontsize()) for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
        assert min(sizes) >= 7
    assert dict(matplotlib.rcParams) == before


def test_arms_stand_in_order_with_the_reference_as_a_line() -> None:
    frame = gathered(["a", "b", "c"], 3, reference="b")
    figure = figures.arms(frame, summarised(frame), "test.accuracy")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b (reference)", "c"]
    assert axes.yaxis_inverted()
    assert lines(axes) == [[pytest.approx((89.1, -0.5)), pytest.approx((89.1, 2.5))]]
    assert axes.get_xlabel() == "Test accuracy (%)"


def test_each_panel_of_a_study_has_a_reference_of_its_own() -> None:
    frame = gathered(["x: ldn", "x: off", "y: ldn", "y: off"], 2)
    frame["reference"] = frame["arm"].astype(str).str[:3] + "ldn"
    summary = summarised(frame)
    figure = figures.arms(frame, summary, "test.accuracy")
    assert [line[0][1] for line in lines(figure.axes[0])] == [-0.5, 1.5]
    assert set(texts(figure).split("\n")) >= {"x: ldn (reference)", "x: off", "y: ldn (reference)", "y: off"}
    points = figures.accuracy_against_cost(summary, "test.accuracy").axes[0].lines
    assert len({point.get_color() for point in points}) == 4


def test_outliers_give_the_others_a_closer_panel() -> None:
    frame = gathered([f"arm {i}" for i in range(9)], 3)
    frame.loc[frame["arm"] == "arm 8", "test.accuracy"] = [0.1, 0.11, 0.12]
    summary = summarised(frame)
    low, high = figures.arms(frame, summary, "test.accuracy").axes[1].get_xlim()
    assert 75 < low < 83
    assert 90 < high < 95
    points = figures.accuracy_against_cost(summary, "test.accuracy")
    assert [len(axes.containers) for axes in points.axes] == [9, 8]


def test_a_closer_panel_holds_whole_bars_and_points_to_what_lies_outside() -> None:
    frame = gathered([f"arm {i}" for i in range(9)], 3)
    frame.loc[frame["arm"] == "arm 8", "test.accuracy"] = [0.1, 0.11, 0.12]
    frame.loc[frame["arm"] == "arm 7", "test.accuracy"] = [0.74, 0.84, 0.84]  # its sd reaches beyond its seeds
    summary = summarised(frame)
    figure = figures.arms(frame, summary, "test.accuracy")
    closer = figure.axes[1]
    bars = 100 * (summary["mean"] - summary["sd"]).iloc[:8], 100 * (summary["mean"] + summary["sd"]).iloc[:8]
    assert closer.get_xlim()[0] < bars[0].min() and bars[1].max() < closer.get_xlim()[1]
    assert [list(line.get_xydata()[0]) for line in closer.lines if line.get_marker() == "<"] == [[0, 8]]
    assert "arrow: farther off" in texts(figure) and "bar: standard deviation over seeds" in texts(figure)


@pytest.mark.parametrize("names", [["a", "b"], [f"steps {i}, attention diffusion, lr 0.004" for i in range(8)]])
def test_a_legend_takes_nothing_from_its_panel(names: list[str]) -> None:
    frame = gathered([*names[:-1], f"{names[-1]}, and what no single column can hold"], 2)
    figure = figures.training_curves(evaluated(frame), summarised(frame), "test.accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    label = axes.yaxis.label.get_window_extent()
    assert figure.bbox.y0 <= label.y0 < label.y1 <= figure.bbox.y1
    assert axes.get_window_extent().height / figure.dpi > 1.5
    assert figure.legends[0].get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0
    assert figure.bbox.x0 <= figure.legends[0].get_window_extent().x0


def probed(depths: dict[str, int], tokens: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Layers as of `results.diffusion.gather_probes`, and fields; a grid of 4 tokens, else lines."""
    values = {"energy": 1.0, "spread": 0.5, "min": -2.0, "max": 2.0, "q01": -1.0, "q99": 1.0}
    layers = [
        {"arm": arm, "seed": seed, "depth": depth} | values
        for arm, last in depths.items()
        for seed in (0, 1)
        for depth in range(last + 1)
    ]
    fields = [
        {"arm": arm, "seed": 0, "state": state, "tokens": n, "line": n != 4, "offset": offset, "gradient": 1 / offset}
        for arm, n in tokens.items()
        for state in ("trained", "untrained")
        for offset in range(1, n)
    ]
    return pd.DataFrame(layers), pd.DataFrame(fields)


def test_a_field_has_its_reference_behind_only_where_there_is_one_of_as_many_tokens() -> None:
    summary, none = summarised(gathered(["a", "b", "vit"], 1)), pd.Series([], dtype=object)
    _, fields = probed({}, {"a": 9, "b": 9, "vit": 4})
    whole = diffusion.fields(fields, summary, none)
    assert "grey: a; dotted: 1 % of the largest; dashed: untrained" in texts(whole)
    assert [axes.get_title() for axes in whole.axes] == [
        "a (reference)\n(9\xa0tokens)",
        "b (9\xa0tokens)",
        "vit (4\xa0tokens,\xa0a\xa0grid)",
    ]
    assert [sum(line.get_color() == style.GREY for line in axes.lines) for axes in whole.axes] == [1, 2, 1]  # and 1 %
    alone = diffusion.fields(fields[fields["arm"] == "b"], summary[summary["arm"] == "b"], none)
    assert "grey" not in texts(alone) and alone.axes[0].get_title() == "b"


def test_an_arm_of_fewer_layers_ends_visibly() -> None:
    summary, none = summarised(gathered(["a", "b"], 1)), pd.Series([], dtype=object)
    layers, _ = probed({"a": 2, "b": 1}, {})
    bands = diffusion.ranges(layers, summary, none)
    assert [axes.get_title() for axes in bands.axes] == ["a (reference)", "b (1\xa0layer)"]
    assert "light: all values; dark: the middle 98 %; dotted: no more layers" in texts(bands).replace("\n", " ")
    ends = [
        line.get_xdata()[0]
        for line in diffusion.by_depth(layers, summary, none).axes[0].lines
        if line.get_marker() == "o"
    ]
    assert ends == [2, 1]


def test_pruned_trials_are_hollow_and_called_so() -> None:
    trials = pd.DataFrame(
        {
            "arm": pd.Categorical(["a"] * 3),
            "status": ["done", "done", "pruned"],
            "wins": [True, False, False],
            "value.optim.lr": [0.001, 0.002, 0.02],
            "valid.accuracy": [0.9, 0.8, 0.3],
        }
    )
    (axes,) = (figure := tuning.slices(trials, "valid.accuracy", "optim.lr")).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1, 1]
    assert [line.get_markerfacecolor() for line in axes.lines[1:]] == ["none", "none"]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["done", "pruned: its best until then", "the winner"]


def test_what_is_missing_is_said() -> None:
    names = ["a", "price $5", "c $x$"]
    frame = gathered(names, 2)
    frame.loc[frame["arm"] == "price $5", "status"] = "failed"
    frame.loc[frame["arm"] == "c $x$", "cost.gmac"] = np.nan
    summary = summarised(frame)
    assert texts(figures.arms(frame, summary, "test.accuracy")).count("no result") == 1
    points = figures.accuracy_against_cost(summary, "test.accuracy")
    assert "Not shown, without a result or a cost: price $5, c $x$" in texts(points)
    done = evaluated(frame[frame["status"] == "done"])
    assert "Not shown, without a curve: price $5" in texts(figures.training_curves(done, summary, "test.accuracy"))


def test_a_study_without_results_has_figures_that_say_so() -> None:
    frame = gathered(["a", "b"], 2, done=False)
    summary = summarised(frame)
    assert texts(figures.arms(frame, summary, "test.accuracy")).count("no result") == 2
    for figure in (
        figures.accuracy_against_cost(summary, "test.accuracy"),
        figures.training_curves(evaluated(frame.head(0)), summary, "test.accuracy"),
    ):
        assert not figure.axes
        assert ": a, b" in texts(figure)
        assert figures.encode(figure, "pdf").startswith(b"%PDF")


def test_costs_of_a_wide_range_are_on_a_log_axis_with_plain_numbers() -> None:
    narrow, wide = (
        figures.accuracy_against_cost(summarised(gathered(MANY[:arms], 2)), "test.accuracy") for arms in (2, 4)
    )
    wide.draw_without_rendering()
    (axes,) = wide.axes
    assert narrow.axes[0].get_xscale() == "linear"
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "MMAC per example")
    assert {"1", "2", "3", "5"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_many_curves_have_a_panel_each_with_the_reference_behind() -> None:
    few, many = (
        figures.training_curves(evaluated(frame), summarised(frame), "test.accuracy")
        for frame in (gathered(MANY[:8], 3), gathered(MANY, 3))
    )
    assert len(visible(few)) == 1
    assert len(visible(many)) == 19
    assert {len(axes.lines) for axes in visible(many)} == {2}
    assert np.asarray(visible(many)[0].lines[1].get_ydata())[-1] == pytest.approx(80)


def test_curves_of_unequal_steps_are_interpolated_over_their_shares() -> None:
    """Each seed evaluates at different steps, as with a budget in seconds."""
    frame = gathered(["a", "b"], 2)
    steps = {("a", 0): (10, 20, 40), ("a", 1): (30, 60), ("b", 0): (20, 40), ("b", 1): (20, 40)}
    rows = [
        {"arm": arm, "reference": "a", "seed": seed, "run_id": f"{arm}{seed}", "step": step}
        | {"valid_loss": 1.0, "valid_accuracy": step / at[-1]}
        for (arm, seed), at in steps.items()
        for step in at
    ]
    evaluations = pd.DataFrame(rows).assign(arm=lambda rows: rows["arm"].astype(frame["arm"].dtype))
    curves = figures.aligned(evaluations)
    assert curves.caption == (
        "Validation while training: mean and standard deviation (shade) of the seeds. Seeds took different numbers of "
        "steps: curves are interpolated linearly over the share of these."
    )
    axes = figures.training_curves(curves, summarised(frame), "test.accuracy").axes[0]
    assert axes.get_xlabel() == "Share of the run's steps"
    assert axes.lines[0].get_xydata().tolist() == [[x, pytest.approx(100 * x)] for x in (0.5, 0.75, 1)]
    alike = figures.aligned(evaluations[evaluations["arm"] == "b"])
    assert not alike.interpolated and alike.rows["x"].tolist() == [20, 40, 20, 40]


def test_one_seed_has_no_band_and_no_words_for_one() -> None:
    frame = gathered(["a", "b"], 1)
    figure = figures.training_curves(evaluated(frame), summarised(frame), "test.accuracy")
    assert not figure.axes[0].collections and "shade" not in texts(figure)
    assert evaluated(frame).caption == "Validation while training: one seed an arm."


def test_curves_of_several_panels_have_an_axis_each() -> None:
    frame = gathered(["x: ldn", "x: off", "y: ldn", "y: off"], 2)
    frame["reference"] = frame["arm"].astype(str).str[:3] + "ldn"
    figure = figures.training_curves(evaluated(frame), summarised(frame), "test.accuracy")
    assert [(axes.get_title(), len(axes.lines)) for axes in figure.axes] == [("x", 2), ("y", 2)]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "x: ldn (reference)", "x: off", "y: ldn (reference)", "y: off",
    }  # fmt: skip


@pytest.mark.parametrize("label", ["_ref", "$x$", "tail\\", "50% \\frac{1}{2}", "^_{", ":x:"])
def test_a_label_stands_in_figures_as_it_is_written(label: str) -> None:
    frame = gathered([label, "_b"], 2)
    summary = summarised(frame)
    for figure in (
        figures.accuracy_against_cost(summary, "test.accuracy"),
        figures.training_curves(evaluated(frame), summary, "test.accuracy"),
    ):
        assert figures.encode(figure, "pdf").startswith(b"%PDF")
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{label} (reference)", "_b"]
    ticks = figures.arms(frame, summary, "test.accuracy").axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == [f"{label} (reference)", "_b"]


@pytest.mark.filterwarnings("error:Glyph")
def test_a_character_without_a_glyph_is_an_escape() -> None:
    frame = gathered(["中", "é Δ Ж"], 2)
    summary = summarised(frame)
    points, strip = (
        figures.accuracy_against_cost(summary, "test.accuracy"),
        figures.arms(frame, summary, "test.accuracy"),
    )
    for figure in (points, strip):
        figures.encode(figure, "png")
    assert [text.get_text() for text in points.legends[0].get_texts()] == ["\\u4e2d (reference)", "é Δ Ж"]
    assert [tick.get_text() for tick in strip.axes[0].get_yticklabels()] == ["\\u4e2d (reference)", "é Δ Ж"]


def test_a_point_at_the_place_of_the_reference_is_seen() -> None:
    frame = gathered(["a", "b"], 2).assign(**{"test.accuracy": 0.5, "cost.gmac": 1.0})
    star, point = figures.accuracy_against_cost(summarised(frame), "test.accuracy").axes[0].lines[1::2]
    assert (star.get_marker(), star.get_markerfacecolor()) == ("*", "none")
    assert star.get_markersize() > point.get_markersize()


def test_a_pdf_keeps_its_text_and_is_the_same_each_time() -> None:
    frame = gathered(["a", "b"], 2)
    drawn = (figures.arms(frame, summarised(frame), "test.accuracy") for _ in range(2))
    first, second = (figures.encode(figure, "pdf") for figure in drawn)
    assert first == second
    assert b"/Type3" not in first
    assert b"/CIDFontType2" in first


def test_powers_on_an_axis_are_typeset_though_dollars_in_names_are_not() -> None:
    with matplotlib.rc_context(style.STYLE):
        axes = Figure().subplots()
        axes.plot([0, 1], [-300.0, 300.0], label="$a$")
        axes.set_yscale("symlog", linthresh=1.0)
        name = axes.legend().get_texts()[0]
    style.encode(axes.figure, "png")
    powers = [label for label in axes.get_yticklabels() if "10^" in label.get_text()]
    assert powers and all(label.get_parse_math() for label in powers)
    assert not name.get_parse_math()

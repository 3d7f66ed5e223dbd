"""How sure is each difference to the reference: over seeds, and over the examples that were tested?

Two uncertainties: other seeds would train other weights (t interval, sign-flip and signed-rank tests, paired over
seeds), and another test set would ask other examples (bootstrap and McNemar's test, over stored predictions, the
trained weights given). Three seeds say little of the first, and thousands of examples much of the second.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from results import statistics
from results.files import CorruptFile, verify
from results.notes import number
from results.printing import intervals, signed
from results.record import RunRecord, run_folder
from results.section import Gathered, Section
from results.summary import CONFIDENCE, holm_within, metric_of

MOST_RUNS = 1_000  # predictions are read of no more: half a millisecond each, and a table of more arms is not read
COLUMNS = ("example_low", "example_high", "example_p", "mcnemar_p")


def over_examples(
    runs: Path, frame: pd.DataFrame, metric: str, records: Mapping[str, RunRecord], unusable: list[str]
) -> pd.DataFrame:
    """For each arm, how its difference depends on the examples tested; COLUMNS, indexed by arm.

    Over the seeds that are done of both the arm and its reference, where each of these runs has stored predictions of
    the same examples; NaN elsewhere, and for all if the metric is not test accuracy, which alone predictions tell, or
    the frame has more than MOST_RUNS runs. `mcnemar_p` is two-sided, of all seeds together; NaN where examples share
    their sources, for the test takes each for independent. `unusable` is given a sentence for each file that
    contradicts its record, which is left out.
    """
    arms = frame["arm"].cat.categories
    table = pd.DataFrame(math.nan, pd.CategoricalIndex(arms, arms, ordered=True, name="arm"), list(COLUMNS))
    done = frame[frame["status"] == "done"]
    if metric != "test.accuracy" or len(frame) > MOST_RUNS:
        return table
    answers: dict[tuple[str, str], Answers | None] = {}
    for arm, seed, run_id in _cells(done, "arm", "seed", "run_id"):
        try:
            answers[arm, seed] = _answers(runs, run_id, records.get(run_id))
        except CorruptFile as error:
            answers[arm, seed] = None
            unusable.append(f"{arm}, seed {seed}: no interval over examples: {error}.")
    compared = frame.drop_duplicates("arm")
    for arm, reference in _cells(compared[compared["arm"].astype(str) != compared["reference"]], "arm", "reference"):
        seeds = [seed for one, seed in answers if one == arm and (reference, seed) in answers]
        pairs = [(answers[arm, seed], answers[reference, seed]) for seed in seeds]
        known = [(a, b) for a, b in pairs if a is not None and b is not None and np.array_equal(a.label, b.label)]
        if not pairs or len(known) < len(pairs):
            continue
        ours, theirs = np.stack([a.right for a, _ in known]), np.stack([b.right for _, b in known])
        source = known[0][0].source
        boot = statistics.bootstrap(ours, theirs, CONFIDENCE, source=source)
        of_all = math.nan if source is not None else statistics.mcnemar_over_seeds(ours, theirs)
        table.loc[arm] = [boot.low, boot.high, boot.p, of_all]
    return table


def section(gathered: Gathered) -> Section | None:
    """Every interval and test of each difference, side by side; None where no two arms have a seed in common."""
    summary = gathered.summary
    compared = summary[summary["pairs"] > 0]
    if compared.empty:
        return None
    metric = gathered.manifest.metric
    values = metric_of(gathered.frame, metric)
    by_seed = gathered.frame.assign(value=values).pivot(index="arm", columns="seed", values="value")
    differences = by_seed.loc[compared["arm"]].to_numpy() - by_seed.loc[compared["reference"]].to_numpy()
    t, wilcoxon = statistics.t_test(differences), statistics.wilcoxon(differences)
    data = compared[["arm", "reference", "difference", "low", "high", "pairs", "p_min"]].assign(
        p_sign_flip=compared["p"],
        p_sign_flip_holm=compared["p_holm"],
        p_wilcoxon=wilcoxon,
        p_t=t,
        p_t_holm=holm_within(compared["reference"], t),
    )
    text = [
        "Over seeds: the mean difference to the reference, paired over seeds, its t interval, and two-sided p of the "
        "sign-flip test, of Wilcoxon's signed-rank test (zeros left out, ties share ranks, p exact up to "
        f"{statistics.EXACT_PAIRS} pairs, by {statistics.DRAWS:,} random assignments of signs beyond) and of the t "
        "test, which trusts the differences to be normal. Smallest p: what the first two can attain at best. Holm: "
        "corrected over the arms with one reference."
    ]
    if set(COLUMNS) <= set(compared) and compared["example_p"].notna().any():
        bootstrap, mcnemar = compared["example_p"].to_numpy(), compared["mcnemar_p"].to_numpy()
        data = data.assign(
            example_low=compared["example_low"],
            example_high=compared["example_high"],
            p_bootstrap=bootstrap,
            p_bootstrap_holm=holm_within(compared["reference"], bootstrap),
        )
        text.append(
            "Over test examples: what would change if others had been tested, these trained weights given. It knows "
            "nothing of other seeds: arms that are alike but for their seeds differ by it, so it is no evidence about "
            "arms. Percentile interval and two-sided p of a paired bootstrap (10,000 draws of examples, the same for "
            "both arms and all seeds; examples that are made of the same source are drawn together)."
        )
        if np.isfinite(mcnemar).any():
            data = data.assign(p_mcnemar=mcnemar, p_mcnemar_holm=holm_within(compared["reference"], mcnemar))
            text.append(
                "McNemar: its mid-p, of several seeds the largest in the direction in which all of them agree; one "
                "seed that contradicts the others is enough for no difference."
            )
    elif metric == "test.accuracy" and len(gathered.frame) > MOST_RUNS:
        text.append(f"Stored predictions are not compared in a study of more than {MOST_RUNS:,} runs.")
    return Section(
        "Significance of the differences",
        text,
        tables={"significance": _printed(data, metric)},
        data={"significance": data},
    )


def _printed(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    printed = {
        "Arm": data["arm"].astype(str).tolist(),
        "Δ": signed(data["difference"], metric),
        f"{CONFIDENCE:.0%} t interval": intervals(data["low"], data["high"], metric),
        "pairs": data["pairs"].tolist(),
        "smallest p": _ps(data["p_min"]),
        "sign-flip": _ps(data["p_sign_flip"]),
        "Holm": _ps(data["p_sign_flip_holm"]),
        "Wilcoxon": _ps(data["p_wilcoxon"]),
        "paired t": _ps(data["p_t"]),
        "t, Holm": _ps(data["p_t_holm"]),
    }
    if "p_bootstrap" in data:
        printed |= {
            f"{CONFIDENCE:.0%} over examples": intervals(data["example_low"], data["example_high"], metric),
            "bootstrap": _ps(data["p_bootstrap"]),
            "bootstrap, Holm": _ps(data["p_bootstrap_holm"]),
        }
    if "p_mcnemar" in data:
        printed |= {"McNemar": _ps(data["p_mcnemar"]), "McNemar, Holm": _ps(data["p_mcnemar_holm"])}
    return pd.DataFrame(printed)


@dataclass(frozen=True)
class Answers:
    """The true class of each test example (n,), whether a run named it, and what it was made of, if that is known."""

    label: np.ndarray
    right: np.ndarray
    source: np.ndarray | None


def _answers(runs: Path, run_id: str, record: RunRecord | None) -> Answers | None:
    """What a run answered; None where it stored nothing. Raises CorruptFile if that contradicts the run's record."""
    path, remedy = run_folder(runs, run_id) / "predictions.npz", "delete the folder of this run to train it again"
    try:
        verify(path, record.files.get(path.name) if record else None, remedy)
        with np.load(path, allow_pickle=False) as stored:
            owner = str(stored.get("run_id", run_id))
            answers = Answers(stored["label"], stored["predicted"] == stored["label"], stored.get("source"))
    except FileNotFoundError:
        return None
    except CorruptFile:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise CorruptFile(f"{path} cannot be read ({type(error).__name__}: {error}); {remedy}") from None
    if owner != run_id:
        raise CorruptFile(f"{path} belongs to run {owner}; {remedy}")
    if record is not None and not _agree(answers, record):
        raise CorruptFile(f"{path} contradicts the accuracy or the number of examples in its record; {remedy}")
    return answers


def _agree(answers: Answers, record: RunRecord) -> bool:
    accuracy = record.metrics.get("test", {}).get("accuracy", math.nan)
    examples = record.data.get("test_examples", len(answers.label))
    return len(answers.label) == examples and math.isclose(answers.right.mean(), accuracy, abs_tol=1e-9)


def _cells(frame: pd.DataFrame, *names: str) -> list[tuple[str, ...]]:
    return list(zip(*(frame[name].astype(str) if name == "arm" else frame[name] for name in names), strict=True))


def _ps(values: np.ndarray | pd.Series) -> list[str]:
    return [number(p) for p in values]

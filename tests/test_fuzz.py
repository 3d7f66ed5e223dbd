"""Edit every file that the suite reads back: each reader gives the undisturbed result, or one sentence.

`LDN_FUZZ=10000` tries more edits than `make test` does.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from baselines import LinearConfig
from ldn import LDNConfig
from results.cost_frame import read_costs
from results.declarations import undeclared_note
from results.diffusion import gather_probes
from results.evals import gather_evals
from results.files import CHECKSUM, json_bytes, write_json
from results.gather import curves, gather, manifest_of
from results.record import (
    CostRecord,
    read_attempts,
    read_tuning,
    run_folder,
    study_folder,
    write_cost,
)
from results.section import Gathered
from results.significance import over_examples
from results.summary import summarise
from results.tuning import frame as trial_frame
from studies import checkpoint
from studies.drive import drive, tune
from studies.evaluate import evaluations
from studies.executors import Inline
from studies.jobs import Array, all_arrays
from studies.probe import probed
from studies.search_status import search_shown
from studies.spec import Budget, RunSpec, with_field
from studies.status import look
from studies.step import adamw
from studies.stored import find_runs, weights
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tasks.task import loaded
from studies.train import Place, Stopped, train
from studies.tuning import Tuning, freeze
from tests.watchers import Silent

LDN = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=6, evaluations=3),
)
ARMS = {"ldn": LDN, "linear": with_field(LDN, "model", LinearConfig())}
STOPPED = with_field(LDN, "seed", 7)
TUNING = Tuning(space={"optim.lr": (1e-4, 1e-1, "log")}, trials=2, seeds=(1000,))
STUDY = Study(question="Why?", reference="ldn", arms=ARMS, seeds=(0, 1), tuning=TUNING)
CASES = int(os.environ.get("LDN_FUZZ", 60))
ODD = [None, True, -1, 0, -0.5, 2, 1e300, 10**400, "high", "NaN", "", [], [1], [[1]], {}, {"a": 1}]
RAW = [
    b"",
    b"[1]",
    b'{"a": 1}',
    b"{}",
    b"null",
    b"[" * 200_000,
    b'{"a": ' * 5_000,
    b"\xff\xfe\x00",
    b'{"schema": 1e400}',
]

Facts = dict[str, Any]  # what a reader found, by a name for each part
Reader = Callable[[Place], tuple[Facts, list[str]]]  # beside it sentences for what it left out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A study that was tuned, run, evaluated elsewhere, probed and benched, and a run that was stopped."""
    folder = tmp_path_factory.mktemp("fuzz")
    here = Place(folder / "runs", folder / "data")
    source, executor = str(folder / "s.py"), Inline(here, lambda: False)
    _, found = tune(STUDY, "s", source, here.runs, executor, Silent(), lambda: False)
    freeze(found, folder / "s.py")
    study = dataclasses.replace(STUDY, seeds=(0, 1))
    drive(study, "s", source, here.runs, executor, Silent(), lambda: False)
    for _ in range(2):
        asked = itertools.count()
        with pytest.raises(Stopped):
            train(STOPPED, here, stop=lambda asked=asked: next(asked) >= 2)  # type: ignore[misc]
    records = find_runs(here.runs, "s").records
    list(evaluations(records[:2], here, overrides=["task.gap=1"]))
    list(probed(records[:1], here, examples=4))
    for length in (64, 128):
        write_cost(here.runs, cost(length))
    jobs = [[record.run_id for record in records], [STOPPED.run_id]]
    write_json(study_folder(here.runs, "s") / "slurm" / "k" / "array.json", vars(Array("k", jobs, 1.0, "code", 2, "7")))
    return here


def cost(length: int) -> CostRecord:
    return CostRecord(
        label="ldn", model={"name": "ldn"}, task={}, input={"length": length}, tokens=length, batch=1, dtype="float32",
        work="forward", compiled=False, status="done", seconds=[0.1, 0.2], median=0.15, low=0.1, high=0.2,
        iterations=2, params=9, gmac=0.1, env={"node": "n", "device": "cpu", "threads": 1},
    )  # fmt: skip


# the readers


def printed(row: dict[Any, Any]) -> dict[str, str]:
    """What is known of a row; what is missing elsewhere may turn a column's whole numbers into others."""
    known = {name: value for name, value in row.items() if value == value and value is not None}
    return {name: f"{value:.12g}" if isinstance(value, int | float) else str(value) for name, value in known.items()}


def of_report(place: Place) -> tuple[Facts, list[str]]:
    facts: Facts = {}
    said: list[str] = []
    records: dict[str, Any] = {}
    manifest = manifest_of(place.runs, "s")
    frame = gather(place.runs, "s", records)
    for row in frame.to_dict("records"):
        if row["status"] == "done":
            facts[f"row {row['run_id']}"] = printed(row)
        else:
            said.append(row["reason"])
    done = frame[frame["status"] == "done"]
    for run_id, rows in curves(place.runs, done, records, said).groupby("run_id"):
        facts[f"curve {run_id}"] = rows.drop(columns="arm").to_csv(index=False)
    over = over_examples(place.runs, frame, "test.accuracy", records, said)
    facts |= {f"interval {arm}": tuple(row) for arm, row in over.dropna().iterrows()}
    gathered = Gathered(place.runs, manifest, frame, summarise(frame, "test.accuracy", "max"), records)
    evals, torn = gather_evals(gathered, "accuracy")
    facts |= {f"eval {row['run_id']} {row['setting']}": str(row["value"]) for row in evals.to_dict("records")}
    *seen, unprobed = gather_probes(gathered)
    facts |= {f"probe {i}": part.to_csv() for i, part in enumerate(seen) if not part.empty}
    if undeclared := undeclared_note(place.runs, manifest):
        said.append(undeclared)
    return facts, said + torn + unprobed


def of_costs(place: Place) -> tuple[Facts, list[str]]:
    frame, unreadable = read_costs(place.runs)
    return {f"cost {row['cost_id']}": str(row) for row in frame.to_dict("records")}, unreadable


def of_status(place: Place) -> tuple[Facts, list[str]]:
    states, _ = look(place.runs, "s")
    said = [state.text for state in states if state.status != "done"]
    return {f"state {state.run_id}": state.status for state in states if state.status == "done"}, said


def of_search_status(place: Place) -> tuple[Facts, list[str]]:
    shown, _ = search_shown(place.runs, "s")
    console = Console(width=200, file=io.StringIO())
    console.print(shown)
    return {"shown": console.file.getvalue()}, []  # type: ignore[attr-defined]


def of_tuning(place: Place) -> tuple[Facts, list[str]]:
    found = [
        read_tuning(study_folder(place.runs, "s") / "trials.json"),
        read_tuning(place.runs.parent / "s.tuned.json"),
    ]
    return {
        str(i): (str(one), trial_frame(one).to_csv() if one.history else "")
        for i, one in enumerate(found)
        if one is not None
    }, []


def of_weights(place: Place) -> tuple[Facts, list[str]]:
    facts: Facts = {}
    said: list[str] = []
    for spec in ARMS.values():
        try:
            (record,) = find_runs(place.runs, spec.run_id).records
            facts[spec.run_id] = checkpoint.weights_hash(weights(place.runs, record))
        except ValueError as error:
            said.append(sentence(error))
    return facts, said


def of_checkpoint(place: Place) -> tuple[Facts, list[str]]:
    network = STOPPED.model.build(STOPPED.task.input, STOPPED.task.target)
    fingerprint = loaded(STOPPED.task, place.data).provenance["fingerprint"]
    origin = checkpoint.Origin(STOPPED.run_id, fingerprint)
    path = run_folder(place.runs, STOPPED.run_id) / "checkpoint.pt"
    found = checkpoint.load(path, network, adamw(network, STOPPED.optim), torch.device("cpu"), origin)
    assert found is not None
    state = {name: str(value) for name, value in vars(found.state).items()}
    return {f"step {found.state.step}": (checkpoint.weights_hash(network.state_dict()), state)}, [found.note]


def of_stopped(place: Place) -> tuple[Facts, list[str]]:
    return {"attempts": str(read_attempts(place.runs, STOPPED.run_id))}, []


def of_jobs(place: Place) -> tuple[Facts, list[str]]:
    return {name: str(array) for name, array in all_arrays(place.runs)}, []


def of_evaluations(place: Place) -> tuple[Facts, list[str]]:
    facts: Facts = {}
    said: list[str] = []
    for record in find_runs(place.runs, "s").records[:2]:
        try:
            (found,) = evaluations([record], place, overrides=["task.gap=1"])
            facts[found.run_id] = str((found.metrics, found.examples, found.status))
        except ValueError as error:
            said.append(sentence(error))
    return facts, said


READERS: dict[str, tuple[Reader, ...]] = {
    "record.json": (of_report, of_status, of_search_status, of_weights),
    "curve.csv": (of_report,),
    "predictions.npz": (of_report,),
    "weights.pt": (of_weights,),
    "checkpoint.pt": (of_checkpoint,),
    "checkpoint.former.pt": (of_checkpoint,),
    "attempts.json": (of_stopped,),
    "probe.json": (of_report,),
    "manifest.json": (of_report, of_status),
    "trials.json": (of_tuning, of_search_status),
    "s.tuned.json": (of_tuning,),
    "array.json": (of_jobs, of_status),
    "evals": (of_report, of_evaluations),
    "costs": (of_costs,),
    "declared": (of_report,),
}


def kind(path: Path) -> str:
    return path.name if path.name in READERS else path.parent.name


class Corpus:
    """What is read back, by kind, and what each reader finds in it undisturbed."""

    def __init__(self, place: Place) -> None:
        self.place, self.files = place, read_back(place)
        self.undisturbed = {read: read(place)[0] for readers in READERS.values() for read in readers}


def read_back(place: Place) -> list[list[Path]]:
    """Of the search's runs only the records."""
    tuned = read_tuning(study_folder(place.runs, "s") / "trials.json")
    assert tuned is not None
    searched = {run_id for trial in tuned.history for run_id in trial["run_ids"]}
    found: dict[str, list[Path]] = {}
    for path in sorted(place.runs.parent.rglob("*")):
        if kind(path) in READERS and path.is_file() and not (path.parent.name in searched and path.suffix != ".json"):
            found.setdefault(kind(path), []).append(path)
    assert found.keys() == READERS.keys()
    return list(found.values())


@pytest.fixture(scope="module")
def corpus(place: Place) -> Corpus:
    return Corpus(place)


# the edits


def sentence(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text and "Traceback" not in text, repr(error)
    return text


def parsed(content: bytes) -> Any:
    plain = json.loads(content)
    plain.pop(CHECKSUM, None)
    return plain


def places(plain: Any) -> list[tuple[Any, Any]]:
    """Every container of plain data with each of its keys."""
    if not isinstance(plain, dict | list):
        return []
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    return [(plain, key) for key in keys] + [found for key in keys for found in places(plain[key])]


def edited(content: bytes, others: list[bytes], is_json: bool, choose: random.Random) -> tuple[bytes, bool]:
    """The content with one edit; whether that is a forgery, a file that is consistent in itself."""
    edits = ["flip", "flip", "cut", "zero", "swap", "raw"] + ["field", "forged", "forged"] * is_json
    match choose.choice(edits):
        case "flip":
            at = choose.randrange(len(content))
            return content[:at] + bytes([content[at] ^ (1 << choose.randrange(8))]) + content[at + 1 :], False
        case "cut":
            return content[: choose.randrange(len(content))], False
        case "zero":
            start = choose.randrange(0, len(content), min(4096, len(content)))
            return (content[:start] + bytes(4096) + content[start + 4096 :])[: len(content)], False
        case "swap":
            return choose.choice(others or [b""]), False
        case "raw":
            return choose.choice(RAW), False
        case edit:
            plain = parsed(content)
            container, key = choose.choice(places(plain))
            if choose.random() < 0.2:
                del container[key]
            else:
                container[key] = choose.choice(ODD)
            if edit == "forged":
                return json_bytes(plain), True
            return json.dumps(plain | {CHECKSUM: json.loads(content)[CHECKSUM]}).encode(), False


@pytest.fixture(scope="module")
def _kept() -> Iterator[None]:
    yield


@settings(
    max_examples=CASES,
    phases=[Phase.generate], derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(seed=st.integers(0, 2**63))
def test_an_edited_file_is_noticed_or_makes_no_difference(seed: int, corpus: Corpus) -> None:
    choose = random.Random(seed)
    alike = choose.choice(corpus.files)
    path = choose.choice(alike)
    content = path.read_bytes()
    others = [other.read_bytes() for other in alike if other != path]
    changed, forged = edited(content, others, path.suffix == ".json", choose)
    try:
        path.write_bytes(changed)
        for read in READERS[kind(path)]:
            if wrong := disturbed(read, corpus, forged):
                pytest.fail(f"{path.name}, {read.__name__}: {wrong}")
    finally:
        path.write_bytes(content)


def disturbed(read: Reader, corpus: Corpus, forged: bool) -> str:
    """What a reader should not have made of an edited file; empty if it is as it should be.

    Of a forgery nothing can be expected but that it ends in no traceback.
    """
    before = corpus.undisturbed[read]
    try:
        facts, said = read(corpus.place)
    except ValueError as error:
        facts, said = {}, [sentence(error)]
    if forged:
        return ""
    if different := [name for name, fact in facts.items() if name in before and fact != before[name]]:
        return f"other than undisturbed: {different}"
    return "" if said or facts.keys() >= before.keys() else "something is missing, and nothing says so"

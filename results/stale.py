"""Which finished runs were trained with other source, or with other defaults, than today's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.files import CorruptFile
from results.record import Manifest, RunRecord, read_record
from results.sources import source_hash
from results.validation import with_non_finite

Runs = dict[str, tuple[str, RunRecord]]  # by run id: an arm that the run answers, and its record
Configs = Mapping[str, Mapping[str, Any]]  # by arm: every field with an effect, by its dotted path


@dataclass(frozen=True)
class Difference:
    """Parts whose source is no longer that of the run, and fields whose value is not, as "PATH was X, is Y"."""

    sources: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sources or self.fields)

    def __str__(self) -> str:
        parts = [f"other source of: {', '.join(self.sources)}"] * bool(self.sources)
        return "; ".join([*parts, *([f"other defaults: {', '.join(self.fields)}"] * bool(self.fields))])


def difference(record: RunRecord, config: Mapping[str, Any]) -> Difference:
    """Compare a run with the source of today and with `config`, every field with an effect by its dotted path."""
    changed = []
    for part, source in record.sources.items():
        entry, _, digest = source.rpartition("@")
        if digest != source_hash(part, entry):
            changed.append(part)
    recorded = _flat(with_non_finite(record.config))
    today = {path: list(value) if isinstance(value, tuple) else value for path, value in config.items()}
    today = {path: value for path, value in with_non_finite(today).items() if path in recorded and path != "seed"}
    fields = [
        f"{path} was {recorded[path]}, is {value}"
        for path, value in today.items()
        if repr(value) != repr(recorded[path])
    ]
    return Difference(tuple(changed), tuple(fields))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in config.items() if not isinstance(value, dict)}
    for name, part in config.items():
        if isinstance(part, dict):
            flat |= {f"{name}.{inner}": value for inner, value in part.items()}
    return flat


def finished_runs(cells: Iterable[tuple[str, str]], records: Mapping[str, RunRecord]) -> Runs:
    """Those of `records` that are done, each with the first arm that it answers, from cells of (arm, run id)."""
    found: Runs = {}
    for arm, run_id in cells:
        record = records.get(run_id)
        if record is not None and record.status == "done":
            found.setdefault(run_id, (arm, record))
    return found


def read_records(runs: Path, run_ids: Iterable[str]) -> dict[str, RunRecord]:
    """The records of these runs. One that cannot be read is left out."""
    found = {}
    for run_id in dict.fromkeys(run_ids):
        with suppress(CorruptFile):
            if (record := read_record(runs, run_id)) is not None:
                found[run_id] = record
    return found


def stale_runs(finished: Runs, configs: Configs) -> dict[str, Difference]:
    """The finished runs that differ from today's source or configuration, by run id."""
    found = {run_id: difference(record, configs.get(arm, {})) for run_id, (arm, record) in finished.items()}
    return {run_id: different for run_id, different in found.items() if different}


def stale_lines(finished: Runs, configs: Configs, called: str) -> list[str]:
    """A sentence for each way in which runs differ from today, and what to do; `called` names the study."""
    groups: dict[str, list[str]] = {}
    for run_id, different in stale_runs(finished, configs).items():
        groups.setdefault(str(different), []).append(finished[run_id][0])
    lines = [f"{_counted(arms)} trained with {what}." for what, arms in groups.items()]
    if lines:
        lines.append(f"`python -m studies run {called} --retrain` trains them again.")
    unknown = sum(not record.sources for _, record in finished.values())
    if unknown:
        runs = "1 run was" if unknown == 1 else f"{unknown} runs were"
        lines.append(f"{runs} trained before the source was recorded: whether it has changed since is not known.")
    return lines


def _counted(arms: list[str]) -> str:
    names = list(dict.fromkeys(arms))
    of = f"arm {names[0]}" if len(names) == 1 else f"{len(names)} arms"
    return f"1 run of {of} was" if len(arms) == 1 else f"{len(arms)} runs of {of} were"


def study_lines(manifest: Manifest, records: Mapping[str, RunRecord]) -> list[str]:
    """`stale_lines` of a study as its manifest has it: the defaults are those of when it was last run."""
    cells = [(cell["arm"], cell["run_id"]) for cell in manifest.cells]
    configs = {arm["label"]: arm.get("config", {}) for arm in manifest.arms}
    return stale_lines(finished_runs(cells, records), configs, manifest.called)

"""What a person sees of a study: its arms; while it runs, bars for its runs and a line for each that ended; winners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from results.files import CorruptFile
from results.record import RunRecord, TuningRecord, read_record
from results.stale import finished_runs, stale_lines
from results.text import printable, styled
from studies.checks import study_notes
from studies.drive import Tally
from studies.executors import Ended
from studies.progress import progress_of, progress_text
from studies.retrain import arm_configs
from studies.spec import flatten
from studies.study import Cell, Study, changes
from studies.tuning import described


class Display:
    """A `studies.drive.Watcher` on a console. Without a terminal only the lines are printed."""

    def __init__(self, console: Console, runs: Path, name: str) -> None:
        self.console, self.runs = console, runs
        described, counted = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[text]}"))
        columns = (described, BarColumn(bar_width=24), counted, TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.whole = self.progress.add_task(name, total=None, text="")
        self.bars: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tick(self, tally: Tally) -> None:
        ended = tally.done + tally.failed
        text = f"{ended} of {tally.cells} runs" + (f", {tally.failed} failed" if tally.failed else "")
        shares = 0.0
        for run_id, cells in tally.running.items():
            where = progress_of(self.runs, run_id)
            share = where["done"] if where else 0.0
            shares += share * len(cells)
            if run_id not in self.bars:
                label = f"  {printable(cells[0].arm)}, seed {cells[0].seed}"
                self.bars[run_id] = self.progress.add_task(label, total=1.0, text="")
            self.progress.update(self.bars[run_id], completed=share, text=progress_text(where))
        self.progress.update(self.whole, total=tally.cells, completed=ended + shares, text=text)

    def finished(self, tally: Tally, cell: Cell, record: RunRecord | None, ended: Ended) -> None:
        if (bar := self.bars.pop(cell.spec.run_id, None)) is not None:
            self.progress.remove_task(bar)
        counted = styled(f"{tally.done + tally.failed:>{len(str(tally.cells))}}/{tally.cells}", "dim")
        cell_text = styled(f" {cell.arm}, seed {cell.seed}: ")
        self.console.print(Text.assemble(counted, cell_text, ending_text(record, ended)))


def ending_text(record: RunRecord | None, ended: Ended) -> Text:
    if record is None:
        return Text("not ended; it goes on next time") if ended.stopped else styled(ended.error, "red")
    if record.status == "pruned":
        return styled(record.reason, "dim")
    if record.status != "done":
        return styled(f"{record.status}: {record.reason}", "red")
    valid = record.metrics.get("valid", {}).get("accuracy")
    seconds = sum(attempt.get("seconds", 0.0) for attempt in record.attempts)
    return Text((f"validation {valid:.1%}, " if valid is not None else "") + f"{seconds:.0f} s")


def winners(found: TuningRecord) -> Table:
    """Every arm's best trial so far."""
    first = found.objectives[0]
    table = Table("arm", f"best {first}", "with", "trials", "left out", box=None)
    for label, arm in found.arms.items():
        values = ", ".join(f"{path} {value}" for path, value in arm.get("values", {}).items())
        best = f"{arm['metrics'][first]:.4g}" if "metrics" in arm else "none"
        counts = ", ".join(f"{number} {status}" for status, number in arm["counts"].items())
        table.add_row(*map(styled, (label, best, values, counts, ", ".join(arm["left_out"]))))
    return table


def show_arms(console: Console, study: Study, name: str, runs: Path) -> None:
    """Every arm, the fields in which it differs from its reference, and how many of its runs are done."""
    console.print(styled(study.question, "bold"))
    cells, arms = study.cells(), {arm.label: arm for arm in study.expanded()}
    records, corrupt = {}, []
    for run_id in dict.fromkeys(cell.spec.run_id for cell in cells):
        try:
            records[run_id] = read_record(runs, run_id)
        except CorruptFile as error:
            corrupt.append(f"{error}.")
    finished = {run_id for run_id, record in records.items() if record is not None and record.status == "done"}
    for reference in dict.fromkeys(arm.reference for arm in arms.values()):
        fields = {path: value for path, value in flatten(arms[reference].spec).items() if path != "seed"}
        content = ", ".join(f"{path} {value}" for path, value in fields.items() if value is not None)
        console.print(Text.assemble("\n", styled(reference, "bold"), styled(f" is {content}", "dim")))
        table = Table("arm", "differs in", "done", box=None)
        for arm in (arm for arm in arms.values() if arm.reference == reference):
            differs = changes(arm.spec, arms[reference].spec)
            text = ", ".join(f"{path} {ours}" for path, (_, ours) in differs.items() if ours is not None)
            note = styled(f" ({arm.note})" if arm.note else "", "dim")
            mine = [cell.spec.run_id in finished for cell in cells if cell.arm == arm.label]
            table.add_row(styled(arm.label), styled(text) + note, f"{sum(mine)}/{len(mine)}")
        console.print(table)
    many, seeds = len(arms), len(study.seeds)
    design = f"{many} arm{'s' * (many > 1)} x {seeds} seed{'s' * (seeds > 1)}"
    console.print(f"\n{design}; {study.metric}, {study.direction}imised; widths matched by: {study.match}")
    known = {run_id: record for run_id, record in records.items() if record is not None}
    trained = finished_runs([(cell.arm, cell.spec.run_id) for cell in cells], known)
    for sentence in [*corrupt, *stale_lines(trained, arm_configs(cells), name)]:
        console.print(styled(sentence), style="yellow", soft_wrap=True)
    for sentence in study_notes(study):
        console.print(sentence, style="yellow", soft_wrap=True)
    if study.tuned is not None:
        console.print(described(study.tuned), soft_wrap=True)
    elif study.tuning is not None:
        console.print(f"not tuned yet: `python -m studies tune {name}` searches each arm's settings")


@contextmanager
def said_meanwhile(console: Console) -> Iterator[Callable[[str], None]]:
    """Say what long work is at: in one line that changes or, where there is no terminal, line after line."""
    if console.is_terminal:
        with console.status("") as shown:
            yield lambda line: shown.update(styled(line))
    else:
        yield lambda line: console.print(line, style="dim")

"""The command line: list the studies, show one, tune one, run one, ask how far it is.

It chooses which study runs and where, never what it is: there is no flag for a hyper-parameter.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take a moment
    from results.environment import use_temporary_caches
    from results.signals import end_on_signals

    end_on_signals()
    use_temporary_caches()

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from results.cli import run_app
from results.environment import expanded
from results.identity import source_of
from results.signals import interrupt_on_signals, stop_on_signals
from results.text import PlainConsole, print_error, styled
from studies import catalogue

if TYPE_CHECKING:  # these import torch; listing the studies must not
    from studies.display import Display
    from studies.executors import Executor
    from studies.spec import RunSpec
    from studies.train import Place

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
console = PlainConsole()

Name = Annotated[str, typer.Argument(help="A study that ships, or the path of your own study file.")]
Runs = Annotated[Path, typer.Option(help="Where runs are kept.", envvar="LDN_RUNS", callback=expanded)]


Out = Annotated[Path, typer.Option(help="Where reports are written.", envvar="LDN_REPORTS", callback=expanded)]


def number(value: float) -> float:
    """Refuse NaN, which passes every bound of an option."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number of seconds")
    return value


@app.command("list")
def list_() -> None:
    """The studies that ship, and what each asks."""
    table = Table(box=None, show_header=False)
    for name, question in catalogue.shipped().items():
        table.add_row(Text(name, "bold"), question)
    console.print(table)
    console.print("python -m studies show NAME lists its arms, python -m studies run NAME runs it", style="dim")


@app.command()
def show(name: Name, runs: Runs = Path("runs")) -> None:
    """The arms of a study: exactly the fields in which each differs from the reference."""
    from studies.display import show_arms

    show_arms(console, catalogue.load(catalogue.source(name)), name, runs)


On = Annotated[
    Literal["local", "inline", "slurm"], typer.Option("--on", help="A pool of processes, this process, or a cluster.")
]
Slots = Annotated[int | None, typer.Option(min=1, max=1024, help="Runs at a time; by default one a core or GPU.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of a run; part of bit-exact repetition.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[bool, typer.Option("--compile", help="Train under torch.compile.")]
Retry = Annotated[bool, typer.Option("--retry", help="Run again what failed or diverged.")]
Retrain = Annotated[
    bool,
    typer.Option(
        "--retrain", help="Replace the runs trained with other source or defaults than today's; or all runs of --arm."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --on slurm: only say what would be done.")]
Slurm = Annotated[Path, typer.Option(help="What to ask of SLURM.", envvar="LDN_SLURM", callback=expanded)]
Data = Annotated[Path, typer.Option(help="Where data sets lie.", envvar="LDN_DATA", callback=expanded)]


@app.command()
def run(
    name: Name,
    on: On = "local",
    slots: Slots = None,
    threads: Threads = 1,
    device: Device = "auto",
    compile: Compile = False,
    retry: Retry = False,
    retrain: Retrain = False,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="With --retrain: this arm; may be repeated.")] = None,
    dry_run: DryRun = False,
    slurm: Slurm = Path("slurm.toml"),
    runs: Runs = Path("runs"),
    data: Data = Path("data"),
    out: Out = Path("reports"),
) -> None:
    """Run what has not been run yet, then write and print the report. Ctrl-C stops; calling again goes on.

    With --on slurm it submits that and returns; `status` shows how far it is, `python -m results` writes the report.
    """
    from results.files import made_folder
    from results.record import run_folder
    from results.report import print_report, write_report
    from studies.drive import drive
    from studies.train import Place

    if arm and not retrain:
        raise ValueError("--arm chooses what --retrain trains again; give both")
    replaced = list(arm or ()) if retrain else None
    path = catalogue.source(name)
    study, place = catalogue.load(path), Place(runs, data, device, threads, compile)
    if not dry_run:
        cells = study.cells()
        ended = {cell.spec.run_id for cell in cells if (run_folder(runs, cell.spec.run_id) / "record.json").exists()}
        refuse_missing_data((cell.spec for cell in cells if retry or retrain or cell.spec.run_id not in ended), data)
    if on == "slurm":
        from studies.cluster import read_cluster
        from studies.plan import plan_lines
        from studies.slurm import launch

        asked = launch(study, path.stem, source_of(path), read_cluster(slurm), place, slots, retry, dry_run, replaced)
        for line in plan_lines(asked):
            console.print(line, soft_wrap=True)
        say_notes(asked.notes, "")
        after = "nothing was submitted" if dry_run else f"`python -m studies status {name}` shows how far it is"
        console.print(after, style="dim")
        return
    if dry_run:
        raise ValueError("--dry-run plans jobs for --on slurm; `python -m studies show` says what a study runs")
    made_folder(out / path.stem)  # not after hours of training
    with attended(runs, path.stem) as (shown, stopping), closing(here(on, place, slots, stopping)) as executor:
        tally = drive(study, path.stem, source_of(path), runs, executor, shown, stopping, retry, replaced)
    say_notes(tally.notes, tally.fatal)
    report = write_report(runs, path.stem, out)
    print_report(console, report)
    left = tally.cells - tally.done - tally.failed
    if left:
        again = f"`python -m studies run {name}`" if retrain else "the same command"
        refuse(f"stopped with {left} of {tally.cells} runs to go; {again} goes on from here")
    if tally.failed:
        why = f"`python -m studies status {name}` says why, --retry tries again"
        refuse(f"{tally.failed} of {tally.cells} runs failed; {why}")
    if report.errors:
        refuse(report.errors[0])


@app.command()
def tune(
    name: Name,
    on: On = "local",
    slots: Slots = None,
    threads: Threads = 1,
    device: Device = "auto",
    compile: Compile = False,
    retry: Retry = False,
    detach: Annotated[bool, typer.Option("--detach", help="With --on slurm: drive it from a job, and return.")] = False,
    dry_run: DryRun = False,
    slurm: Slurm = Path("slurm.toml"),
    runs: Runs = Path("runs"),
    data: Data = Path("data"),
) -> None:
    """Search every arm's settings on validation; `run` then uses them. Ctrl-C stops; calling again goes on.

    With --on slurm workers in jobs train what this process, or with --detach a job, asks for.
    """
    from studies.display import winners
    from studies.drive import tune
    from studies.train import Place
    from studies.tuning import freeze

    path = catalogue.source(name)
    study, place = catalogue.declared(path), Place(runs, data, device, threads, compile)
    if not dry_run:
        refuse_missing_data((arm.spec for arm in study.declared()), data)
    if on == "slurm":
        from studies.cluster import read_cluster
        from studies.workers import Workers, detached, foreseen

        facts = read_cluster(slurm)
        for line in foreseen(study, path.stem, facts, place, slots):
            console.print(line, soft_wrap=True)
        if dry_run or detach:
            after = "nothing was submitted"
            if not dry_run:
                job = detached(study, path.stem, source_of(path), path, facts, place, slots, retry)
                after = f"driven by job {job}; `python -m studies status {name}` shows how far it is"
            console.print(after, style="dim")
            return
    elif dry_run or detach:
        raise ValueError("--dry-run and --detach are for --on slurm")
    with attended(runs, path.stem) as (display, stopping):
        on_cluster = on == "slurm"
        made = Workers(study, path.stem, facts, place, slots) if on_cluster else here(on, place, slots, stopping)
        with closing(made) as executor:
            tally, found = tune(study, path.stem, source_of(path), runs, executor, display, stopping, retry)
    say_notes(tally.notes, tally.fatal)
    console.print(winners(found))
    if missing := found.left:
        trials = sum(arm["planned"] for arm in found.arms.values())
        refuse(f"stopped with {missing} of {trials} trials to go; the same command goes on from here")
    written = freeze(found, path)
    console.print(f"\nWritten to {written}; `python -m studies run {name}` uses it", soft_wrap=True)


@contextmanager
def attended(runs: Path, title: str) -> Iterator[tuple[Display, Callable[[], bool]]]:
    """What is shown meanwhile, and whether a signal has asked to stop."""
    from studies.display import Display

    with stop_on_signals() as stopping, Display(console, runs, title) as display:
        yield display, stopping


def here(on: str, place: Place, slots: int | None, stopping: Callable[[], bool]) -> Executor:
    """What trains on this machine. Raises ValueError where it has no such device."""
    from studies.executors import Inline, Local, places

    count = 1 if on == "inline" else slots
    where = places(place.runs, place.data, place.device, count, place.threads, place.compile)
    return Local(where) if on == "local" else Inline(where[0], stopping)


def refuse_missing_data(specs: Iterable[RunSpec], data: Path) -> None:
    """Raise ValueError before anything is begun that would fail for want of its data."""
    for task in dict.fromkeys(spec.task for spec in specs):
        if missing := task.missing(data):
            raise ValueError(f"nothing was begun: {missing}")


def say_notes(notes: list[str], fatal: str) -> None:
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)
    if fatal:
        refuse(f"{fatal}; nothing that was finished is lost, the same command goes on from here")


@app.command()
def status(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again; Ctrl-C ends that.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=86_400, callback=number, help="With --watch: seconds between two looks.")
    ] = 5,
    runs: Runs = Path("runs"),
) -> None:
    """How far a study is and what failed, from its files and SLURM's queue: works while it runs, from any machine."""
    from results.record import validate_owner
    from studies.status import show_status

    path = catalogue.source(name)
    validate_owner(runs, path)
    show_status(console, runs, path.stem, every if watch else None)


@app.command()
def cancel(name: Name, runs: Runs = Path("runs")) -> None:
    """Take a study's jobs out of SLURM's queue, its search's too; the same command goes on from the checkpoints."""
    from results.record import validate_owner
    from studies.jobs import cancel

    path = catalogue.source(name)
    validate_owner(runs, path)
    console.print(f"{cancel(runs, path.stem)} jobs cancelled")


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run's id, or how it begins.")],
    lines: Annotated[int, typer.Option(min=1, help="How many, from the end.")] = 40,
    runs: Runs = Path("runs"),
) -> None:
    """What the SLURM job said that a run was given to."""
    from studies.status import logs

    paths, text = logs(runs, run, lines)
    for path in paths:
        console.print(str(path), style="dim", soft_wrap=True)
    for line in text:
        console.print(line, soft_wrap=True)


@app.command()
def bench(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A study, to measure its arms; operators: LDN's alone, fused and not; without, every model."
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Numbers of tokens; 'none' for a study's own inputs only.")] = "",
    batch: Annotated[
        int | None, typer.Option(min=1, help="At these lengths; by default 1, on a GPU 8 (operators: more).")
    ] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Compiled too (default: GPU).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; by default one a core.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, max=86_400, callback=number, help="Timed seconds of each measurement.")
    ] = 2,
    longest: Annotated[
        float, typer.Option(min=0.01, callback=number, help="Skip passes expected to take more seconds.")
    ] = 5,
    runs: Runs = Path("runs"),
    out: Out = Path("reports"),
) -> None:
    """Measure time, memory and multiply-adds over lengths, all models in turns. Nothing else should run beside it."""
    from results.cost_frame import cost_frame
    from results.costs import print_costs, write_costs
    from results.files import made_folder
    from results.operators import operator_frame, print_operators, write_operators
    from studies import operators, subjects
    from studies.bench import Interrupted, settings
    from studies.bench import bench as measure
    from studies.display import said_meanwhile

    how = settings(device, threads, compile, seconds, longest)
    size = batch or (1 if how.device == "cpu" else 8)
    chosen: Sequence[subjects.Subject]
    if name == operators.NAME:
        wanted = subjects.parse_lengths(lengths, operators.size(how.device).lengths)
        chosen = operators.operators(wanted, batch, how.device)
    elif name is None:
        stem, title, chosen = "bench", "What every model costs", subjects.preset(subjects.parse_lengths(lengths), size)
    else:
        path = catalogue.source(name, f"; {operators.NAME!r} stands for LDN's operators alone, not for a study's arms")
        stem, title = f"bench-{path.stem}", f"What the arms of {path.stem} cost"
        chosen = subjects.of_study(catalogue.load(path), subjects.parse_lengths(lengths), size)
    if not chosen:
        raise ValueError("there is nothing to measure: give --lengths, or a study")
    for folder in (runs, out):  # not after an hour of measuring
        made_folder(folder)
    stopped = False
    try:
        with interrupt_on_signals(), said_meanwhile(console) as say:
            records = measure(chosen, how, runs, say)
    except KeyboardInterrupt as interruption:
        records, stopped = interruption.records if isinstance(interruption, Interrupted) else [], True
    if not records:
        refuse("stopped before anything was measured")
    if name == operators.NAME:
        frame = operator_frame(records)
        print_operators(console, frame, write_operators(frame, out / f"bench-{operators.NAME}"))
    else:
        frame = cost_frame(records)
        print_costs(console, frame, title, write_costs(frame, title, out / stem))
    if stopped:
        refuse("stopped: this is what was measured until then")


# --- stored weights: evaluated elsewhere, looked into -------------------------------------------

Stored = Annotated[str, typer.Argument(help="A run's id or how it begins, or a study's name or file.")]
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Of a study, only this arm; may be repeated.")]


@app.command("eval")
def eval_(
    run: Stored,
    arm: Arms = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="task.FIELD=VALUE, or several: task.gap=1,3,7; may be repeated.")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="Resize the images to this: 40x40.")] = None,
    task: Annotated[str | None, typer.Option(help="Other data of the same kind of input and classes.")] = None,
    split: Annotated[Literal["test", "valid"], typer.Option(help="Which split.")] = "test",
    device: Device = "auto",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    data: Data = Path("data"),
) -> None:
    """Evaluate stored weights at other lengths, resolutions or on other data. What was asked before is not repeated."""
    from results.evals import eval_label, print_evals
    from studies.evaluate import evaluations
    from studies.executors import places
    from studies.stored import find_runs

    found = find_runs(runs, run, arm or ())
    place = places(runs, data, device, 1, threads, False)[0]
    stored = []
    with console.status("loading") as line:
        for one in evaluations(found.records, place, task, set_ or (), resolution, split):
            stored.append(one)
            line.update(styled(f"{len(stored)} evaluated, now {found.labels[one.run_id]}, {eval_label(one)}"))
    print_evals(console, stored, found.labels, "accuracy")
    _say_what_is_left(found.study, found.left)


@app.command()
def probe(
    run: Stored,
    arm: Arms = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="The same of the initialisation as well.")] = False,
    examples: Annotated[int, typer.Option(min=1, help="How many validation examples.")] = 32,
    device: Device = "auto",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    data: Data = Path("data"),
) -> None:
    """Look into stored networks: energy and range by layer, learned stencils and rates, receptive field."""
    from results.diffusion import print_probes
    from studies.executors import places
    from studies.probe import probed
    from studies.stored import find_runs

    found = find_runs(runs, run, arm or ())
    place = places(runs, data, device, 1, threads, False)[0]
    seen = []
    with console.status("loading") as line:
        for one in probed(found.records, place, examples, untrained):
            seen.append(one)
            line.update(f"{len(seen)} of {len(found.records)} runs probed")
    print_probes(console, seen, found.labels)
    _say_what_is_left(found.study, found.left)


def _say_what_is_left(study: str, left: int) -> None:
    if left:
        console.print(f"{left} of the study's runs not done, left out", style="yellow")
    if study:
        console.print(f"`python -m results {study}` puts this into the study's report", style="dim")


def refuse(sentence: str) -> None:
    """Say what is wrong and leave with exit code 2."""
    print_error(sentence)
    raise typer.Exit(2)


if __name__ == "__main__":
    run_app(app, "python -m studies")

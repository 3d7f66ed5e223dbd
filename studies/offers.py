"""How does a driver hand runs to the workers of a cluster's jobs, and learn that they ended? By files that are renamed.

A run is one file, at any moment in one place: `offers/ID.json`, which any worker may take; `taken/WORKER/ID.json`,
which that worker holds; `ended/ID.json`, which the driver removes. Of several that rename a file one succeeds. What
became of a run, its record says; so any of this may be lost: the driver offers again what is in no place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from results.files import CorruptFile, read_json, write_json
from results.record import content_id
from studies.spec import RunSpec, canonical, from_plain

OVER = "over"  # a file: no more runs will be offered
GOOD = ".good"  # a file of a worker's: it has ended a run, or has left by itself
IDLE_SECONDS = 60.0  # that a worker waits for a run


class Offers:
    """The driver's side of a study's folder."""

    def __init__(self, folder: Path) -> None:
        self.offers, self.taken, self.over_runs = (folder / name for name in ("offers", "taken", "ended"))
        self.no_more = folder / OVER
        for one in (self.offers, self.taken, self.over_runs):
            one.mkdir(parents=True, exist_ok=True)
        self.no_more.unlink(missing_ok=True)
        for path in [*_runs(self.offers), *_runs(self.over_runs)]:  # of a driver that is gone
            path.unlink(missing_ok=True)

    def offer(self, spec: RunSpec) -> None:
        """Whoever is free first may train this run."""
        write_json(self.offers / f"{spec.run_id}.json", canonical(spec))

    def waiting(self) -> int:
        """How many runs nobody has taken."""
        return sum(1 for _ in _runs(self.offers))

    def ended(self) -> list[str]:
        """The runs that have ended since the last call."""
        paths = list(_runs(self.over_runs))
        for path in paths:
            path.unlink(missing_ok=True)
        return [path.stem for path in paths]

    def held(self) -> dict[str, list[str]]:
        """The runs that each worker has taken."""
        with os.scandir(self.taken) as found:
            return {worker.name: sorted(path.stem for path in _runs(Path(worker.path))) for worker in found}

    def placed(self) -> set[str]:
        """The runs that are in any place."""
        # in the order in which they go from one to the next, so that none is missed
        found = {path.stem for path in _runs(self.offers)}
        found |= {run_id for ids in self.held().values() for run_id in ids}
        return found | {path.stem for path in _runs(self.over_runs)}

    def give_back(self, worker: str) -> bool:
        """Offer again what a worker that is gone has taken. Whether it had been good for anything."""
        home = self.taken / worker
        for path in _runs(home):
            with suppress(FileNotFoundError):  # the worker is not gone, and has just ended this run
                path.rename(self.offers / path.name)  # with its time: it comes first
        good = (home / GOOD).exists()
        (home / GOOD).unlink(missing_ok=True)
        with suppress(OSError):  # it has taken another one meanwhile
            home.rmdir()
        return good

    def withdraw(self) -> None:
        """Nothing that nobody has taken is to be run any more."""
        for path in _runs(self.offers):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing more will be offered: workers need not wait."""
        self.no_more.touch()


class Taker:
    """A worker's side: the `studies.packed.Supply` that takes what is offered, oldest first.

    What it held before, as the same worker in a former life, comes before all else.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.offers, self.mine, self.over_runs = folder / "offers", folder / "taken" / worker, folder / "ended"
        self.no_more = folder / OVER
        self.mine.mkdir(parents=True, exist_ok=True)
        self.former = _by_age(self.mine)
        self.idle_since = time.monotonic()

    def next(self) -> RunSpec | None:
        while self.former:
            spec = _read(self.former.pop(0))
            if spec is not None:  # else it was given to another meanwhile
                return spec
        for path in _by_age(self.offers):
            self.mine.mkdir(exist_ok=True)  # a driver that thought this worker gone has removed it
            try:
                path.rename(self.mine / path.name)
            except FileNotFoundError:  # another was faster
                continue
            spec = _read(self.mine / path.name)
            if spec is not None:
                return spec
        return None

    def ended(self, run_id: str) -> None:
        self.idle_since = time.monotonic()
        with suppress(FileNotFoundError):  # it was given to another, who says the same
            (self.mine / f"{run_id}.json").rename(self.over_runs / f"{run_id}.json")
            (self.mine / GOOD).touch()

    def expects(self) -> bool:
        return not self.no_more.exists() and time.monotonic() - self.idle_since < IDLE_SECONDS

    def left(self) -> list[str]:
        return []  # what nobody has taken, others will

    def leave(self) -> None:
        """This worker ends, and holds nothing."""
        self.mine.mkdir(exist_ok=True)
        (self.mine / GOOD).touch()


def _read(path: Path) -> RunSpec | None:
    """The run that is offered; None if it is gone or damaged. A damaged file is deleted: the driver offers it again."""
    try:
        plain = read_json(path, "")
    except CorruptFile:
        plain = {}
    if plain is None:
        return None
    if content_id(plain) != path.stem:
        path.unlink(missing_ok=True)
        return None
    return from_plain(plain)


def _runs(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as found:  # a folder may go meanwhile
        for one in found:
            if one.name.endswith(".json") and not one.name.startswith("."):
                yield Path(one.path)


def _by_age(folder: Path) -> list[Path]:
    aged = []
    for path in _runs(folder):
        with suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(aged)]

"""One SLURM for all tests here, which are its clients. `make test-slurm` runs them, `pytest` alone does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.slurm.daemons import SlurmError
from tests.slurm.machine import Machine, missing


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    if reason := missing():
        pytest.skip(reason)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):  # which would end the tests without an end of what they started
        signal.signal(number, stop)
    started = Machine()
    try:
        started.start()
    except SlurmError:  # a port that another program took meanwhile, say
        started = Machine().start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(autouse=True)
def client(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's own process is a client of the machine, and what it breaks or leaves running concerns no other."""
    for name in set(os.environ) - set(machine.environment()):
        monkeypatch.delenv(name)
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    yield
    machine.settle()

"""What Ctrl-C, SIGTERM and SIGHUP do to a command: end it at once, or ask it to stop first."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEAT_SECONDS = 0.5  # within which a signal is a repetition: `timeout`, for one, sends its signal twice
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
Handler = Callable[[int, FrameType | None], Any]


def end_on_signals() -> None:
    """Have the signals end this process and its children at once, in one sentence instead of a traceback.

    Interrupting an import by an exception makes libraries raise others, so the process exits from the handler.
    """
    for number in STOPS:
        _handle(number, _end)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Whether one of the signals has asked to stop; after that, another Ctrl-C ends the process at once."""
    asked: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(time.monotonic())
            os.write(2, b"stopping; another Ctrl-C ends it at once\n")
        elif number == signal.SIGINT and time.monotonic() > asked[0] + REPEAT_SECONDS:
            _end(number, frame)

    with _handled_by(ask):
        yield lambda: bool(asked)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Have the first of the signals raise KeyboardInterrupt; any later one ends the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        end_on_signals()
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield


@contextmanager
def blocked(numbers: Iterable[signal.Signals] = STOPS) -> Iterator[None]:
    """Start processes here that do not receive these signals before they unblock them."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started along with the first process, it would unblock them here
    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:
        _handle(number, handler)
    try:
        yield
    finally:
        for number, one in former.items():
            signal.signal(number, one)


def _handle(number: signal.Signals, handler: Handler) -> None:
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
        signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    multiprocessing = sys.modules.get("multiprocessing")
    with suppress(Exception):  # in the middle of starting a process, say
        for child in multiprocessing.active_children() if multiprocessing else ():
            child.kill()
    cursor = SHOW_CURSOR if os.isatty(2) else b""
    name = signal.Signals(number).name
    with suppress(OSError):  # a terminal that is gone
        os.write(2, cursor + f"error: ended by {name}; what was finished is kept\n".encode())
    os._exit(128 + number)

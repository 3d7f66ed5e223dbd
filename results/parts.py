"""Parts of a report, made one by one, so that one that fails withholds no other."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from results.files import CorruptFile
from results.text import error_text

T = TypeVar("T")


@dataclass
class Parts:
    """Makes parts and collects why some could not be made.

    `missing` names parts that a corrupt file withholds. `errors` names parts that failed by any other exception, which
    is an error in the suite, with the line that raised it; the command then ends with an exit code that is not 0.
    """

    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def make(self, what: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What `function` returns, or None if it fails."""
        try:
            return function(*arguments)
        except CorruptFile as error:
            self.missing.append(f"Not in this report: {what}: {error}.")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}"
            why = error_text(error)
            self.errors.append(f"Not in this report, by an error in the suite: {what}: {why} ({place}).")
        return None

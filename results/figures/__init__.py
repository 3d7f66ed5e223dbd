"""The figures of a report, by what they show; `style` is what they share."""

from results.figures.comparison import accuracy_against_cost, arms
from results.figures.curves import Curves, aligned, training_curves
from results.figures.style import encode

__all__ = ["Curves", "accuracy_against_cost", "aligned", "arms", "encode", "training_curves"]

"""The figures of a report, by what they show; `style` is what they share."""

from results.figures.comparison import accuracy_against_cost, arms, training_curves
from results.figures.style import encode

__all__ = ["accuracy_against_cost", "arms", "encode", "training_curves"]

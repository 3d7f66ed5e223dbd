"""Which factor matters most? Optuna's importances of a crossed study, as a second opinion beside its effects."""

from __future__ import annotations

import warnings
from typing import Literal

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

FEWEST = 4  # trials


def importances(
    frame: pd.DataFrame, factors: list[str], value: pd.Series, direction: Literal["max", "min"]
) -> pd.DataFrame:
    """The share of each factor (columns `factors` of the frame) in `value`: a table of "PED-ANOVA" and "fANOVA".

    Every run with a value is a trial, its factors categories. PED-ANOVA (Watanabe, Bansal and Hutter 2023) asks what
    sets the best tenth of the trials apart, fANOVA (Hutter, Hoos and Leyton-Brown 2014) what share of the variance of
    all a random forest lays to each factor alone: what is missing to 1 it lays to factors together. PED-ANOVA's are
    shares of 1. `value` is to be of validation. Factors without two levels have none; an empty table for too few
    trials.
    """
    runs = frame[value.notna() & frame[factors].notna().all(axis=1)]
    factors = [name for name in factors if runs[name].nunique() > 1]
    if len(runs) < FEWEST or not factors or value[runs.index].nunique() < 2:
        return pd.DataFrame(columns=["PED-ANOVA", "fANOVA"], dtype=float)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if direction == "max" else "minimize")
    space: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted(set(runs[name].astype(str)))) for name in factors
    }
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(zip(factors, levels, strict=True)), distributions=space, value=v)
            for levels, v in zip(runs[factors].astype(str).to_numpy(), value[runs.index], strict=True)
        ]
    )
    evaluators = {"PED-ANOVA": PedAnovaImportanceEvaluator(), "fANOVA": FanovaImportanceEvaluator(seed=0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = {
            name: get_param_importances(study, evaluator=each, normalize=name == "PED-ANOVA")
            for name, each in evaluators.items()
        }
    return pd.DataFrame(shares).reindex(factors)

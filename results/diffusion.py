"""What does diffusion do inside the trained networks of a study: to energy, range, stencils and receptive field?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from results.figures import diffusion as draw
from results.files import CorruptFile
from results.record import ProbeRecord, read_probe
from results.section import Gathered, Section
from results.text import styled

# the fields of a model that its diffusion depends on; another kind of model differs in it too
AXES = {f"model.{name}" for name in ("steps", "kernel", "radius", "symmetric", "time_step", "rate", "grid", "norm")}
MANY = 12  # arms that are drawn; of more, those that differ in diffusion

TEXT = [
    "From forward hooks on the same validation examples for all arms, means over seeds. Energy: the Dirichlet energy "
    "of neighbouring tokens over their variance (Geary's C; Cai and Wang 2020; Rusch et al. 2023), 1 for tokens that "
    "do not depend on their neighbours, towards 0 the smoother. Spread: the share of a state in which its tokens "
    "differ at all, 0 when all are alike (Dong et al. 2021). Depth 0 is the embedded input.",
    "Largest: the largest value of any state. Support: tokens of the effective receptive field of the centre token's "
    "last state (mean absolute Jacobian by the embedded tokens, Luo et al. 2016) above 1 % of its largest.",
    "All of it depends on how a network was trained (rate, label smoothing) as well as on what it is: only arms that "
    "were trained alike tell one from the other.",
]
EXCESS = "Excess (%)"
EXCESS_TEXT = (
    "Excess: how far diffusion alone carried a value beyond its channel's range in its sequence, at most, in per cent "
    "of that range: 0 where diffusion is bounded."
)


def section(gathered: Gathered) -> Section | None:
    """Table and figures of what was probed; None if nothing was."""
    layers, weights, fields, said = gather_probes(gathered)
    if layers.empty:
        return Section("What diffusion does", said) if said else None
    printed = table(layers, fields)
    made = Section("What diffusion does", [*TEXT, *([EXCESS_TEXT] if EXCESS in printed else []), *said])
    made.tables["diffusion"] = printed
    probed = gathered.summary[gathered.summary["arm"].isin(layers["arm"])]
    shown = chosen(gathered, probed)
    left = probed["arm"][~probed["arm"].isin(shown["arm"])]
    trained = layers[layers["state"] == "trained"]
    made.figures["energy"] = draw.by_depth(trained, shown, left)
    made.figures["range"] = draw.ranges(trained, shown, left)
    if not fields.empty:
        made.figures["receptive_field"] = draw.fields(fields, shown, left)
    stencils = None if weights.empty else draw.stencils(weights, shown, left)
    for name, figure in (("stencils", stencils), ("rates", draw.rates(trained, shown, left))):
        if figure is not None:
            made.figures[name] = figure
    return made


def chosen(gathered: Gathered, probed: pd.DataFrame) -> pd.DataFrame:
    """The arms that are drawn: all of a few; of many, references and those that differ from them in diffusion."""
    if len(probed) <= MANY:
        return probed
    differing = {arm["label"] for arm in gathered.manifest.arms if AXES & arm["changes"].keys()}
    return probed[probed["arm"].isin(differing) | probed["is_reference"]]


def gather_probes(gathered: Gathered) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """What the probes of all done runs hold, as long frames: by depth, by offset of a stencil, by offset of a field.

    All have arm, seed and state ("trained", "untrained"). Beside them sentences for what is missing.
    """
    layers: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    fields: list[dict[str, Any]] = []
    said: list[str] = []
    cells = gathered.frame[["arm", "seed", "run_id"]]
    for cell in cells[gathered.frame["status"] == "done"].to_dict("records"):
        try:
            record = read_probe(gathered.runs, cell["run_id"])
        except CorruptFile as error:
            said.append(f"{cell['arm']}, seed {cell['seed']}: {error}.")
            continue
        if record is not None and record.weights_hash != gathered.records[cell["run_id"]].weights_hash:
            said.append(f"{cell['arm']}, seed {cell['seed']}: probed with former weights, so left out.")
            continue
        if record is not None and record.reason:
            said.append(f"{cell['arm']}: {record.reason}.")
        for state in ("trained", "untrained"):
            seen = getattr(record, state, {})
            base = {"arm": cell["arm"], "seed": cell["seed"], "state": state}
            for layer in seen.get("layers", ()):
                layers.append(base | _flat(layer))
                for weight in layer.get("stencil", {}).get("weights", ()) if state == "trained" else ():
                    weights.append(base | {"depth": layer["depth"]} | weight)
            if field := seen.get("field"):
                size = {name: field[name] for name in ("support", "tokens")} | {"line": field["grid"] is None}
                pairs = zip(field["offsets"], field["gradient"], strict=True)
                fields += [base | size | {"offset": offset, "gradient": value} for offset, value in pairs]
    frames = [pd.DataFrame(rows) for rows in (layers, weights, fields)]
    for frame in frames:
        if not frame.empty:
            frame["arm"] = frame["arm"].astype(gathered.frame["arm"].dtype)
    return frames[0], frames[1], frames[2], list(dict.fromkeys(said))


def _flat(layer: dict[str, Any]) -> dict[str, Any]:
    """One entry of `layers`: depth, energy, spread; min, q01, q99, max; the same after diffusion alone; the rate."""
    row = {name: layer[name] for name in ("depth", "energy", "spread")} | layer["range"]
    row |= {f"diffused_{name}": value for name, value in layer.get("diffusion", {}).items()}
    rate = layer.get("rate", {})
    return row | {"rate": rate.get("median"), "rate_q25": rate.get("q25"), "rate_q75": rate.get("q75")}


def table(layers: pd.DataFrame, fields: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, means over seeds; the support also of the untrained network, where that was asked for."""
    printed = []
    for (arm, state), rows in layers.groupby(["arm", "state"], observed=True):
        if state == "untrained":
            continue
        last = rows[rows["depth"] == rows["depth"].max()]
        field = fields[fields["arm"] == arm].groupby(["state", "seed"])[["support", "tokens"]].first()
        line: dict[str, Any] = {
            "Arm": str(arm),
            "n": rows["seed"].nunique(),
            "Energy, input": f"{rows.loc[rows['depth'] == 0, 'energy'].mean():.2f}",
            "Energy, last layer": f"{last['energy'].mean():.2f}",
            "Spread, last layer": f"{last['spread'].mean():.2f}",
            "Largest": f"{rows[['min', 'max']].abs().max(axis=1).groupby(rows['seed']).max().mean():.1f}",
            EXCESS: _excess(rows),
            "Support (tokens)": f"{field['support']['trained'].mean():.1f} of {field['tokens']['trained'].mean():.0f}",
        }
        if "untrained" in field.index:
            line["Support, untrained"] = f"{field['support']['untrained'].mean():.1f}"
        printed.append(line)
    found = pd.DataFrame(printed).fillna("–")
    return found.drop(columns=EXCESS) if (found[EXCESS] == "–").all() else found


def _excess(rows: pd.DataFrame) -> str:
    if "diffused_excess" not in rows or rows["diffused_excess"].isna().all():
        return "–"
    return f"{100 * rows.groupby('seed')['diffused_excess'].max().mean():.1f}"


def print_probes(console: Console, records: Sequence[ProbeRecord], labels: Mapping[str, str]) -> None:
    """A row for each network just looked into, `labels` saying what each run is called; why others could not be."""
    shown = Table("run", "", "layers", "energy", "largest", "excess", "support", box=None)
    for one in records:
        if one.reason:
            continue
        layers, field = one.trained["layers"], one.trained["field"]
        largest = max(max(-layer["range"]["min"], layer["range"]["max"]) for layer in layers)
        beyond = [layer["diffusion"]["excess"] for layer in layers if "diffusion" in layer]
        shown.add_row(
            one.run_id[:8], styled(labels[one.run_id]), str(len(layers) - 1),
            f"{layers[0]['energy']:.2f} to {layers[-1]['energy']:.2f}", f"{largest:.3g}",
            f"{max(beyond):.1%}" if beyond else "", f"{field['support']:.3g} of {field['tokens']:.3g}",
        )  # fmt: skip
    console.print(shown)
    for reason in dict.fromkeys(one.reason for one in records if one.reason):
        console.print(styled(reason, "yellow"))

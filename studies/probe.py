"""What does diffusion do inside a trained network: to the tokens' energy, their range, and how far a token sees?

All of it is seen from outside, through forward hooks, on a fixed batch of validation examples. Of a state h (N, D)
whose neighbouring tokens i ~ j are those of its line or grid (E edges):

    energy   (N - 1) sum_{i~j} |h_i - h_j|^2 / (2 E sum_i |h_i - mean|^2)
             the Dirichlet energy of over-smoothing (Cai and Wang 2020, arXiv 2006.13318; Rusch et al. 2023,
             arXiv 2303.10993) over the tokens' variance: Geary's C (Geary 1954). 1 for tokens that do not depend
             on their neighbours, towards 0 the smoother they are along the line.
    spread   sum_i |h_i - mean|^2 / sum_i |h_i|^2
             the share of the state in which tokens differ at all; 0 when all are alike (the residual of rank collapse
             in Dong et al. 2021, arXiv 2103.03404).
    field    mean |d out_c / d in_i| of the centre token c's last state by the embedded tokens i, over channels and
             examples: the effective receptive field (Luo et al. 2016, arXiv 1701.04128); its support counts the
             tokens above 1 % of the largest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from baselines.rnn import RNN
from ldn.classifier import Classifier, Stem, real_positions
from ldn.published import ConvHeat, DenseHeat
from ldn.terms import Conductance, DenseDiffusion, Diffusion, TimeStepRate
from results.entries import Layer, ProbedNetwork, ReceptiveField
from results.record import ProbeRecord, RunRecord, read_probe, write_probe
from studies.checkpoint import Weights
from studies.provenance import provenance
from studies.schedule import derived_seed
from studies.spec import RunSpec, from_plain
from studies.stored import restored, weights
from studies.tasks.task import Data, Split, Task, loaded
from studies.train import Place

FIELD_EXAMPLES, FIELD_CHANNELS = 8, 32  # enough for a mean; a backward pass for every output channel
SUPPORT = 0.01
NEAR = 8  # offsets of a dense kernel that are told, on each side
DIFFUSIONS = (Diffusion, DenseDiffusion, DenseHeat, ConvHeat)


def probed(
    records: Sequence[RunRecord], place: Place, examples: int = 32, untrained: bool = False
) -> Iterator[ProbeRecord]:
    """Look into the networks of finished runs, and write what is seen beside each.

    What is stored of as many examples of the same data and weights is kept. Raises ValueError if weights are missing.
    """
    torch.set_num_threads(place.threads)
    last: dict[Task, Data] = {}  # one data set at a time
    for record in records:
        spec = from_plain(record.spec)
        stored = weights(place.runs, record)
        if spec.task not in last:
            last = {spec.task: loaded(spec.task, place.data)}
        yield _probed(record, spec, stored, last[spec.task], place, examples, untrained)


def _probed(
    record: RunRecord, spec: RunSpec, stored: Weights, data: Data, place: Place, examples: int, untrained: bool
) -> ProbeRecord:
    device = torch.device(place.device)
    result = ProbeRecord(run_id=record.run_id, examples=min(examples, len(data.valid)), data=data.provenance)
    result.weights_hash, result.provenance = record.weights_hash, provenance(device, place.threads)
    former = read_probe(place.runs, record.run_id)
    kept = ("examples", "data", "weights_hash")
    batch = first(data.valid, examples).to(device)
    network = restored(spec, stored)
    if former is not None and all(getattr(former, name) == getattr(result, name) for name in kept):
        depths = 1 + len(_stack(network)) if isinstance(network, Classifier) else 0
        if len(former.trained.get("layers", ())) == depths:  # it was once one for all layers of an RNN
            result = dataclasses.replace(former)
    if not isinstance(network, Classifier):
        result.reason = f"the model {spec.model.name!r} has no tokens and no layers to look at"
    else:
        result.trained = result.trained or seen(network.to(device), spec, batch)
        if untrained and not result.untrained:
            torch.manual_seed(derived_seed(spec.seed, "init"))
            fresh = spec.model.build(spec.task.input, spec.task.target).eval()
            assert isinstance(fresh, Classifier)
            result.untrained = seen(fresh.to(device), spec, batch)
    if result != former:
        write_probe(place.runs, result)
    return result


def first(split: Split, count: int) -> Split:
    lengths = None if split.lengths is None else split.lengths[:count]
    return Split(split.x[:count], lengths, split.y[:count])


def seen(network: Classifier, spec: RunSpec, batch: Split) -> ProbedNetwork:
    """`layers` and `field` of a network, as in a ProbeRecord."""
    x = spec.task.prepare(batch.x)
    part = slice(0, FIELD_EXAMPLES)
    lengths = None if batch.lengths is None else batch.lengths[part]
    return {"layers": layers(network, x, batch.lengths), "field": field(network, x[part], lengths)}


# --- by layer -----------------------------------------------------------------------------------


@torch.no_grad()
def layers(network: Classifier, x: Tensor, lengths: Tensor | None) -> list[Layer]:
    """Energy, spread and range of the embedded input and after every layer; what each layer's diffusion did."""
    stem, stack = network.stem, _stack(network)
    outputs: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    rnn = network.backbone if isinstance(network.backbone, RNN) else None

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[module] = (inputs[0], output)
        if module is rnn:  # its layers are one operation of PyTorch, which shows the last alone
            h, lengths = inputs
            for layer in stack:
                before, h = h, layer(h, lengths)
                outputs[layer] = (before, h)

    watched = (Stem, RNN, *DIFFUSIONS, TimeStepRate, Conductance)
    with hooked([m for m in network.modules() if isinstance(m, watched) or m in stack], keep):
        network(x, lengths)
    found: list[Layer] = []
    for depth, module in enumerate((stem, *stack)):
        state = outputs[module][1]
        real = _real(state, stem, lengths)
        entry: Any = {"depth": depth, **smoothness(state, real, stem), "range": value_range(state, real)}
        for part in module.modules() if depth else ():
            if isinstance(part, DIFFUSIONS):
                before, after = outputs[part]
                after = after if isinstance(part, Diffusion | DenseDiffusion) else before + after
                entry["diffusion"] = {**value_range(after, real), "excess": excess(before, after, real)}
                entry["stencil"] = stencil(part, outputs)
                rate = part.dt if isinstance(part, DenseHeat | ConvHeat) else outputs[part.rate][1]
                entry["rate"] = quartiles(rate)
        found.append(entry)
    return found


@contextmanager
def hooked(modules: list[nn.Module], keep: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stack(network: Classifier) -> list[nn.Module]:
    """The layers of a backbone: its list of them or, of an RNN, copies of them; else the whole of it."""
    if isinstance(network.backbone, RNN):
        return list(network.backbone.layers())
    lists = [module for module in network.backbone.children() if isinstance(module, nn.ModuleList)]
    return list(lists[0]) if lists else [network.backbone]


def _real(state: Tensor, stem: Stem, lengths: Tensor | None) -> Tensor:
    """Which tokens (B, N) hold real input: neither padding nor a class token."""
    real = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
    if stem.cls is not None:
        real[:, 0] = False
    if lengths is not None:
        real &= real_positions(lengths + (stem.cls is not None), state.shape[1])
    return real


def smoothness(state: Tensor, real: Tensor, stem: Stem) -> dict[str, float]:
    """Mean over examples of `energy` and `spread`; both 0 for a state that is the same everywhere."""
    each = []
    for h, mine in zip(state.double(), real, strict=True):
        h = h[mine]
        grid = stem.token_grid
        lattice = h[None] if grid is None or grid[0] * grid[1] != len(h) else h.view(*grid, -1)
        steps = [lattice.diff(dim=axis) for axis in (0, 1)]
        edges = sum(step.shape[0] * step.shape[1] for step in steps)
        dirichlet = sum(float(step.square().sum()) for step in steps)
        deviation, norm = float((h - h.mean(0)).square().sum()), float(h.square().sum())
        alike = deviation <= 1e-12 * norm  # what rounding leaves of a constant state
        each.append(
            (0.0 if alike else (len(h) - 1) * dirichlet / (2 * edges * deviation), deviation / max(norm, 1e-300))
        )
    energy, spread = np.mean(each, axis=0)
    return {"energy": float(energy), "spread": float(spread)}


def value_range(state: Tensor, real: Tensor) -> dict[str, float]:
    """Smallest and largest value and the 1 % and 99 % quantiles, over examples, real tokens and channels."""
    values = state[real].float().cpu().numpy()
    low, high = np.quantile(values, (0.01, 0.99))
    return {"min": float(values.min()), "q01": float(low), "q99": float(high), "max": float(values.max())}


def excess(before: Tensor, after: Tensor, real: Tensor) -> float:
    """How far diffusion alone carries a value beyond its channel's range over the tokens of its example, at most.

    In parts of that range: 0 for a bounded diffusion, up to rounding.
    """
    padding = ~real[..., None]
    low = before.masked_fill(padding, torch.inf).amin(1, keepdim=True)
    high = before.masked_fill(padding, -torch.inf).amax(1, keepdim=True)
    beyond = torch.maximum(after - high, low - after).clamp_min(0).masked_fill(padding, 0)
    return float((beyond / (high - low).clamp_min(1e-6)).max())


def quartiles(values: Tensor) -> dict[str, float]:
    numbers = values.detach().float().cpu().numpy()
    low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75))
    return {"mean": float(numbers.mean()), "q25": float(low), "median": float(median), "q75": float(high)}


def stencil(module: nn.Module, outputs: dict[nn.Module, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Weights by offset, over channels (of dense kernels over tokens, adaptive ones over edges), and the dilations."""
    if isinstance(module, Diffusion):
        uniform = torch.full((len(module.offsets), 1), 1 / len(module.offsets))
        table = uniform if module.weights is None else module.weights()
        if module.conductance is not None:
            edges = outputs[module.conductance][1]  # (B, *grid, E)
            table = table.to(edges) * edges.flatten(0, -2).T
        dilations = module.dilations()
        return _by_offset(module.offsets, list(table), dilations)
    if isinstance(module, ConvHeat):
        return _by_offset([(-1,), (0,), (1,)], list(module.conv.weight[:, 0].T), [1])
    assert isinstance(module, DenseDiffusion | DenseHeat)
    kernel = softplus(module.theta) if isinstance(module, DenseHeat) else torch.softmax(module.logits, dim=-1)
    reach = range(-min(NEAR, len(kernel) - 1), min(NEAR, len(kernel) - 1) + 1)
    steps = module.steps if isinstance(module, DenseDiffusion) else 1
    return _by_offset([(d,) for d in reach], [kernel.diagonal(d) for d in reach], [1] * steps)


def _by_offset(offsets: list[tuple[int, ...]], rows: list[Tensor], dilations: list[int]) -> dict[str, Any]:
    weights = [{"offset": list(o), **quartiles(row)} for o, row in zip(offsets, rows, strict=True)]
    return {"weights": weights, "dilations": dilations}


# --- the receptive field ------------------------------------------------------------------------


def field(network: Classifier, x: Tensor, lengths: Tensor | None) -> ReceptiveField:
    """The effective receptive field of the centre token, by the distance of a token from it (on a grid: in rows or
    columns, whichever are more) and, on a line, its sign; how many tokens it holds, of how many.
    """
    stem = network.stem
    front = 0 if stem.cls is None else 1
    with torch.no_grad():
        h = stem(x)
    h.requires_grad_()
    inner = None if lengths is None else lengths + front
    with torch.backends.cudnn.flags(enabled=False):  # its recurrences have no backward pass in evaluation
        out = network.backbone(h, inner)
    tokens = h.shape[1] - front
    grid = stem.token_grid
    sizes = torch.full((len(h),), tokens, device=h.device) if lengths is None else lengths
    centre = sizes // 2 if grid is None else torch.full_like(sizes, grid[0] // 2 * grid[1] + grid[1] // 2)
    rows = out[torch.arange(len(h), device=h.device), centre + front]  # (B, D)
    channels = torch.linspace(0, rows.shape[1] - 1, min(FIELD_CHANNELS, rows.shape[1])).round().long().tolist()
    total = torch.zeros_like(h[..., 0])
    for channel in channels:
        (gradient,) = torch.autograd.grad(rows[:, channel].sum(), h, retain_graph=True)
        total += gradient.abs().mean(-1)
    strength = (total[:, front:] / len(channels)).double().cpu().numpy()
    place = np.arange(tokens)[None] - centre.cpu().numpy()[:, None]  # (B, N)
    if grid is not None:
        down, right = np.divmod(np.arange(tokens), grid[1])
        place = np.maximum(abs(down - grid[0] // 2), abs(right - grid[1] // 2))[None].repeat(len(h), 0)
    here = np.arange(tokens)[None] < sizes.cpu().numpy()[:, None]
    offsets = np.unique(place[here])
    by_offset = [float(strength[here & (place == offset)].mean()) for offset in offsets]
    support = [int((row[mine] > SUPPORT * row[mine].max()).sum()) for row, mine in zip(strength, here, strict=True)]
    return {
        "offsets": offsets.tolist(),
        "gradient": by_offset,
        "support": float(np.mean(support)),
        "tokens": float(sizes.double().mean()),
        "grid": None if grid is None else list(grid),
    }

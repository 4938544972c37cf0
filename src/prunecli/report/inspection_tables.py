"""What `prune inspect` shows: figures of a network, its history, its layers, and MACs by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from prunecli.report.energy_tables import NEURON_COLUMNS, energy_rows, neuron_rows
from prunecli.report.numbers import count, macs, size
from prunecli.report.pruning_tables import reconstruction_tables, repair_tables, scoring_tables
from prunecli.report.schema import Metrics, NeuronRates
from prunecli.report.table import Table


class _Layer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dense_shape(self) -> tuple[int, ...]: ...
    @property
    def params(self) -> int: ...
    @property
    def zeros(self) -> int: ...
    @property
    def macs(self) -> int: ...


class _Macs(Protocol):
    @property
    def total(self) -> int: ...
    @property
    def uncounted(self) -> tuple[str, ...]: ...


class _Data(Protocol):
    name: str
    images: int


class _Step(Protocol):
    """One entry of a manifest's history."""

    stage: str
    command: str
    seed: int
    parent: str | None
    figures: dict[str, Any]
    parent_weights: dict[str, Any]

    @property
    def data(self) -> _Data | None: ...


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def intact(self) -> bool: ...


class _Module(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def params(self) -> int: ...
    @property
    def macs(self) -> int: ...
    @property
    def fvcore_macs(self) -> int: ...
    @property
    def difference(self) -> float: ...


def network_table(
    ref: str,
    input_shape: Sequence[int],
    layers: Sequence[_Layer],
    counted: _Macs,
    time_steps: int | None,
    sha256: str | None,
    nonzero: tuple[int, int] | None = None,
    tokenizer: tuple[int, int] | None = None,
    stored: Mapping[str, int] | None = None,
) -> Table:
    """Figures of a whole network.

    Args:
        ref: The architecture, "source:name".
        input_shape: Shape of one sample.
        layers: Every layer with parameters.
        counted: MACs of one sample.
        time_steps: Time steps of a spiking network.
        sha256: Hash of its file, if it came from one.
        nonzero: Of a network with masked weights, the parameters that are not zero, and all of them.
        tokenizer: Of one that has a tokenizer in its file, its tokens and bytes.
        stored: Of one in half precision, how many parameters its file has in each type.
    """
    params, zeros = sum(layer.params for layer in layers), sum(layer.zeros for layer in layers)
    rows = [
        ("architecture", ref),
        ("input", "x".join(map(str, input_shape))),
        ("parameters", count(params)),
        *([("stored as", ", ".join(f"{name} {count(number)}" for name, number in stored.items()))] if stored else []),
        ("zeros", f"{100 * zeros / max(params, 1):.2f} %"),
        *([("parameters not zero", _of_all(*nonzero))] if nonzero else []),
        ("MACs", macs(counted.total, counted.uncounted)),
        *([("time steps, in MACs too", str(time_steps))] if time_steps else []),
        *([("not counted in MACs", ", ".join(counted.uncounted))] if counted.uncounted else []),
        *([("tokenizer", f"{tokenizer[0]:,} tokens, {size(tokenizer[1])}")] if tokenizer else []),
        ("layers changed", f"{len(_changed(layers))} of {len(layers)}"),
        ("sha256", sha256 or "-"),
    ]
    return Table(("figure", "value"), rows)


def history_tables(steps: Sequence[_Step], methods: Sequence[str]) -> list[Table]:
    """One table for each stage that a checkpoint went through.

    Args:
        steps: The manifest's history.
        methods: For each step the method with its parameters; empty where the stage has none.
    """
    tables = []
    for number, (step, method) in enumerate(zip(steps, methods, strict=True), start=1):
        data = f"{step.data.images} images of {step.data.name}" if step.data else "no data"
        rows = [("made with", step.command), ("seed", str(step.seed)), ("data", data)]
        rows += [("parent", step.parent)] if step.parent else []
        rows += [(f"its {name}", ", ".join(_words(value))) for name, value in step.parent_weights.items()]
        rows += [row for key, value in step.figures.items() for row in _figure_rows(key, value)]
        tables.append(Table((f"{number}. {step.stage}", method), rows))
    return tables


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def layer_tables(layers: Sequence[_Layer], *, everything: bool) -> list[Table]:
    """Layers with their widths, or only those that changed; no table where there are none."""
    rows = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.dense_shape)),
            "x".join(map(str, layer.shape)),
            count(layer.params),
            f"{100 * layer.zeros / max(layer.params, 1):.1f} %",
            count(layer.macs),
        )
        for layer in (layers if everything else _changed(layers))
    ]
    columns = ("layer", "kind", "dense", "now", "parameters", "zeros", "MACs")
    return [Table(columns, rows, numeric=(4, 5, 6))] if rows else []


def firing_tables(
    neurons: Sequence[NeuronRates], metrics: Metrics, formula: str | None, *, everything: bool
) -> list[Table]:
    """Firing rates by layer of neurons, then energy.

    Args:
        neurons: Layers of neurons.
        metrics: Figures that include energy.
        formula: How energy follows from operations.
        everything: Whether all silent and saturated channels are listed, or only the first few.
    """
    return [
        Table(NEURON_COLUMNS, neuron_rows(neurons, everything=everything), numeric=(1, 2, 3)),
        Table(("figure", "value"), energy_rows(metrics, formula)),
    ]


def verification_table(tensors: Sequence[_Tensor]) -> Table:
    """Every tensor of a checkpoint, and whether its bytes match the recorded hash."""
    rows = [(tensor.name, count(tensor.size), "ok" if tensor.intact else "damaged") for tensor in tensors]
    return Table(("tensor", "bytes", "state"), rows, numeric=(1,))


def module_table(modules: Sequence[_Module]) -> Table:
    """Parameters and MACs by module, children included, with fvcore's count next to ours."""
    rows = [
        (
            module.name or "(network)",
            module.kind,
            count(module.params),
            count(module.macs),
            count(module.fvcore_macs),
            f"{100 * module.difference:+.1f} %" if module.difference else "",
        )
        for module in modules
    ]
    return Table(("module", "kind", "parameters", "MACs", "MACs by fvcore", "difference"), rows, numeric=(2, 3, 4, 5))


def disagreement_note(reasons: Mapping[str, str], tolerance: float) -> str:
    """One line about the modules whose two counts differ.

    Args:
        reasons: By module name, why they differ.
        tolerance: Share by which counts may differ before a module is named.
    """
    if not reasons:
        return f"fvcore's MACs agree with ours to {100 * tolerance:g} % in every module"
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name or "(network)")
    parts = [f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()]
    return f"fvcore's MACs differ from ours by more than {100 * tolerance:g} % in {'; '.join(parts)}"


def _changed(layers: Sequence[_Layer]) -> list[_Layer]:
    return [layer for layer in layers if layer.shape != layer.dense_shape]


def _of_all(nonzero: int, params: int) -> str:
    return f"{count(nonzero)} ({100 * nonzero / max(params, 1):.2f} %), masked ones are held at zero"


def _figure_rows(key: str, value: Any) -> list[tuple[str, str]]:
    """Rows for one figure of a step; long lists are for `--json`."""
    name = key.replace("_", " ")
    if value in ({}, []):
        return []
    if key == "scoring":
        return [(row[0], row[1]) for table in scoring_tables(value) for row in table.rows]
    if key == "repairs":
        trials = repair_tables([SimpleNamespace(**trial) for trial in value])[0].rows
        return [("repair", f"{trials[0][0]}; {len(trials)} were compared")]
    if key == "reconstruction":
        return [(row[0], row[1]) for table in reconstruction_tables(value) for row in table.rows]
    if isinstance(value, list) and isinstance(value[0], dict):
        return [(name, f"{len(value)} entries, the last one {_figure(value[-1])}")]
    return [(name, _figure(value))]


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(entry)}" for key, entry in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""Reports, comparisons, gates and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunecli.errors import RecipeError
from prunecli.report.comparison import Gate, compare_reports
from prunecli.report.schema import DataInfo, Latency, Metrics, ModelInfo, Report, read_report
from prunecli.report.tables import comparison_table, count, plain_table, size


def _report(**metrics: object) -> Report:
    return Report(model=ModelInfo(ref="cifar:resnet20", input_shape=(3, 32, 32)), metrics=Metrics(**metrics))


def _latency(median: float) -> Latency:
    return Latency(median=median, interval=(median, median), batch_size=1, runs=30)


BASE = _report(top1=90.0, loss=0.5, params=1000, macs=2000, latency_ms=_latency(10.0), size_bytes=4000)
SMALL = _report(top1=88.5, loss=0.75, params=400, macs=1000, latency_ms=_latency(4.0), size_bytes=1600)


def test_ratios_drops_and_speed_up() -> None:
    candidate = compare_reports(["a", "b"], [BASE, SMALL]).candidates[0]
    assert candidate.top1_drop == 1.5 and candidate.loss_rise == 0.25
    assert (candidate.params_ratio, candidate.macs_ratio, candidate.latency_ratio) == (0.4, 0.5, 0.4)
    assert candidate.speedup == 2.5 and candidate.size_ratio == 0.4
    assert candidate.peak_memory_ratio is None


def test_drops_of_a_segmenter() -> None:
    dense, pruned = _report(miou=40.0, pixel_accuracy=80.0), _report(miou=37.5, pixel_accuracy=81.0)
    comparison = compare_reports(["a", "b"], [dense, pruned])
    assert (comparison.candidates[0].miou_drop, comparison.candidates[0].pixel_accuracy_drop) == (2.5, -1.0)
    assert Gate("miou_drop > 2").holds(comparison.candidates[0])
    assert "| mIoU | 40.00 % | 37.50 % (-2.50) |" in comparison_table(comparison).to_markdown()
    plain = plain_table(comparison)
    assert dict(zip(plain.columns, plain.rows[1], strict=True))["miou"] == "37.5"


def test_accuracies_of_different_tasks_are_no_drop_and_no_pass() -> None:
    """A linear probe is not better than zero-shot classification by so many points."""

    def of(task: str, top1: float) -> Report:
        info = DataInfo(name="digits", split="test", images=360, fingerprint="0", task=task)
        return _report(top1=top1, loss=1.0, macs=10).model_copy(update={"data": info})

    comparison = compare_reports(["a", "b"], [of("zeroshot", 10.0), of("linear-probe", 91.0)])
    assert comparison.candidates[0].top1_drop is None and comparison.candidates[0].loss_rise is None
    assert comparison.candidates[0].macs_ratio == 1.0
    assert "b: its accuracy is that of linear-probe, the baseline's of zeroshot" in comparison.notes
    with pytest.raises(RecipeError, match="top1_drop of b was not measured"):
        Gate("top1_drop > 1").holds(comparison.candidates[0])
    same = compare_reports(["a", "b"], [of("zeroshot", 10.0), of("zeroshot", 9.0)])
    assert same.candidates[0].top1_drop == 1.0


def test_figures_of_another_text_are_marked() -> None:
    def of(fingerprint: str) -> Report:
        info = DataInfo(name="text:a", split="test", images=9, fingerprint=fingerprint, task="word-language")
        return _report(loss=1.0, perplexity=2.7, tokens=99).model_copy(update={"data": info})

    notes = compare_reports(["a", "b"], [of("0"), of("1")]).notes
    marked = "b: its figures were measured on another text, or with another vocabulary, than the baseline's"
    assert marked in notes and not any("accuracy" in note for note in notes)


def test_ratios_of_spiking_networks() -> None:
    figures = {"timesteps": 4, "firing_rate": 0.2, "synops": 2e6, "energy_nj": 3000.0, "connection_sparsity": 0.0}
    dense = _report(**figures, integer_energy_nj=2000.0, activation_sparsity=0.8, footprint_bytes=4096, energy_images=8)
    half = {"firing_rate": 0.15, "synops": 1e6, "energy_nj": 1200.0, "connection_sparsity": 0.5, "timesteps": 2}
    pruned = _report(**half, integer_energy_nj=500.0, activation_sparsity=0.85, footprint_bytes=1024, energy_images=4)
    comparison = compare_reports(["a", "b"], [dense, pruned])
    candidate = comparison.candidates[0]
    assert (candidate.synops_ratio, candidate.energy_ratio, candidate.integer_energy_ratio) == (0.5, 0.4, 0.25)
    assert candidate.firing_rate_ratio == pytest.approx(0.75) and candidate.footprint_ratio == 0.25
    assert candidate.connection_sparsity_rise == 0.5
    assert Gate("synops_ratio <= 0.5 and activation_sparsity_rise > 0.04").holds(candidate)
    table = comparison_table(comparison).to_markdown()
    assert "| energy (45 nm) | 3.000 uJ | 1.200 uJ (x0.400) |" in table
    assert "| connection sparsity | 0.00 % | 50.00 % (+50.00) |" in table
    assert "b: its 2 time steps are not the baseline's 4, so neither are its MACs" in comparison.notes
    assert "b: its spikes were counted on another number of images than the baseline's" in comparison.notes
    plain = plain_table(comparison)
    assert dict(zip(plain.columns, plain.rows[1], strict=True))["energy_nj"] == "1200.0"
    ann = compare_reports(["a", "b"], [_report(energy_nj=6000.0), dense]).candidates[0]
    assert (ann.energy_ratio, ann.integer_energy_ratio, ann.synops_ratio) == (0.5, pytest.approx(1 / 3), None)


def test_a_paired_ratio_wins_over_two_medians() -> None:
    comparison = compare_reports(["a", "b"], [BASE, SMALL], [(1.0, (1.0, 1.0)), (0.8, (0.7, 0.9))])
    assert comparison.candidates[0].speedup == 1.25 and comparison.paired_latency
    assert "1.25x [1.11, 1.43]" in comparison_table(comparison).to_markdown()


def test_a_report_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(BASE.to_json())
    assert read_report(path) == BASE
    document = json.loads(path.read_text())
    assert document["metrics"]["top1"] == 90.0 and document["metrics"]["latency_ms"]["median"] == 10.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "other/2"}', "schema is 'other/2', expected 'prunecli.report/1'"),
        ("[]", "schema is None"),
        ("{", "not a readable JSON report"),
        ('{"schema": "prunecli.report/1", "metrics": {}}', "model"),
    ],
)
def test_another_schema_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        read_report(path)
    with pytest.raises(RecipeError, match=r"missing\.json"):
        read_report(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("top1_drop > 1.0", True),
        ("top1_drop > 1.5", False),
        ("top1_drop > 5 or macs_ratio >= 0.5", True),
        ("top1_drop > 1 and not (macs_ratio < 0.6)", False),
        ("0.3 < params_ratio < 0.5", True),
        ("-top1_drop < -1", True),
        ("speedup == 2.5", True),
    ],
)
def test_gates(text: str, holds: bool) -> None:
    assert Gate(text).holds(compare_reports(["a", "b"], [BASE, SMALL]).candidates[0]) is holds


@pytest.mark.parametrize(
    "text",
    ["", "top1_drop", "1", "top1_drop > 'a'", "f(1) > 2", "top1_drop + 1 > 2", "top1_drop.real > 1",
     "(lambda: 1)() > 0", "top1_drop in (1,)", "True > 0", "[1] > 0", "top1_drop > 1;", "(" * 500],
)  # fmt: skip
def test_a_gate_is_nothing_but_comparisons(text: str) -> None:
    with pytest.raises(RecipeError, match=r"not a valid condition|unknown figure"):
        Gate(text)


def test_a_gate_on_what_was_not_measured_is_an_error_not_a_pass() -> None:
    candidate = compare_reports(["a", "b"], [BASE, _report(params=1)]).candidates[0]
    with pytest.raises(RecipeError, match="top1_drop of b was not measured"):
        Gate("top1_drop > 1").holds(candidate)
    with pytest.raises(RecipeError, match="did you mean 'top5_drop', 'top1_drop' or"):
        Gate("top_drop > 1")


def test_tables_hold_what_was_measured() -> None:
    comparison = compare_reports(["a", "b"], [BASE, SMALL])
    rows = {row[0]: row[1:] for row in comparison_table(comparison).rows}
    assert rows["top-1"] == ("90.00 %", "88.50 % (-1.50)")
    assert "peak memory" not in rows
    assert rows["speed-up"] == ("1.00x", "2.50x, unpaired")
    csv = plain_table(comparison).to_csv().splitlines()
    assert len(csv) == 3 and csv[0].startswith("name,top1,") and csv[2].startswith("b,88.5,")


def test_numbers_for_people() -> None:
    assert [count(v) for v in (None, 12, 1234, 4.5e6, 2e9)] == ["-", "12", "1.23k", "4.50M", "2.00G"]
    assert [size(v) for v in (10, 2048, 3 * 2**20)] == ["10 B", "2.00 KiB", "3.00 MiB"]


def test_texts_in_other_tokens_are_compared_by_what_tokens_stand_for() -> None:
    """Perplexity of parts of words and of characters are different things; bits for a character are the same."""

    def report(task: str, **figures: float) -> Report:
        info = DataInfo(name="text:a", split="test", images=9, fingerprint=task, task=task)
        return Report(model=ModelInfo(ref="lm:lstm", input_shape=(9,)), data=info, metrics=Metrics(tokens=9, **figures))

    base = report("character-language", perplexity=4.0, bits_per_character=2.0, loss=1.4)
    other = report("token-language", perplexity=30.0, bits_per_character=2.5, bits_per_byte=2.5, loss=3.4)
    candidate = compare_reports(["a", "b"], [base, other]).candidates[0]
    assert candidate.bits_per_character_rise == pytest.approx(0.5)
    assert candidate.perplexity_rise is None and candidate.loss_rise is None and candidate.bits_per_byte_rise is None

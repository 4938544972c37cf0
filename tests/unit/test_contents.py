"""What weights files hold, read without building a network, and what differs between two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import prunecli
from prunecli.checkpoint.contents import contents_of, digests, kept_channels
from prunecli.checkpoint.manifest import Edit
from prunecli.errors import ModelError
from prunecli.models.loading import load_reference, save
from prunecli.report.contents_tables import ranges, tree_table
from prunecli.studies.contents import difference_of
from prunecli.studies.methods_used import method_of

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"a.{number}.weight": (torch.randn(5, 3) * 2).to(kind) for number, kind in enumerate(TYPES)}
    tensors["a.1.weight"][0] = torch.tensor([0.0, -0.0, 1e-45])  # the last one is no zero
    return tensors | {"odd": torch.zeros(3, dtype=torch.uint8), "scalar": torch.tensor(0.0), "b": torch.ones(2)}


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_tensors_of_a_file_are_those_that_were_saved(tmp_path: Path, form: str) -> None:
    tensors, path = _tensors(), tmp_path / f"x.{form}"
    save_file(tensors, path) if form == "safetensors" else torch.save({"state_dict": tensors}, path)
    contents = contents_of(path, zeros=True)
    assert set(contents.tensors) == set(tensors) and contents.manifest is None and contents.kept() == {}
    for name, tensor in tensors.items():
        stored = contents.tensors[name]
        assert stored.shape == tuple(tensor.shape) and f"torch.{stored.dtype}" == str(tensor.dtype)
        assert stored.size == tensor.numel() * tensor.element_size()
        assert stored.zeros == int((tensor == 0).sum()), name
    assert all(tensor.zeros is None for tensor in contents_of(path).tensors.values())


def test_both_formats_give_one_digest(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    files = [contents_of(tmp_path / name) for name in ("x.safetensors", "x.pt")]
    assert digests(files[0], list(tensors)) == digests(files[1], list(tensors))
    assert difference_of(*files).alike


def test_what_differs_is_found_in_shape_type_and_single_bits(tmp_path: Path) -> None:
    first = {
        "same": torch.ones(2),
        "bits": torch.zeros(3),
        "shape": torch.ones(4),
        "type": torch.ones(2),
        "old": torch.ones(1),
    }
    second = {
        "same": torch.ones(2),
        "bits": torch.tensor([0.0, -0.0, 0.0]),
        "shape": torch.ones(3),
        "type": torch.ones(2).half(),
        "new": torch.ones(1),
    }
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    difference = difference_of(contents_of(tmp_path / "a.safetensors"), contents_of(tmp_path / "b.safetensors"))
    document = difference.document()
    assert (document["only_first"], document["only_second"], document["values"]) == (["old"], ["new"], ["bits"])
    assert document["shape"] == {"shape": [[4], [3]]} and document["dtype"] == {"type": ["float32", "float16"]}
    assert document["same"] == 1 and not difference.alike
    rows = {row[0]: row[3] for row in difference.tables()[1].rows}
    assert rows == {
        "bits": "values", "shape": "shape", "type": "type", "old": "only in the first", "new": "only in the second",
    }  # fmt: skip


def test_kept_channels_are_those_of_the_network_before_all_edits(tmp_path: Path) -> None:
    """Two prunings, one after the other: channels are named as the dense network numbers them."""
    torch.manual_seed(0)
    dense = load_reference("cifar:resnet20")
    example = torch.randn(1, 3, 32, 32)
    once = prunecli.prune(dense.model, example_inputs=example, ratio=0.25, scope="local")
    twice = prunecli.prune(once.model, example_inputs=example, ratio=0.25, scope="local")
    manifest = dense.manifest.model_copy(update={"edits": [*once.report.edits, *twice.report.edits]})
    path = tmp_path / "p.safetensors"
    save(path, twice.model, manifest)
    kept = contents_of(path).kept()
    assert kept
    before, after = dense.model.state_dict(), twice.model.state_dict()
    for layer, (width, indices) in kept.items():
        name = f"{layer}.weight"
        assert len(before[name]) == width and len(after[name]) == len(indices)
        readers = {"layer1.0.conv1", "layer2.1.conv1"} & {layer}
        if readers:  # whose inputs keep their width
            assert torch.equal(before[name][indices], after[name])
    table = tree_table(list(contents_of(path).tensors.values()), kept)
    row = next(row for row in table.rows if row[0].strip() == "layer1.0.conv1")
    assert row[-1].startswith(f"{len(kept['layer1.0.conv1'][1])} of 16: ")


def test_a_name_that_has_moved_on_to_other_channels_begins_again() -> None:
    edits = [
        Edit(group="g", width_before=4, width_after=2, keep_indices=[1, 3], layers=["a"]),
        Edit(group="g", width_before=8, width_after=1, keep_indices=[5], layers=["a"]),
    ]
    assert kept_channels(edits) == {"a": (8, [5])}
    edits[1] = Edit(group="g", width_before=2, width_after=1, keep_indices=[1], layers=["a"])
    assert kept_channels(edits) == {"a": (4, [3])}


@given(st.sets(st.integers(0, 60)))
def test_ranges_say_exactly_which_indices(indices: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, ranges(sorted(indices), None).split(", ")):
        first, _, last = part.partition("-")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == indices


def test_sums_of_the_tree_are_those_of_its_tensors(tmp_path: Path) -> None:
    tensors = {"a.b.weight": torch.zeros(4, 2), "a.b.bias": torch.ones(4), "a.c": torch.ones(2), "d": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors")
    contents = contents_of(tmp_path / "x.safetensors", zeros=True)
    rows = {row[0].strip(): row for row in tree_table(list(contents.tensors.values()), {}).rows}
    assert rows["(all)"][3:] == ("15", "60 B", "53.33 %") and rows["a.b"][3:] == ("12", "48 B", "66.67 %")
    assert rows["a.b.weight"][1:4] == ("4x2", "float32", "8")
    shallow = tree_table(list(contents.tensors.values()), {}, depth=1)
    assert [row[0].strip() for row in shallow.rows] == ["(all)", "a", "d"]


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ModelError, match="that the file does not hold"):
        contents_of(tmp_path / "x.safetensors")


def test_methods_of_a_history_leave_defaults_out() -> None:
    torch.manual_seed(0)
    from prunecli.checkpoint.manifest import Step

    step = Step(stage="prune", settings={"method": "l1", "params": {"ratio": 0.3, "outputs": []}})
    assert method_of(step) == "l1 ratio=0.3"
    assert method_of(Step(stage="train", settings={"method": "l1", "params": {}})) == ""

"""`prune export`: files that other programs open, which compute what PyTorch computes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import prunecli
from prunecli.exporting.index import FORMATS
from prunecli.models.loading import load_reference, save
from tests.conftest import Prune
from tests.processes import Processes

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DIGITS = ("--data", "digits")
QUICK = ("--latency-rounds", "0")
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
}


@pytest.fixture(scope="module")
def exporters(processes: Processes) -> None:
    """Processes start with the slowest parts of exporters imported."""
    processes.preload("torch.onnx._internal.exporter._core")
    processes.preload("onnxruntime.quantization")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    """A pruned network of images in half of its widths."""
    path = tmp_path_factory.mktemp("pruned")
    words = ("l1", "cifar:resnet20", *DIGITS, "--ratio", "0.5", "--latency-rounds", "2", "-o", "net.safetensors", "-q")
    done = processes.run(words, path)
    assert done.code == 0, done.err
    return path


def inputs(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(7))


def expected(checkpoint: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return prunecli.load(checkpoint)(x)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def test_onnx_of_any_batch_with_integers_beside_it(prune: Prune, exporters: None, folder: Path, tmp_path: Path) -> None:
    checkpoint, out = folder / "net.safetensors", tmp_path / "net.onnx"
    words = ("--int8", "--images", "64", "--latency-rounds", "3", "--json")
    done = prune("export", checkpoint, *DIGITS, "-o", out, *words)
    assert done.code == 0, done.err
    for count in (1, 5):  # neither is a batch that it was traced or compared with
        assert torch.allclose(run_onnx(out, inputs(count)), expected(checkpoint, inputs(count)), rtol=0, atol=1e-4)
    record = json.loads((tmp_path / "net.onnx.json").read_text())
    assert {key: done.json[key] for key in record} == record and record["schema"] == "prunecli.export/1"
    assert record["network"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    by_name = {file["name"]: file for file in record["files"]}
    assert by_name["net.onnx"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert record["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert record["class_names"] == [str(number) for number in range(10)]
    assert record["preprocessing"]["mean"] == [pytest.approx(0.3053, abs=1e-4)]
    assert 0 < record["check"]["relative"] < 1e-4 and record["check"]["batches"] == [1, 3]
    runtimes = [row["runtime"] for row in record["latency"]]
    assert runtimes[:2] == ["PyTorch", "ONNX Runtime"] and runtimes[-1] == "ONNX Runtime, int8"
    assert by_name["net.int8.onnx"]["bytes"] < by_name["net.onnx"]["bytes"]
    metadata = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == record["class_names"] and "export" in metadata["command"]
    _check_scores(prune, checkpoint, record["int8"], tmp_path)


def _check_scores(prune: Prune, checkpoint: Path, int8: dict[str, Any], folder: Path) -> None:
    """Accuracies are those of the files."""
    report = prune("eval", checkpoint, *DIGITS, "--measure", "accuracy", "--json").json["metrics"]
    assert int8["score_name"] == "top1" and int8["single_score"] == pytest.approx(report["top1"], abs=0.3)
    assert int8["images"] == report["images"] == 360 and int8["calibration_images"] == 64 and int8["kind"] == "static"
    other = run_onnx(folder / "net.int8.onnx", inputs(3))
    difference = float((other - expected(checkpoint, inputs(3))).abs().max())
    assert 1e-4 < difference < 2 * float(expected(checkpoint, inputs(3)).abs().max())


def test_openvino_in_single_precision(prune: Prune, exporters: None, folder: Path, tmp_path: Path) -> None:
    if find_spec("openvino") is None:
        pytest.skip("needs openvino")
    FORMATS.load("openvino").require()  # imports it without its telemetry
    import openvino

    checkpoint = folder / "net.safetensors"
    done = prune("export", checkpoint, "-o", "net.xml", *QUICK, "--json", env={"HOME": str(tmp_path)})
    assert done.code == 0, done.err
    assert not (tmp_path / "intel").exists(), "OpenVINO reports nothing"
    assert (tmp_path / "net.bin").stat().st_size >= 4 * done.json["network"]["params"] * 0.9
    compiled = openvino.Core().compile_model(str(tmp_path / "net.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 5):
        found = torch.from_numpy(compiled(inputs(count).numpy())[0])
        assert torch.allclose(found, expected(checkpoint, inputs(count)), rtol=0, atol=1e-4)


_LOADED_BY_TORCH = """
import sys, torch
assert "prunecli" not in sys.modules
module, x = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])
torch.save([module(x)[0], module(x)[0]], sys.argv[3])
"""


def test_a_program_of_torch_begins_every_pass_without_spikes(prune: Prune, spiking_ready: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_reference("spiking:vgg5", width=0.125, num_classes=4, image_size=16, T=3, v_threshold=0.05)
    save(tmp_path / "net.safetensors", loaded.model, loaded.manifest)
    done = prune("export", "net.safetensors", "-o", "net.pt2", *QUICK, "--json")
    assert done.code == 0 and done.json["check"]["telling"] and done.json["check"]["moved"] == 0, done.err
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    _fresh(_LOADED_BY_TORCH, tmp_path / "net.pt2", tmp_path / "x.pt", tmp_path / "y.pt")
    first, second = torch.load(tmp_path / "y.pt")
    wanted = expected(tmp_path / "net.safetensors", x)
    assert wanted.std() > 0 and torch.equal(first, wanted) and torch.equal(second, wanted)


def _fresh(code: str, *words: object) -> None:
    """Runs Python in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_LOADED_AGAIN = """
import sys, torch
x, found = torch.load(sys.argv[2]), {}
with torch.no_grad():
    import transformers
    found["transformers"] = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()(x).logits
    assert "prunecli" not in sys.modules
    import prunecli
    found["prunecli"] = prunecli.load(sys.argv[1])(x).logits
torch.save(found, sys.argv[3])
"""


@pytest.mark.parametrize(("layers", "kind"), [("*.mlp.*", "configured"), ("*.0.mlp.*", "ours")])
def test_a_folder_for_transformers_where_its_configurations_have_the_widths(
    prune: Prune, transformers_ready: None, tmp_path: Path, layers: str, kind: str
) -> None:
    kwargs = [word for key, value in LLAMA.items() for word in ("--model-kwargs", f"{key}={value}")]
    pruned = ("--layer-ratio", f"{layers}=0.5", "--latency-rounds", "2", "-o", "net.safetensors", "-q")
    done = prune("l1", "hf:LlamaForCausalLM", *kwargs, *pruned)
    assert done.code == 0, done.err
    done = prune("export", "net.safetensors", "-o", "folder", "--json")
    assert done.code == 0, done.err
    written = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert ("generation_config.json" in written) == (kind == "configured") and "prune_export.json" in written
    assert ("prunecli.load opens the folder" in done.err) == (kind == "ours")
    x = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    with torch.no_grad():
        wanted = prunecli.load(tmp_path / "net.safetensors")(x).logits
        if kind == "ours":
            assert torch.equal(prunecli.load(tmp_path / "folder")(x).logits, wanted)
            return
    _fresh(_LOADED_AGAIN, tmp_path / "folder", tmp_path / "x.pt", tmp_path / "y.pt")
    found = torch.load(tmp_path / "y.pt")
    assert found.keys() == {"transformers", "prunecli"}
    assert all(torch.equal(logits, wanted) for logits in found.values())


def test_tensors_alone_with_the_widths_beside_them(prune: Prune, folder: Path, tmp_path: Path) -> None:
    done = prune("export", folder / "net.safetensors", "-o", "plain.safetensors", "--json")
    assert done.code == 0, done.err
    network = prunecli.load(folder / "net.safetensors")
    tensors = load_file(tmp_path / "plain.safetensors")
    assert tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())
    edit = json.loads((tmp_path / "plain.safetensors.json").read_text())["widths"]["edits"][0]
    assert len(edit["keep_indices"]) == edit["width_after"] < edit["width_before"]
    width = tensors[f"{edit['layers'][0]}.weight"].shape
    assert edit["width_after"] in width


def test_compare_times_networks_in_a_runtime(prune: Prune, exporters: None, folder: Path) -> None:
    checkpoint = folder / "net.safetensors"
    done = prune("compare", checkpoint, checkpoint, "--runtime", "onnx", "--rounds", "5", "--json")
    assert done.code == 0, done.err
    assert f"latencies are those of ONNX Runtime {onnxruntime.__version__}" in done.json["notes"]
    assert done.json["candidates"][0]["latency_ratio"] > 0


BAD = [
    (("-o", "net.bin"), 2, "which format? Name it with --to"),
    (("--to", "onix", "-o", "net.onnx"), 2, "did you mean 'onnx'"),
    (("-o", "there.onnx"), 2, "there.onnx: exists; add --force"),
    (("-o", "."), 2, "is a folder of other files"),
    (("--to", "onnx", "-o", "net.pt2"), 2, "--to onnx writes .onnx; name it net.onnx"),
    (("-o", "net.xml", "--int8"), 2, "--int8 is for --to onnx"),
    (("-o", "net.onnx", "--batch", "0"), 2, "--batch has to be at least 1"),
    (("-o", "net.onnx", "--batch", "1", "--dynamic-size"), 2, "give one of them"),
    (("-o", "net.onnx", "--images", "9"), 2, "--images is for --int8"),
    (("-o", "folder", "--batch", "1"), 2, "are for graphs, and hf has none"),
    (("-o", "net.onnx", "--push-to-hub", "name"), 2, "write it as USER/NAME"),
    (("-o", "net.pt"), 2, "cifar has no file of its own for networks of other widths"),
    (("-o", "net.onnx", "--int8", "--data", "nonsense"), 2, "unknown data set 'nonsense'"),
    ((), 2, "name the file or folder to write with -o"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_what_makes_no_sense_is_one_line(
    prune: Prune, folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "there.onnx").write_text("kept")
    done = prune("export", folder / "net.safetensors", *words)
    assert done.code == code and message in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not done.out
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "kept"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs; everything is a part of one commit."""

    seen: ClassVar[list[tuple[str, str, Any]]] = []

    def do_POST(self) -> None:
        """Answers as the hub does."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        lines = [json.loads(line) for line in body.splitlines() if line] if body else []
        type(self).seen.append((self.path, self.headers.get("Authorization", ""), lines))
        base = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            answer: Any = {"url": f"{base}/me/net", "name": "me/net", "id": "me/net"}
        elif "/preupload/" in self.path:
            answer = {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]}
        else:
            answer = {"commitUrl": f"{base}/me/net/commit/abc", "commitOid": "abc", "pullRequestUrl": None}
        self._answer(200, answer)

    def do_GET(self) -> None:
        """Knows nothing of what is there."""
        self._answer(404, {"error": "nothing"})

    do_HEAD = do_GET

    def _answer(self, code: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """A stub of the hub's endpoint on this machine."""
    Hub.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_are_pushed_to_the_hub(hub: str, folder: Path, tmp_path: Path) -> None:
    words = [
        "export",
        folder / "net.safetensors",
        "-o",
        tmp_path / "net.safetensors",
        "--push-to-hub",
        "me/net",
        "--json",
    ]
    own = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    (tmp_path / "private.txt").write_text("stays here")
    done = _prune(words, own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"] == f"{hub}/me/net/commit/abc"
    paths = [path for path, _, _ in Hub.seen]
    assert paths[0] == "/api/repos/create" and paths[-1] == "/api/models/me/net/commit/main"
    assert {token for _, token, _ in Hub.seen} == {"Bearer hf_secret"}
    uploaded = {line["value"]["path"] for line in Hub.seen[-1][2] if line["key"] == "file"}
    assert uploaded == {"net.safetensors", "net.safetensors.json"}


def _prune(words: list[Any], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The program in a process that reads the environment itself, as the library of the hub does when it starts."""
    return subprocess.run(
        [sys.executable, "-m", "prunecli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_a_batch_that_the_code_fixes(prune: Prune, exporters: None, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Pairs(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(6, 4)\n\n"
        "    def forward(self, x):\n        a = self.layer(x)\n"
        "        return a + 1 if len(a) == 2 else a\n\n"
        "def network():\n    return Pairs()\n"
    )
    words = ("module:own:network", "--allow-code", "own", "--example-shape", "1x6", "-o", "net.onnx", *QUICK)
    done = prune("export", *words)
    assert done.code == 2 and "its code fixes the number of samples in a batch" in done.err, done.err
    assert not (tmp_path / "net.onnx").exists()
    done = prune("export", *words, "--batch", "3", "--json")
    assert done.code == 0 and done.json["inputs"][0]["shape"] == [3, 6], done.err
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert (
        session.get_inputs()[0].shape == [3, 6]
        and np.isfinite(session.run(None, {"input": np.ones((3, 6), "f")})).all()
    )

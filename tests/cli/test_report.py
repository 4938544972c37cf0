"""Reports about runs and files, as pages, Markdown and model cards."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Prune
from tests.processes import Processes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


@pytest.fixture(scope="module")
def finished(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the quickstart recipe."""
    folder = tmp_path_factory.mktemp("run")
    settings = ("stages.0.epochs=2", "stages.4.epochs=1", "stages.2.latency_rounds=2", "stages.4.teacher=none")
    sets = [word for setting in settings for word in ("--set", setting)]
    words = ["run", REPOSITORY / "recipes" / "quickstart.yaml", "-o", folder / "run <1>", *sets]
    done = processes.run(words, folder)
    assert done.code in (0, 3), done.err
    return folder / "run <1>"


class _Page(HTMLParser):
    """What a page refers to, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("href", "src", "xlink:href", "action") and value]
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag in ("svg", "img"):
            self.pictures.append(given.get("aria-label") or given.get("alt") or "")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        before = list(self._open)
        self.handle_starttag(tag, attrs)
        self._open = before

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"{tag} closes something else"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_about_a_run_says_everything_and_needs_nothing_else(
    prune: Prune, finished: Path, tmp_path: Path
) -> None:
    done = prune("report", finished, "-o", "r.html", cwd=tmp_path)
    assert done.code == 0 and done.out == "" and "wrote r.html" in done.err, done.err
    text = (tmp_path / "r.html").read_text()
    page = _Page(text)
    assert "script" not in page.tags and all(link.startswith(("#", "data:image/")) for link in page.links)
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    references = set(re.findall(r"url\(#([^)]+)\)", text))
    assert references and references <= set(page.ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text.replace("http-equiv", ""))
    assert len(page.pictures) >= 7 and all(len(label) > 20 for label in page.pictures)
    said = " ".join(" ".join(page.words).split())
    manifest = prune("inspect", finished / "finetuned.safetensors", "--manifest", "--json").json
    step = manifest["history"][1]
    for entry in step["untouched"]:
        assert entry["reason"] in said and entry["name"] in said
    for edit in manifest["edits"]:
        assert f"{edit['group']} {edit['width_before']} {edit['width_after']}" in said
    reports = [json.loads((finished / f"{name}.json").read_text()) for name in ("trained", "pruned", "finetuned")]
    for report in reports:
        assert f"{report['metrics']['top1']:.2f} %" in said and report["command"] in said
        low, high = report["metrics"]["top1_interval"]
        assert f"[{math.floor(10 * low) / 10:.1f}, {math.ceil(10 * high) / 10:.1f}]" in said
    assert step["parent_sha256"][:16] in said and "version: 1" in said and manifest["sha256"] in said
    histogram = step["figures"]["scoring"]["score_histogram"]["groups"]
    kept = sum(sum(group["kept"]) for group in histogram.values())
    assert f"{kept:,} channels kept" in said
    assert kept == sum(edit["width_after"] for edit in manifest["edits"])
    assert any("train loss from" in label for label in page.pictures)
    assert "Where MACs went" in said and "<1>" in said


def test_the_waterfall_adds_up_to_what_was_measured(prune: Prune, finished: Path, tmp_path: Path) -> None:
    done = prune("report", finished, "--markdown")
    assert done.code == 0, done.err
    before, after = (
        json.loads((finished / f"{name}.json").read_text())["metrics"] for name in ("trained", "finetuned")
    )
    for kind, scale in (("params", 1e3), ("macs", 1e6)):
        row = f"| all | {before[kind] / scale:.3g} | {after[kind] / scale:.3g} | x{after[kind] / before[kind]:.3f} |"
        assert row in done.out


def test_equal_files_give_equal_pages(prune: Prune, finished: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        assert prune("report", finished, "-o", name, "--no-measure", cwd=tmp_path).code == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert b"Where MACs went" not in (tmp_path / "a.html").read_bytes()


def test_reading_reports_alone_imports_no_torch(finished: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "prunecli", "report", "--json", "-o", "x.md"]
    words += [str(finished / f"{name}.json") for name in ("trained", "pruned")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert json.loads(done.stdout)["format"] == "markdown" and "wrote x.md" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "prunecli.report.comparison" in imported and not imported & {"torch", "timm", "torchvision"}
    text = (tmp_path / "x.md").read_text()
    assert "## Figures before and after" in text and "| top-1 |" in text


def test_a_model_card_is_what_the_hub_reads(prune: Prune, finished: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    done = prune("report", finished, "--card", "--title", "A small digit reader", cwd=tmp_path)
    assert done.code == 0 and "wrote README.md" in done.err
    card = ModelCard.load(tmp_path / "README.md")
    metrics = json.loads((finished / "finetuned.json").read_text())["metrics"]
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["top-1 (%)"] == metrics["top1"]
    assert card.data.pipeline_tag == "image-classification" and card.data.model_name == "finetuned"
    assert "prunecli.load" in card.text and "# A small digit reader" in card.text
    assert prune("report", finished, "--card", cwd=tmp_path).code == 2  # an existing README is not replaced
    done = prune("report", finished / "trained.json", "--card", "-o", "c.md", cwd=tmp_path)
    assert done.code == 2 and "none was given" in done.err


def test_nothing_in_a_file_becomes_markup(prune: Prune, finished: Path, tmp_path: Path) -> None:
    report = json.loads((finished / "trained.json").read_text())
    report["command"] = report["environment"]["device"] = "<script>alert(1)</script> | `x` ```"
    report["data"]["name"] = '"><img src=x onerror=alert(1)>'
    (tmp_path / "evil <b>.json").write_text(json.dumps(report))
    (tmp_path / "p.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    done = prune("report", "evil <b>.json", "p.svg", "--title", "<i>t</i>", cwd=tmp_path)
    assert done.code == 0, done.err
    page = _Page((tmp_path / "report.html").read_text())
    assert not {"script", "i", "b"} & set(page.tags) and page.tags.count("img") == 1
    assert "<script>alert(1)</script>" in " ".join(page.words)
    markdown = prune("report", "evil <b>.json", "--markdown", cwd=tmp_path).out
    assert "````sh" in markdown  # a fence that the command does not close


def test_several_networks_are_shown_with_their_fronts(prune: Prune, finished: Path, tmp_path: Path) -> None:
    names = [finished / f"{name}.json" for name in ("trained", "pruned", "finetuned")]
    done = prune("compare", *names, "--best", "max top1 where macs_ratio < 0.9", "--plot", "p.svg", "-o", "c.json",
                 cwd=tmp_path)  # fmt: skip
    assert done.code == 0 and "\nbest: finetuned.json" in done.out, done.err
    assert (tmp_path / "p.svg").read_bytes().count(b"finetuned.json") >= 3
    assert prune("report", "c.json", cwd=tmp_path).code == 0
    assert "Pareto fronts" in (tmp_path / "report.html").read_text()
    done = prune("compare", *names, "--best", "min macs where top1 > 100", "--json", cwd=tmp_path)
    assert done.code == 3 and done.json["best"] is None and "macs" in done.json["front"]


def test_what_cannot_be_reported_is_said_in_a_line(prune: Prune, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"schema": "prunecli.report/9"}')
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "no.metrics.jsonl").write_text("{\n")
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    (tmp_path / "report.html").write_text("mine")
    cases = {
        ("empty",): "holds no reports; give the folder of `prune run`",
        ("gone.json",): "no such file or folder",
        ("other.json",): "schema is 'prunecli.report/9', expected 'prunecli.report/1'",
        ("text.txt",): "is nothing that a report is made of",
        ("no.metrics.jsonl",): "holds no epochs",
        ("p.png",): "only pictures to report",
        (finished, "-o", "r.pdf"): "name it .html or .md",
        (finished,): "report.html: exists; add --force",
        (finished, "--card", "--markdown"): "exclude each other",
        (): "RUN-OR-FILES",
    }
    for words, message in cases.items():
        force = () if words == (finished,) else ("--force",)
        done = prune("report", *words, *force, cwd=tmp_path)
        assert done.code == 2 and message in done.err and "Traceback" not in done.err, (words, done.err)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_damaged_or_incomplete_run_is_told(prune: Prune, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "pruned.safetensors").unlink()
    done = prune("report", "run", "--markdown", "--no-measure", cwd=tmp_path)
    assert done.code == 0 and "pruned.safetensors of this run no longer there" in done.out.replace("\\", "")
    (tmp_path / "run" / "run.json").write_text("{")
    done = prune("report", "run", "--markdown", cwd=tmp_path)
    assert done.code == 2 and "run.json: is damaged" in done.err


_MEASURING = """<script>
window.onload = () => {
  const number = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = number(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.classList.contains("skip")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [number(e.closest("svg") ? style.fill : style.color), behind(e)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + " " + e.textContent.slice(0, 40)];
  }
  const wide = [...document.querySelectorAll(".wide, pre")].filter(e => e.scrollWidth > e.clientWidth);
  const result = {
    fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
    contrast: worst, paper: getComputedStyle(document.body).backgroundColor,
    unreachable: wide.filter(e => e.tabIndex !== 0).length, scrolling: wide.length,
    reachable: document.querySelectorAll("a, summary, [tabindex='0']").length,
  };
  parent.document.body.textContent = JSON.stringify(result);
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(prune: Prune, finished: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """Nothing is wider than the screen, everything that scrolls can be reached by keyboard, text can be read."""
    assert CHROMIUM is not None
    assert prune("report", finished, "-o", "r.html", "--no-measure", cwd=tmp_path).code == 0
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (tmp_path / "r.html").read_text())
    framed = html.escape(text.replace("</head>", _MEASURING + "</head>"))  # no window is as narrow as a phone
    frame = f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{framed}"></iframe>'
    (tmp_path / "measured.html").write_text(f"<!doctype html><body>{frame}</body>")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--window-size=1400,900"]
    flags += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "measured.html").as_uri()]
    dumped = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=120, check=True).stdout
    body = re.search(r"<body[^>]*>(.*)</body>", dumped, re.DOTALL)
    assert body is not None
    result = json.loads(html.unescape(body.group(1)))
    assert result["fits"] and width - 20 <= result["width"] <= width, result
    assert result["contrast"][0] >= 4.5, result
    assert result["unreachable"] == 0 and result["reachable"] > 20 and result["scrolling"] > 0, result
    assert (result["paper"] == "rgb(255, 255, 255)") == (scheme == "light")

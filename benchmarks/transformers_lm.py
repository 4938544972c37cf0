"""A small Llama and a small BERT, pruned in width, in depth and in both, beside random choices, magnitudes and a peer.

    PRUNE_DATA=DATA python benchmarks/transformers_lm.py llama --folder FOLDER -o benchmarks/results/lm_llama.json
    PRUNE_DATA=DATA python benchmarks/transformers_lm.py bert --folder FOLDER -o benchmarks/results/lm_bert.json
    python benchmarks/transformers_lm.py --table benchmarks/results/lm_llama.json benchmarks/results/lm_bert.json

For each of three seeds a network is trained from nothing: the Llama on tiny Shakespeare, in 1,000 tokens of a tokenizer
trained on it, the BERT on passages of two authors (`examples/authors.py` makes FOLDER/authors). Every way of pruning
starts from it. In width, every layer loses the same share of its channels, heads and head dimensions (`--scope local`),
so all criteria give the same shapes; "+ ls" folds what was removed into the rest. torch-pruning is set up as in its own
example for language models: magnitudes, whole heads, no head dimensions; where that makes another size than ours, the
row "at its size" is ours with as many parameters as it has left. In depth, whole blocks go. Figures are those of the
test data, before and after the same 100 steps of training with the batches of the seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn

import prunecli
from prunecli.cli.output import Output
from prunecli.copying import copied
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.inputs import call
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.pipeline.stages.train import train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe, TrainStage
from prunecli.studies.batches import FirstSteps

SEEDS, STEPS, CALIBRATION, PEER_LIMIT_S = 3, 100, 256, 60
RATIOS, BLOCKS = (0.3, 0.5), (1, 2)
Prune = Callable[[nn.Module], nn.Module]
_given_up: list[str] = []


@dataclasses.dataclass(frozen=True)
class Setting:
    """A network and how it is trained."""

    model: ModelSection
    data: DataSection
    train: TrainStage
    recovery: FitConfig


_SIZES: dict[str, Any] = {"num_hidden_layers": 4, "max_position_embeddings": 64}
SETTINGS = {
    "llama": Setting(
        ModelSection(
            "hf:LlamaForCausalLM",
            kwargs={**_SIZES, "hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "head_dim": 16},
        ),
        DataSection("text:text/tinyshakespeare.txt", tokenizer="bpe:1000", bptt=64, batch_size=32),
        TrainStage(epochs=3, lr=3e-3, optimizer="adamw", weight_decay=0.01, clip_grad=1.0),
        FitConfig(epochs=1, lr=1e-3, optimizer="adamw", weight_decay=0.01, clip_grad=1.0, schedule="constant"),
    ),
    "bert": Setting(
        ModelSection(
            "hf:BertForSequenceClassification",
            kwargs={**_SIZES, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4},
        ),
        DataSection("text:authors", tokenizer="bpe:2000", batch_size=64),
        TrainStage(epochs=1, lr=1e-3, optimizer="adamw", weight_decay=0.01, clip_grad=1.0),
        FitConfig(epochs=1, lr=5e-4, optimizer="adamw", weight_decay=0.01, clip_grad=1.0, schedule="constant"),
    ),
}  # fmt: skip


class Bench:
    """One trained network with its data."""

    def __init__(self, setting: Setting, folder: Path, name: str, seed: int) -> None:
        path = folder / f"{name}-{seed}.safetensors"
        data = setting.data if name == "llama" else dataclasses.replace(setting.data, root=str(folder))
        recipe = Recipe(model=setting.model, data=data, seed=seed)
        if not path.is_file():
            train_stage(Workspace(recipe, Output(), resume=True), setting.train, path)
        self.space = Workspace(dataclasses.replace(recipe, model=ModelSection(weights=str(path))), Output())
        self.dense = self.space.model().model
        self.task, self.loss = self.space.judging.task(), self.space.judging.loss()
        training = self.space.data().training_split()
        self.calibration = list(self.space.inputs.calibration(training, CALIBRATION).labelled)
        self.example = self.space.inputs.example()
        self._recovery, self._training, self._seed = setting.recovery, training, seed

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Score and loss on the test data."""
        split = self.space.data().test
        found = evaluate(network, self.space.inputs.batches(split), self.space.device, task=self.task)
        named = {**self.task.named(found), **self.task.named_of(found, split)}
        return {key: named[key] for key in ("perplexity", "bits_per_byte", "top1", "loss") if key in named}

    def recovered(self, network: nn.Module) -> nn.Module:
        """The network after a little training."""
        batches = FirstSteps(self.space.inputs.training(self._training), STEPS, self._seed)
        fit(network, batches, None, self._recovery, self.space.device, task=self.task, seed=self._seed)
        return network

    def width(self, method: str, ratio: float, compensate: Any = "none", **params: Any) -> Prune:
        """Pruning of the same share of every layer."""

        def prune(network: nn.Module) -> nn.Module:
            chosen = params or {"ratio": ratio}
            result = prunecli.prune(
                network, method, example_inputs=self.example, data=self.calibration, loss=self.loss,
                compensate=compensate, seed=self._seed, scope="local", min_width=1, **chosen,
            )  # fmt: skip
            model: nn.Module = result.model
            return model

        return prune

    def depth(self, blocks: int, score: str = "loss") -> Prune:
        """Removal of whole blocks."""

        def prune(network: nn.Module) -> nn.Module:
            result = prunecli.prune(
                network, "depth", example_inputs=self.example, data=self.calibration, loss=self.loss, seed=self._seed,
                blocks=blocks, score=score,
            )  # fmt: skip
            model: nn.Module = result.model
            return model

        return prune

    def peer(self, ratio: float) -> Prune:
        """torch-pruning as its own example prunes language models."""

        @_limited
        def prune(network: nn.Module) -> nn.Module:
            pruned = copied(network).eval()
            heads, config = _heads(pruned), pruned.config
            outputs: Any = getattr(pruned, "lm_head", None) or pruned.classifier
            with torch.enable_grad():
                pruner = torch_pruning.pruner.BasePruner(
                    pruned, self.example, torch_pruning.importance.GroupMagnitudeImportance(p=2),
                    pruning_ratio=ratio, ignored_layers=[outputs], num_heads=heads, prune_num_heads=True,
                    prune_head_dims=False, head_pruning_ratio=ratio, output_transform=lambda output: output.logits,
                )  # fmt: skip
                pruner.step()
            _settle(pruned, pruner.num_heads)
            config.hidden_size = outputs.in_features
            with torch.no_grad():
                call(pruned, self.example)
            return pruned

        return prune


def _limited(prune: Prune) -> Prune:
    """The same, given up after some time of the processor, and then for all seeds."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {PEER_LIMIT_S} s of processor time")

    def limited(network: nn.Module) -> nn.Module:
        if _given_up:
            raise TimeoutError(_given_up[0])
        former = signal.signal(signal.SIGVTALRM, stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, PEER_LIMIT_S)
        try:
            return prune(network)
        except TimeoutError as error:
            _given_up.append(str(error))
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, former)

    return limited


def _heads(network: nn.Module) -> dict[nn.Module, int]:
    config: Any = network.config
    counts = {"q_proj": config.num_attention_heads, "query": config.num_attention_heads}
    others = {name: getattr(config, "num_key_value_heads", config.num_attention_heads)
              for name in ("k_proj", "v_proj", "key", "value")}  # fmt: skip
    counts |= others
    return {
        module: counts[name.rpartition(".")[2]]
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in counts
    }


def _settle(network: nn.Module, heads: dict[nn.Module, int]) -> None:
    """What the example of torch-pruning sets after pruning: numbers of heads that modules remember."""
    for module in network.modules():
        if hasattr(module, "q_proj"):
            module.num_key_value_groups = heads[module.q_proj] // heads[module.k_proj]
        elif hasattr(module, "query"):
            module.num_attention_heads = heads[module.query]
            module.all_head_size = module.query.out_features
            module.attention_head_size = module.all_head_size // module.num_attention_heads


def entrants(bench: Bench) -> Iterator[tuple[str, str, Prune]]:
    """Kind, name and function of every way of pruning."""
    for ratio in RATIOS:
        kind = f"width {ratio:g}"
        yield kind, "random", bench.width("random", ratio)
        yield kind, "l1", bench.width("l1", ratio)
        for method in ("fisher", "obs"):
            yield kind, f"{method} + ls", bench.width(method, ratio, "ls")
        peer = bench.peer(ratio)
        yield kind, "torch-pruning", peer
        yield (
            kind,
            "obs + ls, at its size",
            lambda network, peer=peer: bench.width(  # type: ignore[misc]
                "obs", 0, "ls", params=parameter_count(peer(network)) / parameter_count(network)
            )(network),
        )
    for blocks in BLOCKS:
        kind = f"depth {blocks} of 4"
        yield kind, "random", bench.depth(blocks, "random")
        yield kind, "loss", bench.depth(blocks)
    for blocks, ratio in zip(BLOCKS, RATIOS, strict=True):
        kind = f"depth {blocks} of 4, width {ratio:g}"
        yield kind, "random", _both(bench.depth(blocks, "random"), bench.width("random", ratio))
        yield kind, "loss, obs + ls", _both(bench.depth(blocks), bench.width("obs", ratio, "ls"))


def _both(first: Prune, second: Prune) -> Prune:
    return lambda network: second(first(network))


def measure(name: str, folder: Path, out: Path) -> None:
    """Every way of pruning at every seed; what is in the file already is not measured again."""
    document = json.loads(out.read_text()) if out.is_file() else {"network": name, "rows": [], "dense": []}
    document |= {"seeds": SEEDS, "steps": STEPS, "calibration": CALIBRATION}
    for seed in range(SEEDS):
        bench = Bench(SETTINGS[name], folder, name, seed)
        size, macs = parameter_count(bench.dense), count_macs(bench.dense, bench.example).total
        if not any(row["seed"] == seed for row in document["dense"]):
            document["dense"].append({"seed": seed, "params": size, "macs": macs, **bench.figures(bench.dense)})
        for kind, way, prune in entrants(bench):
            if any((row["kind"], row["way"], row["seed"]) == (kind, way, seed) for row in document["rows"]):
                continue
            row: dict[str, Any] = {"kind": kind, "way": way, "seed": seed}
            start = time.perf_counter()
            try:
                network = prune(bench.dense)
                row |= {
                    "seconds": time.perf_counter() - start,
                    "params_left": parameter_count(network) / size,
                    "macs_left": count_macs(network, bench.example).total / macs,
                    "before": bench.figures(network),
                    "after": bench.figures(bench.recovered(network)),
                }
            except Exception as error:  # that it fails is a result
                row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            document["rows"].append(row)
            document["environment"] = describe_environment(torch.device("cpu"))
            out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(row), flush=True)


def table(path: Path) -> None:
    """Markdown: mean and standard deviation over seeds."""
    document = json.loads(path.read_text())
    figure = "perplexity" if document["network"] == "llama" else "top1"
    print(f"\n{document['network']}: dense {_spread([row[figure] for row in document['dense']])}\n")
    print(f"| | | parameters | MACs | {figure} | after {document['steps']} steps |\n|---|---|---|---|---|---|")
    for kind, way in dict.fromkeys((row["kind"], row["way"]) for row in document["rows"]):
        rows = [row for row in document["rows"] if (row["kind"], row["way"]) == (kind, way)]
        if any("failed" in row for row in rows):
            print(f"| {kind} | {way} | {next(row['failed'] for row in rows if 'failed' in row)} | | | |")
            continue
        shares = [statistics.mean(row[name] for row in rows) for name in ("params_left", "macs_left")]
        scores = [_spread([row[when][figure] for row in rows]) for when in ("before", "after")]
        print(f"| {kind} | {way} | {shares[0]:.0%} | {shares[1]:.0%} | {scores[0]} | {scores[1]} |")


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", choices=list(SETTINGS))
    parser.add_argument("--folder", type=Path, default=Path("transformers_lm"))
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    for path in arguments.table:
        table(path)
    if arguments.network is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        out = arguments.out or arguments.folder / f"{arguments.network}.json"
        measure(arguments.network, arguments.folder, out.absolute())


if __name__ == "__main__":
    main()

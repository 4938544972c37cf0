"""What a recipe can say. Plain dataclasses: pydantic checks them, the command line makes its options of them.

This module imports nothing heavy, because help and completion read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le, Lt
from prunecli.engine.config import FitConfig

Measurement = Literal["accuracy", "params", "macs", "latency", "memory", "size", "spikes", "energy"]
MEASUREMENTS: tuple[Measurement, ...] = (
    "accuracy",
    "params",
    "macs",
    "latency",
    "memory",
    "size",
    "spikes",
    "energy",
)


@dataclass(frozen=True)
class ModelSection:
    """Which network to start from."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, never changed

    ref: Annotated[
        str | None,
        Doc("Architecture as source:name: timm:resnet50, hf:FOLDER, module:package.file:function (your own code)."),
    ] = None
    weights: Annotated[str | None, Doc("Weights file; a checkpoint of ours needs no ref.")] = None
    pretrained: Annotated[bool, Doc("Fetch published weights of the architecture (timm, torchvision).")] = False
    num_classes: Annotated[
        int | None,
        Ge(1),
        Doc("Classes of a new network, or of a new classifier on SegFormer weights; default: the data set's."),
    ] = None
    in_chans: Annotated[int | None, Ge(1), Doc("Input channels of a new network; default: the data set's.")] = None
    kwargs: Annotated[
        Mapping[str, Any],
        Doc("Arguments of the architecture, KEY=VALUE, may be given again; for spiking networks T, neuron, tau ..."),
    ] = field(default_factory=dict)
    weights_key: Annotated[
        str | None, Doc("Which set of weights in a file of others, by its keys: ema, or model.student.")
    ] = None
    strip_prefix: Annotated[
        str | None,
        Doc("Take tensors whose names begin with this, without it: module.base_encoder. (a dot alone: no prefix)."),
    ] = None
    allow_nonfinite: Annotated[bool, Doc("Load weights that hold NaN or infinity.")] = False
    example_shape: Annotated[
        str | None,
        Doc("Shape of your own network's input, with the batch: 1x3x64x64, or 1x128:int64 for whole numbers."),
    ] = None
    example: Annotated[
        str | None,
        Doc("Inputs of a network of your own: a .npz file whose arrays are called like its arguments, or in order."),
    ] = None


@dataclass(frozen=True)
class DataSection:
    """Which images or recordings of events, and how they are read."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    name: Annotated[
        str | None,
        Doc(
            "digits, cifar10, cifar100, mnist, fashion-mnist, cluttered-mnist, mnist-boxes, folder:PATH, npz:FILE, "
            "segmentation:PATH, detection:PATH, wds:PATH, images:PATH (without classes); of events: n-mnist, "
            "cifar10-dvs, dvs-gesture, n-caltech101, events:PATH; of texts: text:PATH; or a path alone, as ./images."
        ),
    ] = None
    root: Annotated[
        str | None, Doc("Folder that holds named data sets; default: PRUNE_DATA or ~/.cache/prune/data.")
    ] = None
    download: Annotated[bool, Doc("Fetch a data set that is missing.")] = False
    image_size: Annotated[
        str | int | None, Doc("Height and width, one number or 360x480; default: the model's, else the images'.")
    ] = None
    class_names: Annotated[
        str | None,
        Doc(
            "What classes are called in prompts: a file with one name on each line, or a JSON list; default: built in."
        ),
    ] = None
    classes: Annotated[
        str | None,
        Doc(
            "Classes of masks: a file (a name on each line, or `number: name`, or `red,green,blue: name`), camvid, "
            "voc, ade20k, or numbers (counted from 0); default: PATH/classes.txt, else what layout and masks suggest."
        ),
    ] = None
    void: Annotated[
        str | int | None, Doc("Numbers in masks that are no class, such as 255 or 0,255; none; default: 255.")
    ] = None
    reduce_zero_label: Annotated[bool, Doc("In masks 0 is void and 1 the first class.")] = False
    templates: Annotated[
        str | None,
        Doc("Prompts for networks with a text tower, {} or {c} for the class: a file like that; default: built in."),
    ] = None
    frames: Annotated[
        int | None, Ge(1), Le(10_000), Doc("Frames that a recording of events becomes; default: the network's steps T.")
    ] = None
    frames_by: Annotated[
        Literal["number", "time"] | None,
        Doc("Frames of equally many events (number, the default) or of equal parts of the recording's time."),
    ] = None
    frame_duration: Annotated[
        int | None,
        Ge(1),
        Doc("Microseconds in each frame; what is left of the recording is cut off, what is missing stays empty."),
    ] = None
    level: Annotated[
        Literal["word", "char"] | None,
        Doc("Tokens of a text; default: the network's, else words of a folder and characters of a single file."),
    ] = None
    bptt: Annotated[
        int | None,
        Ge(1),
        Le(1 << 20),
        Doc("Tokens in a sequence of a text; default: as many as the network reads, else 35 words, 64 characters."),
    ] = None
    tokenizer: Annotated[
        str | None,
        Doc(
            "Tokenizer of texts: a tokenizer.json, the folder of a network, or bpe:2000 to train one of 2000 tokens; "
            "default: the network's."
        ),
    ] = None
    text_column: Annotated[
        tuple[str, ...],
        Doc(
            "Column of the texts in a table (.jsonl, .csv, .tsv, .parquet), two for pairs, or of lists of words; "
            "default: text, sentence, tokens."
        ),
    ] = ()
    label_column: Annotated[
        str | None,
        Doc(
            "Column of the classes of texts, or of lists of the tags of words; default, if the network finds classes: "
            "label, ner_tags."
        ),
    ] = None
    batch_size: Annotated[int, Ge(1), Doc("Images per batch, or parts of a text that are read side by side.")] = 128
    workers: Annotated[
        int | None,
        Ge(0),
        Doc("Processes that load images; default: for many in files one for each core to spare, up to 4, else none."),
    ] = None
    skip_bad: Annotated[int, Ge(0), Doc("Leave out up to this many unreadable images; one more stops the run.")] = 0
    val_fraction: Annotated[
        float, Ge(0), Lt(1), Doc("Share of the training images held out to choose epochs on; 0 holds none out.")
    ] = 0.1


@dataclass(frozen=True)
class _TrainingStage:
    stage: str = "train"


@dataclass(frozen=True)
class TrainStage(FitConfig, _TrainingStage):
    """Train all weights."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    stage: Literal["train"] = "train"


@dataclass(frozen=True)
class FinetuneStage(TrainStage):
    """Recover accuracy after pruning: a tenth of the usual learning rate, learning from the dense parent too."""

    stage: Literal["finetune"] = "finetune"  # type: ignore[assignment]
    epochs: Annotated[int, Ge(1), Doc("Passes over the training images.")] = 5
    lr: Annotated[
        float | None,
        Gt(0),
        Doc("Peak learning rate; default: a tenth of the one it was trained with by this optimizer, else 0.01."),
    ] = None  # type: ignore[assignment]
    teacher: Annotated[
        str | None,
        Doc(
            "Learn from this network too: a weights file; `parent`: the one that was pruned; `auto`: that one where "
            "samples have one class each, if it is there; `none`: labels alone."
        ),
    ] = "auto"
    distill_weight: Annotated[float, Ge(0), Le(1), Doc("Weight of the teacher's part of the loss.")] = 0.5
    distill_temperature: Annotated[
        float | None,
        Gt(0),
        Doc("Temperature of the softened scores; default: 10 where samples have one class, else 4."),
    ] = None


@dataclass(frozen=True)
class PruneStage:
    """Remove channels, prove the result, and repair what can be repaired without labels."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    stage: Literal["prune"] = "prune"
    method: Annotated[str, Doc("Pruning method (`prune methods` lists them).")] = "l1"
    params: dict[str, Any] = field(default_factory=dict)
    keep: Annotated[tuple[str, ...], Doc("Layer, block or pattern whose widths stay; may be given again.")] = ()
    recalibrate: Annotated[
        bool | None, Doc("Measure batch normalisation statistics again; default: if that is better (auto).")
    ] = None
    compensate: Annotated[
        Literal["none", "bias", "ls", "reconstruct", "auto"] | None,
        Doc(
            "Make up for removed channels: bias by the mean, ls by regression, reconstruct layer by layer; auto "
            "(usually the default, see docs/repair.md): whichever is best on held-out training images."
        ),
    ] = None
    calibration_images: Annotated[
        int, Ge(2), Doc("Training images used for both, and by methods that look at data.")
    ] = 1024
    epochs: Annotated[
        int, Ge(0), Doc("Training epochs: of a method that prunes while it trains, else after each step of a schedule.")
    ] = 0
    lr: Annotated[float, Gt(0), Doc("Learning rate of those epochs, constant.")] = 0.01
    optimizer: Annotated[str, Doc("Optimizer of those epochs, by its name in timm.")] = "sgd"
    latency_rounds: Annotated[int, Ge(2), Doc("Paired timings of the networks before and after.")] = 30
    evaluate: Annotated[
        bool | None,
        Doc(
            "Measure the score of the networks before and after, as eval does, on test samples; default: if they have "
            "labels, but not in a run, which has eval stages."
        ),
    ] = None
    evaluation_images: Annotated[int, Ge(1), Doc("Test samples for that at most, a seeded choice.")] = 10_000
    offload: Annotated[
        Literal["none", "disk"],
        Doc(
            "disk: weights stay in their files, and each is in memory while it is used, for networks that do not fit "
            "into it (docs/large-models.md); nothing is timed then."
        ),
    ] = "none"


@dataclass(frozen=True)
class EvalStage:
    """Measure a network and write a report."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    stage: Literal["eval"] = "eval"
    measure: Annotated[
        tuple[Measurement, ...],
        Doc("What to measure; may be given again. Default: everything."),
    ] = MEASUREMENTS
    split: Annotated[Literal["test", "validation"], Doc("Images to measure accuracy on.")] = "test"
    task: Annotated[
        Literal["auto", "classification", "zeroshot", "retrieval", "linear-probe"],
        Doc(
            "zeroshot: classes are prompts for a text tower; retrieval: captions and images find each other; auto: "
            "what data and network are for; linear-probe: a classifier fitted to features of the training images."
        ),
    ] = "auto"
    latency_rounds: Annotated[int, Ge(2), Doc("Timings of one image.")] = 30
    energy_images: Annotated[
        int, Ge(1), Doc("Images of that split to measure firing rates and energy of a spiking network on.")
    ] = 256
    require: Annotated[
        str | None,
        Doc("Condition that the figures have to meet, e.g. 'top1 >= 95'; if they do not the run stops (exit code 3)."),
    ] = None
    report: Annotated[str | None, Doc("File name of the report in the run's folder.")] = None


@dataclass(frozen=True)
class CompareStage:
    """Compare the reports of the run with the first one."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    stage: Literal["compare"] = "compare"
    fail_if: Annotated[str | None, Doc("Condition that fails the run (exit code 3), e.g. 'top1_drop > 1.0'.")] = None


Stage = TrainStage | FinetuneStage | PruneStage | EvalStage | CompareStage
STAGES: dict[str, type[Stage]] = {
    "train": TrainStage,
    "prune": PruneStage,
    "finetune": FinetuneStage,
    "eval": EvalStage,
    "compare": CompareStage,
}


@dataclass(frozen=True)
class Recipe:
    """A whole run: a model, its data and the stages it goes through."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    version: Literal[1] = 1
    description: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    seed: Annotated[int, Ge(0), Doc("Seed of everything random.")] = 0
    device: Annotated[str, Doc("auto, cpu, cuda, cuda:1, mps.")] = "auto"
    threads: Annotated[int | None, Ge(1), Doc("CPU threads; default: torch's choice.")] = None
    save_every: Annotated[
        float,
        Ge(0),
        Doc("Seconds between saved states, more for large ones; 0 saves after every step."),
    ] = 60.0
    keep_states: Annotated[int, Ge(1), Doc("Saved states of a run to keep, the newest ones.")] = 2
    track: Annotated[
        tuple[str, ...],
        Doc("Keep the curves of training in these, too: trackio, tensorboard, mlflow, wandb; see docs/tracking.md."),
    ] = ()
    stages: tuple[Stage, ...] = ()

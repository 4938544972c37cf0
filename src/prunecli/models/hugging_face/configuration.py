"""Configurations of transformers: what of one may be used, since it may come from somebody else's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prunecli.errors import ModelError
from prunecli.models.hugging_face.library import class_for, isolated, transformers

_LEFT_OUT = frozenset(
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "architectures", "transformers_version", "auto_map"),
        *("dtype", "torch_dtype", "transformers_weights", "custom_pipelines", "use_kernels", "kernel_config"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "fusion_config"),
        *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
        *("distributed_config", "tp_plan", "tie_encoder_decoder", "base_model_tp_plan", "base_model_pp_plan"),
        *("use_pretrained_backbone", "quantization_config", "_pre_quantization_dtype"),
    )
)
"""Entries that say where a file came from or how it is run, or that would make the library fetch files or code."""
_COUNTS = ("layer", "depth", "block", "repeat", "stage", "expert", "codebook", "quantizer")
_CLASSES = ("num_labels", "num_classes")
_MOST_LAYERS, _MOST_CLASSES, _MOST = 4096, 1_000_000, 1 << 31
_MOST_POSITIONS = 1 << 24
_TIMM = ("backbone", "architecture")
"""Entries that name a network of timm, which would take "hf-hub:..." and "local-dir:..." as well."""
_TIMM_ARGUMENTS = ("model_args", "backbone_kwargs")
"""Entries with arguments of timm's networks, among which are files to read."""
_HARMLESS_ARGUMENTS = frozenset(
    (
        *("depth", "embed_dim", "num_heads", "img_size", "patch_size", "out_indices", "output_stride", "in_chans"),
        *("features_only", "global_pool", "num_classes", "dynamic_img_size", "dynamic_img_pad", "mlp_ratio"),
        *("drop_rate", "drop_path_rate", "class_token", "reg_tokens", "init_values", "qkv_bias", "num_channels"),
        *("always_partition", "window_size", "strict_img_size", "act_layer", "norm_layer"),
    )
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        ModelError: It is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; give the folder that save_pretrained wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({str(error)[:120]}); fetch or save it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds no JSON object; fetch or save it again")
    return content


def checked(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration without entries that fetch or run something, its sizes within bounds.

    Args:
        config: The configuration, as in config.json.
        where: Its file or network, for messages.

    Raises:
        ModelError: A size is out of bounds, or the weights are quantised.
    """
    if config.get("quantization_config"):
        raise ModelError(
            f"{where}: its weights are quantised; prune the network they were made from, and quantise it afterwards"
        )
    return _checked_entries(config, where)


def _checked_entries(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    _check_timm(config, where)
    if config.get("backbone") is not None and config.get("backbone_kwargs"):
        # transformers would ask the hub whether it has a network of that name.
        own = {"model_type": "timm_backbone", "backbone": config["backbone"], **config["backbone_kwargs"]}
        left = {key: value for key, value in config.items() if key not in ("backbone", "backbone_kwargs")}
        config = {**left, "backbone_config": config.get("backbone_config") or own}
    return {str(key): _checked_value(str(key), value, where) for key, value in config.items() if key not in _LEFT_OUT}


def _checked_value(key: str, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _checked_entries(value, where)
    if isinstance(value, (list, tuple)):
        return [_checked_value(key, item, where) for item in value]
    _check_number(key, value, where)
    return value


def _check_number(key: str, value: Any, where: str) -> None:
    if type(value) is not int:
        return
    layers = any(word in key for word in _COUNTS) and not any(word in key for word in ("dim", "size", "capacity"))
    most = _MOST_LAYERS if layers else _MOST_POSITIONS if "position" in key else _MOST
    most = _MOST_CLASSES if key in _CLASSES else most
    if abs(value) > most:
        raise ModelError(f"{where}: {key} is {value:,}, and at most {most:,} makes sense; the file was altered")


def _check_timm(config: Mapping[str, Any], where: str) -> None:
    """Makes networks of timm, at any depth, new ones that it lists: nothing fetched, no file read."""
    for key in _TIMM:
        name = config.get(key)
        if name is None:
            continue
        usual = key != "backbone" or config.get("use_timm_backbone") or config.get("model_type") == "timm_backbone"
        if not usual or not isinstance(name, str) or name.partition(".")[0] not in _timm_names():
            raise ModelError(
                f"{where}: its {key} is {str(name)[:80]!r}, which would have to be fetched; save it with "
                "transformers 5, which writes backbone_config instead"
            )
    for key in _TIMM_ARGUMENTS:
        arguments = config.get(key)
        for name in arguments if isinstance(arguments, Mapping) else ():
            if name not in _HARMLESS_ARGUMENTS:
                raise ModelError(f"{where}: {key} sets {str(name)[:80]!r}, which could read files; leave it out")


@cache
def _timm_names() -> frozenset[str]:
    import timm

    return frozenset(timm.list_models())


def type_of(config: Mapping[str, Any], where: str) -> str:
    """The type of model that a configuration is of.

    Raises:
        ModelError: The library does not have it.
    """
    kind = config.get("model_type")
    known = transformers().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if isinstance(kind, str) and kind in known:
        return kind
    if config.get("auto_map"):
        raise ModelError(
            f"{where}: this network is code of its own (trust_remote_code), which is not run from here: build it with "
            "--arch module:FILE:FUNCTION, a function of yours that returns it, and in a recipe --allow-code"
        )
    shown = f"model_type {str(kind)[:80]!r}" if kind else "a configuration without model_type"
    raise ModelError(
        f"{where}: {shown} is unknown to transformers {transformers().__version__}; a newer version may have it, or "
        "build it by a function of yours: --arch module:FILE:FUNCTION"
    )


def class_in(config: Mapping[str, Any], head: str | None, where: str) -> str:
    """The class to build: that of a head, else the one that the configuration names.

    Raises:
        ModelError: It names none, or there is no such head.
    """
    kind = type_of(config, where)
    try:
        if head is not None:
            return class_for(kind, head)
        named = config.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str):
            return named[0]
        return class_for(kind, "none")
    except ModelError as error:
        raise ModelError(f"{where}: {error}; see --model-kwargs head=NAME") from error


def configured(kind: Any, config: Mapping[str, Any], where: str) -> Any:
    """A configuration object of a class.

    Raises:
        ModelError: The class refuses it.
    """
    try:
        with isolated():
            return kind.config_class.from_dict(dict(config))
    except Exception as error:  # every configuration checks itself in a way of its own
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{where}: {kind.__name__} does not accept its configuration: {first}") from error


def recorded(model: Any) -> dict[str, Any]:
    """The configuration of a network, and how it generates, for a manifest."""
    config = checked(json.loads(json.dumps(model.config.to_dict(), default=str)), type(model).__name__)
    content: dict[str, Any] = {"config": config}
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        said = generation.to_diff_dict()
        plain = {key: value for key, value in said.items() if key != "transformers_version" and _is_plain(value)}
        content["generation"] = plain
    return content


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

"""Operators on images: pooling, resizing, sampling at given places, boxes, patches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunecli.surgery.axes import NOT_A_CHANNEL, Term, factor, fixed, freeze, product, unify
from prunecli.surgery.tracing.operators import Call, Rule
from prunecli.surgery.tracing.operators.contraction import connect

_PLACES = "it holds coordinates, so each of its positions has a meaning"


def _image(call: Call) -> None:
    """Pooling and resizing: batch and channels stay, image dimensions change."""
    x = call.tensors[0]
    dims = call.dims(x)
    for result in call.results:
        spatial = _spatial_dims(call, x)
        kept = dims[: x.dim() - spatial]
        _hold(dims[len(kept) :])
        call.set(result, [*kept, *(fixed(size) for size in result.shape[len(kept) :])])


def _spatial_dims(call: Call, x: Tensor) -> int:
    for digit in "123":
        if f"{digit}d" in call.name:
            return int(digit)
    return x.dim() - 2


def _hold(terms: Sequence[Term], reason: str = NOT_A_CHANNEL) -> None:
    for term in terms:
        freeze(term, reason)


def _unpool(call: Call) -> None:
    """`max_unpool2d` and `3d`: values go back to where pooling found them, channel by channel."""
    x, places = call.args[0], call.args[1]
    kept = x.dim() - _spatial_dims(call, x)
    for term, other in zip(call.dims(x), call.dims(places), strict=True):
        unify(term, other)
    dims = call.dims(x)
    _hold(dims[kept:])
    call.set(call.results[0], [*dims[:kept], *(fixed(size) for size in call.results[0].shape[kept:])])


def _grid_sample(call: Call) -> None:
    """An image (N, C, ...) read at the places in a grid (N, ..., coordinates)."""
    x, grid = call.args[0], call.args[1]
    dims, places = call.dims(x), call.dims(grid)
    unify(dims[0], places[0])
    _hold(dims[2:])
    _hold(places[1:], _PLACES)
    call.set(call.results[0], [*dims[:2], *places[1:-1]])


def _affine_grid(call: Call) -> None:
    """Places in an image for each matrix of a batch."""
    matrices, result = call.dims(call.args[0]), call.results[0]
    _hold(matrices[1:], _PLACES)
    call.set(result, [matrices[0], *(fixed(size, _PLACES) for size in result.shape[1:])])


def _deformable(call: Call) -> None:
    """torchvision's convolution with an offset for every tap; `offset_groups` runs of channels share offsets."""
    x, weight, offset, mask, bias = call.args[:5]
    groups, offset_groups, masked = int(call.args[11]), int(call.args[12]), bool(call.args[13])
    inputs, result = call.dims(x), call.results[0]
    if offset_groups > 1:
        runs, _ = factor(inputs[1], x.shape[1] // offset_groups)
        freeze(runs, _PLACES)
    written = connect(call, inputs[1], weight, bias, groups)
    _hold(inputs[2:])
    for tensor in (offset, mask) if masked else (offset,):
        places = call.dims(tensor)
        unify(inputs[0], places[0])
        _hold(places[1:], _PLACES)
    call.set(result, [inputs[0], written, *(fixed(size) for size in result.shape[2:])])


def _boxes(call: Call) -> None:
    """`roi_align` and `roi_pool`: channels of an image within each box."""
    dims, boxes = call.dims(call.args[0]), call.dims(call.args[1])
    _hold([dims[0], *dims[2:]])
    _hold(boxes, _PLACES)
    for result in call.results:
        call.set(result, [boxes[0], dims[1], *(fixed(size) for size in result.shape[2:])])


def _position_sensitive_boxes(call: Call) -> None:
    """`ps_roi_align` and `ps_roi_pool`: every part of a box has a channel of its own, (C parts) to C."""
    x, result = call.args[0], call.results[0]
    dims, boxes = call.dims(x), call.dims(call.args[1])
    outer, parts = factor(dims[1], x.shape[1] // result.shape[1])
    _hold([dims[0], *dims[2:], parts])
    _hold(boxes, _PLACES)
    for result in call.results:
        call.set(result, [boxes[0], outer, *(fixed(size) for size in result.shape[2:])])


def _chosen_boxes(call: Call) -> None:
    """`nms`: indices of boxes."""
    for tensor in call.tensors:
        _hold(call.dims(tensor), _PLACES)
    for result in call.results:
        call.set(result, [fixed(size, _PLACES) for size in result.shape])


def _im2col(call: Call) -> None:
    """Patches of an image: (N, C, H, W) to (N, C x kernel, patches)."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    _hold(dims[-2:])
    taps = result.shape[-2] // x.shape[-3]
    call.set(result, [*dims[:-3], product((dims[-3], fixed(taps))), fixed(result.shape[-1])])


def _col2im(call: Call) -> None:
    """Patches back to an image: (N, C x kernel, patches) to (N, C, H, W)."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    outer, taps = factor(dims[-2], x.shape[-2] // result.shape[-3])
    _hold([dims[-1], taps])
    call.set(result, [*dims[:-2], outer, fixed(result.shape[-2]), fixed(result.shape[-1])])


def _pixel_shuffle(call: Call) -> None:
    """(C r r, H, W) to (C, H r, W r)."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    outer, parts = factor(dims[-3], x.shape[-3] // result.shape[-3])
    _hold([*dims[-2:], parts])
    call.set(result, [*dims[:-3], outer, fixed(result.shape[-2]), fixed(result.shape[-1])])


def _pixel_unshuffle(call: Call) -> None:
    """(C, H r, W r) to (C r r, H, W)."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    _hold(dims[-2:])
    widened = product((dims[-3], fixed(result.shape[-3] // x.shape[-3])))
    call.set(result, [*dims[:-3], widened, fixed(result.shape[-2]), fixed(result.shape[-1])])


_POOLS = ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "mkldnn_max_pool",
          "mkldnn_adaptive_avg_pool", "fractional_max_pool", "reflection_pad", "replication_pad")  # fmt: skip
_RESIZES = ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
            "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")  # fmt: skip
_IMAGE = (*(f"{pool}{n}d{end}" for pool in _POOLS for n in (1, 2, 3) for end in ("", "_with_indices")), *_RESIZES)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_IMAGE, _image),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpool),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback"), _grid_sample),
    "affine_grid_generator": _affine_grid,
    "deform_conv2d": _deformable,
    **dict.fromkeys(("roi_align", "roi_pool"), _boxes),
    **dict.fromkeys(("ps_roi_align", "ps_roi_pool"), _position_sensitive_boxes),
    "nms": _chosen_boxes,
    "im2col": _im2col,
    "col2im": _col2im,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}

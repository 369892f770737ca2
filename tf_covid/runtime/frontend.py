"""A SavedModel as OpenVINO's own frontend reads it.

Not as its converter tool does, which would report its use to its makers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.errors import ServingError
from tf_covid.extras import optional_import
from tf_covid.tensor import Tensor


def read_saved_model(folder: Path) -> Any:  # noqa: ANN401  # a model of OpenVINO
    """The signature `serving_default` of a SavedModel, the only one that OpenVINO sees.

    Raises:
        ServingError: If OpenVINO is not installed.
        RuntimeError: If it cannot read the graph.
    """
    frontend = (
        optional_import("openvino.frontend", "openvino").FrontEndManager().load_by_framework("tf")
    )
    for extension in _gradients():
        frontend.add_extension(extension)
    return frontend.convert(frontend.load(str(folder)))


def named(results: Any) -> dict[str, np.ndarray]:  # noqa: ANN401  # OpenVINO's own
    """Named outputs of a compiled model; copies, since the next call may use the same memory."""
    return {
        next(iter(output.get_names())): np.array(values)
        for output, values in results.to_dict().items()
    }


def _gradients() -> list[Any]:
    """What OpenVINO's frontend does not know of Grad-CAM's way back through the network."""
    extension = optional_import("openvino.frontend.tensorflow", "openvino").ConversionExtension
    return [
        extension("AvgPool3DGrad", _avg_pool_grad),
        extension("ReluGrad", _relu_grad),
        extension("SigmoidGrad", _sigmoid_grad),
        extension("ConcatOffset", _concat_offset),
        extension("StridedSliceGrad", _strided_slice_grad),
    ]


def _relu_grad(node: Tensor) -> list[Any]:
    from openvino import opset14 as ops

    gradient, features = node.get_input(0), node.get_input(1)
    zero = ops.convert_like(ops.constant(0.0, dtype=np.float32), features)
    return [
        ops.multiply(gradient, ops.convert_like(ops.greater(features, zero), gradient)).output(0)
    ]


def _sigmoid_grad(node: Tensor) -> list[Any]:
    from openvino import opset14 as ops

    shares, gradient = node.get_input(0), node.get_input(1)
    one = ops.convert_like(ops.constant(1.0, dtype=np.float32), shares)
    slope = ops.multiply(shares, ops.subtract(one, shares))
    return [ops.multiply(gradient, slope).output(0)]


def _avg_pool_grad(node: Tensor) -> list[Any]:
    """Each window's gradient in equal parts to the cells that it holds; padding has no part."""
    from openvino import opset14 as ops

    shape, gradient = node.get_input(0), node.get_input(1)
    if node.get_attribute("data_format", default_value="NDHWC", dtype=str) != "NDHWC":
        raise ServingError("a gradient of a pool with channels first is not known to OpenVINO")
    size, strides = (
        [int(side) for side in node.get_attribute(name)[1:-1]] for name in ("ksize", "strides")
    )
    same = node.get_attribute("padding", dtype=str) == "SAME"
    how = {
        "strides": strides,
        "pads_begin": [0, 0, 0],
        "pads_end": [0, 0, 0],
        "dilations": [1, 1, 1],
    }
    zero, zeros = ops.constant(0, dtype=np.int64), ops.constant([0, 0, 0], dtype=np.int64)
    shape = ops.convert(shape, "i64")
    first, sides, last = (
        ops.gather(shape, ops.constant(where, dtype=np.int64), zero)
        for where in ([0], [1, 2, 3], [4])
    )
    # How many cells a window holds, and one channel at a time: they stand beside the scans.
    cell = ops.convert_like(ops.constant(1.0, dtype=np.float32), gradient)
    ones = ops.broadcast(cell, ops.constant([1, 1, *size], dtype=np.int64))
    single = ops.constant([1, 1], dtype=np.int64)
    held = ops.convolution(
        ops.broadcast(cell, ops.concat([single, sides], axis=0)),
        ones,
        **how,
        auto_pad="same_upper" if same else "valid",
    )
    each = ops.transpose(gradient, ops.constant([0, 4, 1, 2, 3], dtype=np.int64))
    windows = ops.gather(ops.shape_of(each), ops.constant([2, 3, 4], dtype=np.int64), zero)
    alone = ops.concat([ops.constant([-1, 1], dtype=np.int64), windows], axis=0)
    each = ops.divide(ops.reshape(each, alone, special_zero=False), held)
    # Without padding, which OpenVINO puts elsewhere on the way back than on the way there.
    back = ops.convolution_backprop_data(each, ones, **how)
    reach = ops.gather(ops.shape_of(back), ops.constant([2, 3, 4], dtype=np.int64), zero)
    before = ops.divide(
        ops.maximum(ops.subtract(reach, sides), zeros), ops.constant([2, 2, 2], dtype=np.int64)
    )
    before = before if same else zeros
    end = ops.add(before, sides)
    after = ops.concat(
        [ops.constant([0, 0], dtype=np.int64), ops.maximum(ops.subtract(end, reach), zeros)], axis=0
    )
    nothing = ops.convert_like(ops.constant(0.0, dtype=np.float32), gradient)
    back = ops.pad(back, ops.constant([0] * 5, dtype=np.int64), after, "constant", nothing)
    steps, axes = (ops.constant(along, dtype=np.int64) for along in ([1, 1, 1], [2, 3, 4]))
    back = ops.slice(back, before, end, steps, axes)
    apart = ops.reshape(back, ops.concat([first, last, sides], axis=0), special_zero=False)
    return [ops.transpose(apart, ops.constant([0, 2, 3, 4, 1], dtype=np.int64)).output(0)]


def _concat_offset(node: Tensor) -> list[Any]:
    """Where each of several concatenated tensors begins."""
    from openvino import opset14 as ops

    axis, shapes = (
        node.get_input(0),
        [node.get_input(index) for index in range(1, node.get_input_size())],
    )
    rank = ops.squeeze(
        ops.shape_of(shapes[0], output_type="i32"), ops.constant([0], dtype=np.int64)
    )
    one, nothing = ops.constant(1, dtype=np.int32), ops.constant(0, dtype=np.int32)
    along = ops.equal(ops.range(nothing, rank, one, output_type="i32"), ops.convert(axis, "i32"))
    along = ops.convert_like(along, shapes[0])
    start, starts = ops.multiply(along, ops.convert_like(nothing, along)), []
    for shape in shapes:
        starts.append(start.output(0))
        start = ops.add(start, ops.multiply(along, shape))
    return starts


def _strided_slice_grad(node: Tensor) -> list[Any]:
    """The gradient of a slice stands where the slice was taken, and 0 everywhere else."""
    from openvino import opset15 as ops

    shape, begin, end, strides, gradient = (node.get_input(index) for index in range(5))
    if any(
        node.get_attribute(f"{name}_mask", default_value=0, dtype=int)
        for name in ("ellipsis", "new_axis", "shrink_axis")
    ):
        raise ServingError(
            "a gradient of a slice that adds or drops an axis is not known to OpenVINO"
        )
    size = begin.get_partial_shape()[0].get_length()
    # Where the mask has a bit the slice took the whole axis.
    full = node.get_attribute("end_mask", default_value=0, dtype=int)
    open_end = ops.constant([full >> axis & 1 for axis in range(size)], dtype=bool)
    end = ops.select(open_end, ops.convert_like(ops.constant(2**31 - 1, dtype=np.int32), end), end)
    nothing = ops.convert_like(ops.constant(0.0, dtype=np.float32), gradient)
    return [
        ops.slice_scatter(ops.broadcast(nothing, shape), gradient, begin, end, strides).output(0)
    ]

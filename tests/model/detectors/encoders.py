"""A small random encoder as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write(path: Path, *, width: int = 6, channels: int = 3, seed: int = 0) -> Path:
    """Write an encoder (N, channels, 32, 32) -> (N, width): a convolution over patches of 8 pixels, then a mean.

    Its tensor "tokens" (N, 16, width) holds the squared patches.
    """
    weight = np.random.default_rng(seed).normal(size=(width, channels, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["patches"], strides=[8, 8]),
        helper.make_node("Mul", ["patches", "patches"], ["squares"]),
        helper.make_node("Reshape", ["squares", "rows"], ["places"]),
        helper.make_node("Transpose", ["places"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["squares"], ["means"]),
        helper.make_node("Flatten", ["means"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", channels, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([0, width, 16]), "rows")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path

"""A tagger in the WD form that a test can calculate by hand: real ONNX, a real tag list."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROWS = (("general", 9), ("sensitive", 9), ("blue_thing", 0), ("green_thing", 0), ("red_thing", 0), ("miku_(x)", 4), ("^_^", 0))
SCALE = 1.0 / 255
"""The mean of a channel, blue, green or red, becomes its thing's probability."""


def build_tagger(folder: Path, size: int = 8, batch: int | str = "batch", rows: tuple[tuple[str, int], ...] = ROWS) -> Path:
    """``model.onnx`` with input (batch, size, size, 3): means of the channels times a matrix plus a bias; and the tag list.

    Probabilities: general 0.3, sensitive 0.4, then mean blue, green and red, the character mean blue, the face 0.5.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    weights, bias = np.zeros((3, 7), np.float32), np.zeros(7, np.float32)
    weights[0, 2] = weights[1, 3] = weights[2, 4] = weights[0, 5] = SCALE
    bias[[0, 1, 6]] = 0.3, 0.4, 0.5
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["output"]),
    ]
    constants = {"axes": np.array([1, 2], np.int64), "weights": weights, "bias": bias}
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, size, size, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 7])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")
    lines = ["tag_id,name,category,count", *(f"{i},{name},{kind},100" for i, (name, kind) in enumerate(rows))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

"""ONNX files are looked through before they run, and answer batches of any number of pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, NAMES, SIZE, colour_answers, colour_onnx

from shards.errors import DamagedData, ToolError, UsageError
from training.engines import engine_for
from training.info import describe
from training.results.onnx_engines import open_onnxruntime, open_teco
from training.results.onnx_file import read_onnx
from training.results.saved import View, open_saved

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return (images // torch.tensor([1, 2, 4], dtype=torch.uint8)).permute(0, 3, 1, 2)


def agrees(engine: Any, count: int, tolerance: float = 1e-4) -> bool:
    images = pictures(count)
    found = engine.logits(images)
    assert found.shape == (count, engine.classes)
    assert found.dtype == torch.float32
    return bool(np.abs(found.numpy() - colour_answers(images)).max(initial=0) < tolerance)


# --- answering --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_any_number_of_pictures_is_answered(batch: int | str, tmp_path: Path) -> None:
    file = read_onnx(colour_onnx(tmp_path / "a.onnx", shape=(batch, 3, SIZE, SIZE)))
    assert file.batch == (None if batch == "batch" else batch)
    engine = open_onnxruntime(file, threads=1)
    assert (engine.name, engine.precision, engine.classes) == ("onnxruntime", "fp32", 3)
    assert all(agrees(engine, count) for count in (0, 1, 3, 4, 5, 9))
    engine.close()


def test_half_precision_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    file = read_onnx(colour_onnx(tmp_path / "a.onnx", kind="FLOAT16"))
    engine = open_onnxruntime(file, threads=1)
    assert engine.precision == "fp16"
    assert agrees(engine, 3, 0.02)


def test_half_weights_are_said_where_float32_goes_in_and_out(tmp_path: Path) -> None:
    model = onnx.load(colour_onnx(tmp_path / "a.onnx", kind="FLOAT16"))
    for value in (*model.graph.input, *model.graph.output):  # its first node makes them float16
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.graph.node[-1].output[0] = "half"
    back = onnx.helper.make_node("Cast", ["half"], ["output"], to=onnx.TensorProto.FLOAT)
    model.graph.node.append(back)
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    saved = open_saved(tmp_path / "b.onnx")
    assert saved.said == "a network as ONNX, float16, float32 in, any batch"
    assert saved.onnx is not None
    engine = open_onnxruntime(saved.onnx, threads=1)
    assert engine.precision == "fp16"
    assert agrees(engine, 3, 0.02)
    found = describe(tmp_path / "b.onnx")
    assert (found["type"], found["weights"]) == ("float32", "float16")
    assert open_saved(tmp_path / "a.onnx").said == "a network as ONNX, float16, any batch"


def test_pictures_are_normalised_as_the_file_says(tmp_path: Path) -> None:
    told = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    ours = open_onnxruntime(read_onnx(colour_onnx(tmp_path / "a.onnx")), threads=1)
    plain = open_onnxruntime(read_onnx(colour_onnx(tmp_path / "b.onnx", metadata=told)), threads=1)
    images = pictures(2)
    assert not torch.allclose(ours.logits(images), plain.logits(images), atol=0.1)


def test_what_a_file_says_of_itself_is_used(tmp_path: Path) -> None:
    path = colour_onnx(
        tmp_path / "a.onnx",
        shape=("batch", 3, "height", "height"),
        metadata={
            "classes": CLASSES,
            "class_names": NAMES,
            "model": "resnet18",
            "center_crop": 48,
            "resize_short_side": 60,
            "interpolation": "bicubic",
            "epochs": 7,
        },
    )
    saved = open_saved(path)
    assert (saved.classes, saved.class_names) == (CLASSES, NAMES)
    assert (saved.model, saved.epoch, saved.outputs) == ("resnet18", 7, 3)
    transform = saved.transform
    assert (transform.image_size, transform.resize, transform.interpolation) == (48, 60, "bicubic")
    transform = open_saved(path, view=View(image_size=32, interpolation="bilinear")).transform
    assert (transform.image_size, transform.resize, transform.interpolation) == (32, 40, "bilinear")


def test_without_a_word_it_is_the_usual_preparation(tmp_path: Path) -> None:
    shape = ("batch", 3, "height", "height")
    transform = open_saved(colour_onnx(tmp_path / "a.onnx", shape=shape)).transform
    assert (transform.image_size, transform.resize, transform.interpolation) == (
        224,
        256,
        "bilinear",
    )


def test_a_fixed_size_stays(tmp_path: Path) -> None:
    path = colour_onnx(tmp_path / "a.onnx")
    assert open_saved(path).transform.resize == 73
    with pytest.raises(UsageError, match="takes pictures of 64 pixels; leave --image-size 48 out"):
        open_saved(path, view=View(image_size=48))
    with pytest.raises(UsageError, match="--ema and --model are for weights of torch"):
        open_saved(path, ema=True)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (1, SIZE, SIZE, 3)}, "takes 1 x 64 x 64 x 3, channels last"),
        ({"shape": (1, 4, SIZE, SIZE)}, "takes 1 x 4 x 64 x 64; a batch of pictures is N x 3 x H"),
        ({"shape": (1, 3)}, "takes 1 x 3; a batch of pictures is N x 3 x H x W"),
        ({"shape": (1, 3, 64, 32)}, "pictures are squares here"),
        ({"shape": (1, 3, 0, 0)}, "pictures are squares here, of 1 to 4096 pixels"),
        ({"shape": (1, 3, 1 << 40, 1 << 40)}, "pictures are squares here, of 1 to 4096 pixels"),
        ({"shape": (1 << 40, 3, 64, 64)}, "no batch that a machine could hold"),
        ({"shape": (0, 3, 64, 64)}, "no batch that a machine could hold"),
        ({"kind": "INT64"}, "takes int64 as its input 'input'; a picture is float32 or float16"),
        ({"kind": "UINT8"}, "takes uint8 as its input"),
        ({"inputs": 2}, "has 2 inputs and 1 outputs; a classifier has one picture in"),
        ({"inputs": 0}, "has 0 inputs"),
        ({"metadata": {"classes": ["a"]}}, "gives 3 logits and its metadata name 1 classes"),
        ({"metadata": {"classes": [1, 2, 3]}}, "for classes, which must be a list of texts"),
        ({"metadata": {"mean": [0, 0]}}, "for mean, which must be three numbers"),
        ({"metadata": {"mean": "NaN"}}, "for mean, which must be three numbers"),
        ({"metadata": {"std": [1, 0, 1]}}, "for std, which must be three numbers"),
        ({"metadata": {"mean": [10**400, 0, 0]}}, "for mean, which must be three numbers"),
        ({"metadata": {"std": [True, 1, 1]}}, "for std, which must be three numbers"),
        ({"metadata": {"classes": "[" * 200_000}}, "for classes, which must be JSON"),
        ({"metadata": {"center_crop": "{"}}, "for center_crop, which must be JSON"),
        ({"metadata": {"center_crop": True}}, "which must be a whole number from 1"),
        ({"metadata": {"center_crop": 64, "resize_short_side": 63}}, "number from 64 to 8192"),
        ({"metadata": {"resize_short_side": -1}}, "which must be a whole number from 1"),
        ({"metadata": {"interpolation": "nearest"}}, "which must be bilinear or bicubic"),
        ({"location": "/etc/passwd"}, "outside its folder, in '/etc/passwd', and was refused"),
        ({"location": "../secret"}, "outside its folder, in '../secret', and was refused"),
        ({"location": "beside"}, "beside, which is not there; copy both files"),
        ({"location": "\0"}, r"in '\x00', which cannot be the name of a file, and was refused"),
        ({"location": "x" * 5000}, "which cannot be the name of a file, and was refused"),
    ],
)
def test_hostile_and_foreign_files_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = colour_onnx(tmp_path / "a.onnx", **changes)
    with pytest.raises(DamagedData) as refused:
        read_onnx(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_link_out_of_the_folder_is_outside_too(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "secret")
    path = colour_onnx(tmp_path / "model" / "a.onnx", location="weights")
    with pytest.raises(DamagedData, match="outside its folder"):
        read_onnx(path)


def test_weights_that_claim_to_be_enormous_are_refused(tmp_path: Path) -> None:
    graph = onnx.load(colour_onnx(tmp_path / "a.onnx"))
    graph.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    (tmp_path / "a.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(DamagedData, match=r"the weights 'w' claim the shape \[1048576, 1048576\]"):
        read_onnx(tmp_path / "a.onnx")


def endless() -> Any:
    """A loop whose condition is always true, around one sum."""
    true = onnx.helper.make_node(
        "Constant", [], ["go"], value=onnx.helper.make_tensor("", onnx.TensorProto.BOOL, [], [1])
    )
    values = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("count", onnx.TensorProto.INT64, []),
            ("before", onnx.TensorProto.BOOL, []),
            ("x", onnx.TensorProto.FLOAT, None),
            ("go", onnx.TensorProto.BOOL, []),
            ("y", onnx.TensorProto.FLOAT, None),
        )
    ]
    twice = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    body = onnx.helper.make_graph([true, twice], "body", values[:3], values[3:])
    return onnx.helper.make_node("Loop", ["", "", "cast"], ["looped"], body=body)


def function(name: str, nodes: list[Any]) -> Any:
    """A function of a file, in a domain of its own."""
    operators = [onnx.helper.make_opsetid("", 12), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_function("own", name, ["cast"], ["looped"], nodes, operators)


def called(name: str) -> Any:
    return onnx.helper.make_node(name, ["cast"], ["looped"], domain="own")


@pytest.mark.parametrize(
    ("node", "functions", "said"),
    [
        (endless, {}, "has a graph in a graph ('body' of a loop or a branch)"),
        (lambda: called("f"), {"f": endless}, "has a graph in a graph ('body' of a loop"),
        (lambda: called("f"), {"f": lambda: called("g")}, "functions that call each other ('f')"),
    ],
)
def test_what_may_never_end_is_refused(
    node: Callable[[], Any], functions: dict[str, Callable[[], Any]], said: str, tmp_path: Path
) -> None:
    model = onnx.load(colour_onnx(tmp_path / "a.onnx"))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([kept[0], node(), *kept[1:]])
    kept[1].input[0] = "looped"
    twice = onnx.helper.make_node("Add", ["cast", "cast"], ["looped"])
    made = [function(name, [make()]) for name, make in functions.items()]
    model.functions.extend([*made, function("g", [twice])])
    model.opset_import.add(domain="own", version=1)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DamagedData) as refused:
        read_onnx(tmp_path / "a.onnx")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# Products of matrices for minutes, one after the other, with the pictures of a large batch; a
# single picture passes at once. The signal comes when the runtime has been called.
SLOW = """
import os, signal, sys, threading, traceback
from pathlib import Path
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from training.results.onnx_engines import open_onnxruntime
from training.results.onnx_file import read_onnx

width, path = 512, Path(sys.argv[1])
nodes = [helper.make_node("Flatten", ["input"], ["flat"]),
         helper.make_node("MatMul", ["flat", "first"], ["x0"])]
nodes += [helper.make_node("MatMul", [f"x{n}", "again"], [f"x{n + 1}"]) for n in range(1000)]
nodes += [helper.make_node("MatMul", ["x1000", "last"], ["output"])]
shapes = {"first": (3, width), "again": (width, width), "last": (width, 3)}
graph = helper.make_graph(
    nodes, "slow",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 1, 1])],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3])],
    [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
path.write_bytes(model.SerializeToString())
engine = open_onnxruntime(read_onnx(path), threads=1)

def interrupt(main):
    names = set()
    while "run" not in names:
        stack = traceback.walk_stack(sys._current_frames()[main])
        names = {frame.f_code.co_name for frame, _ in stack}
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt, args=[threading.get_ident()]).start()
try:
    engine.logits(torch.zeros((20_000, 3, 1, 1), dtype=torch.uint8))
except KeyboardInterrupt:
    engine.close()
    print("stopped")
"""


def test_ctrl_c_stops_a_network_that_is_running(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW, str(tmp_path / "slow.onnx")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def test_a_network_that_does_not_fit_together_is_the_runtime_s_to_refuse(tmp_path: Path) -> None:
    graph = onnx.load(colour_onnx(tmp_path / "a.onnx"))
    graph.graph.node[3].input[1] = "nowhere"
    (tmp_path / "a.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(DamagedData, match=r"onnxruntime does not take .*a\.onnx"):
        open_onnxruntime(read_onnx(tmp_path / "a.onnx"), threads=1)


@pytest.mark.parametrize("content", [b"", b"not ONNX", bytes(1000), b"PK\x03\x04" + bytes(60)])
def test_what_is_no_onnx_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(DamagedData, match=r"a\.onnx is no ONNX file"):
        read_onnx(tmp_path / "a.onnx")


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    whole = colour_onnx(tmp_path / "a.onnx").read_bytes()
    for kept in range(1, len(whole), 7):
        (tmp_path / "a.onnx").write_bytes(whole[:kept])
        with pytest.raises(DamagedData):
            open_onnxruntime(read_onnx(tmp_path / "a.onnx"), threads=1)


def test_missing_files_and_missing_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ToolError, match=r"a\.onnx does not exist"):
        read_onnx(tmp_path / "a.onnx")
    with pytest.raises(ToolError, match="is not a file; give an ONNX file"):
        read_onnx(tmp_path)
    path = colour_onnx(tmp_path / "a.onnx")
    file = read_onnx(path)
    for library in ("onnx", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            with pytest.raises(ToolError, match=rf"needs {library}: pip install .*\[export\]"):
                open_onnxruntime(read_onnx(path) if library == "onnx" else file, threads=1)


def test_engines_take_their_own_files() -> None:
    assert engine_for("auto", onnx=True) == "onnxruntime"
    assert engine_for("auto", onnx=False) == "torch"
    with pytest.raises(UsageError, match="not ONNX files"):
        engine_for("torch", onnx=True)
    with pytest.raises(UsageError, match="--engine teco takes ONNX files"):
        engine_for("teco", onnx=False)


# --- the vendor's engine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "asked", "compiled"),
    [("batch", 64, 16), ("batch", 6, 1), ("batch", 1, 1), (2, 64, 2)],
)
def test_a_batch_is_divided_among_the_cards_spas(
    teco: Any, batch: int | str, asked: int, compiled: int, tmp_path: Path, capfd: Any
) -> None:
    file = read_onnx(colour_onnx(tmp_path / "a.onnx", shape=(batch, 3, SIZE, SIZE), kind="FLOAT16"))
    engine = open_teco(file, batch_size=asked, image_size=SIZE)
    made = teco.made[-1]
    assert made.input_size == [[compiled, 3, SIZE, SIZE]]
    assert made.batch_size == 4 * compiled
    assert made.dtype == "float16"
    assert all(agrees(engine, count, 0.02) for count in (1, 4 * compiled, 4 * compiled + 1))
    engine.close()
    assert made.released
    said = capfd.readouterr()
    assert said.out == ""
    assert "tvm_run" in said.err


def test_another_number_of_replicas(
    teco: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_onnx(colour_onnx(tmp_path / "a.onnx"))
    monkeypatch.setenv("MAX_ENGINE_NUMS", "3")
    engine = open_teco(file, batch_size=9, image_size=SIZE)
    assert (teco.made[-1].batch_size, teco.made[-1].dtype) == (9, "float32")
    assert agrees(engine, 10)
    monkeypatch.setenv("MAX_ENGINE_NUMS", "many")
    with pytest.raises(UsageError, match="MAX_ENGINE_NUMS=many: it must be a whole number"):
        open_teco(file, batch_size=9, image_size=SIZE)


def test_without_the_vendor_s_engine_it_says_what_is_missing(tmp_path: Path) -> None:
    file = read_onnx(colour_onnx(tmp_path / "a.onnx"))
    with pytest.raises(ToolError, match=r"--engine teco needs the vendor's .*tvm.*INFERENCE.md"):
        open_teco(file, batch_size=4, image_size=SIZE)

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.numpy_helper import from_array

from onnxpress_adapters.errors import BrokenModelError, ExportError
from onnxpress_adapters.packed_tensors import MARK
from onnxpress_adapters.prunable import count_zeros
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.densify import densify
from onnxpress_exporters.packable import SETTABLE
from onnxpress_exporters.values import Half, Palette, Scaled, Storage, rounded
from onnxpress_exporters.write import Patched, patch, write
from small_models import branching, model, perceptron, thinned, value

KEY = WeightKey((), "w")
NEWEST = min(onnx.defs.onnx_opset_version(), 23)


def holding(
    *arrays: np.ndarray, opset: int = 17, as_node: bool = False, notes: bool = False
) -> ModelProto:
    """A model that gives every constant back as it is, ``w``, ``w1``, ``w2`` and so on."""
    nodes: list[NodeProto] = []
    tensors, outputs = [], []
    for place, array in enumerate(arrays):
        name = f"w{place or ''}"
        tensor = from_array(np.zeros_like(array), name)
        if notes:
            tensor.doc_string = f"about {name}"
            tensor.metadata_props.add(key="from", value=name)
        if as_node:
            tensor.ClearField("name")
            nodes.append(helper.make_node("Constant", [], [name], f"{name}_node", value=tensor))
        else:
            tensors.append(tensor)
        kept = helper.make_node("Concat", [name, f"x{place}"], [f"y{place}"], axis=0)
        nodes.append(kept)
        outputs.append(helper.make_tensor_value_info(f"y{place}", tensor.data_type, [*array.shape]))
    inputs = [
        helper.make_tensor_value_info(
            f"x{place}", helper.np_dtype_to_tensor_dtype(array.dtype), [0, *array.shape[1:]]
        )
        for place, array in enumerate(arrays)
    ]
    return model(helper.make_graph(nodes, "g", inputs, outputs, tensors), opset)


def packed(*arrays: np.ndarray, storage: Storage | None = None, **how: bool | int) -> Patched:
    """Pack all constants of a model that holds them."""
    changed = {WeightKey((), f"w{place or ''}"): array for place, array in enumerate(arrays)}
    stored = {} if storage is None else dict.fromkeys(changed, storage)
    return patch(holding(*arrays, **how), changed, "packed", stored)  # type: ignore[arg-type]  # keywords


def folded_operators(made: ModelProto, folder: Path) -> list[str]:
    """Give the operators onnxruntime is left with at its basic level, bodies included."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=providers)
    left = onnx.load(folder / "optimised.onnx")
    graphs = [left.graph]
    names = []
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            names.append(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return sorted(names)


def assert_decodes(patched: Patched, arrays: tuple[np.ndarray, ...], folder: Path) -> None:
    """Check a packed model: sound, folded, and the same bits from onnxruntime and from numpy."""
    onnx.checker.check_model(patched.model, full_check=True)
    assert set(folded_operators(patched.model, folder)) == {"Concat"}
    answers = Runner(patched.model, threads=1).run(
        {f"x{n}": np.zeros((0, *a.shape[1:]), a.dtype) for n, a in enumerate(arrays)}
    )
    for answer, array in zip(answers, arrays, strict=True):
        assert answer.dtype == array.dtype
        assert answer.tobytes() == array.tobytes()
    dense = densify(patched.model)
    onnx.checker.check_model(dense, full_check=True)
    changed = {WeightKey((), f"w{n or ''}"): array for n, array in enumerate(arrays)}
    assert MARK not in {entry.key for entry in dense.metadata_props}
    plain = patch(dense, changed, "dense").model
    assert plain.SerializeToString() == dense.SerializeToString()  # nothing to change


DENSITIES = [0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.8]


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13, 17, NEWEST])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", [(61, 67), (64, 8, 3, 3), (5001,)])
def test_what_is_packed_decodes_to_the_same_bits(
    shape: tuple[int, ...], density: float, opset: int, tmp_path: Path
) -> None:
    array = thinned(*shape, density=density)
    patched = packed(array, opset=opset)
    form = patched.forms[KEY]
    way = "zeros" if density == 0 else "gaps" if density <= 0.1 else "bitmask"
    if opset == 8:
        assert "gaps" not in form  # these need a Scatter
    elif density not in (0.3, 0.5):  # where it depends on how large the constant is
        assert way in form
    assert patched.model.ByteSize() < holding(array, opset=opset).ByteSize()
    assert [o.version for o in patched.model.opset_import] == [opset]
    assert_decodes(patched, (array,), tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.uint8])
@pytest.mark.parametrize("density", [0.05, 0.4])
@pytest.mark.parametrize("opset", [8, 9, 17])
def test_every_type_that_is_packed(dtype: type, density: float, opset: int, tmp_path: Path) -> None:
    array = (50 * np.abs(thinned(90, 50, density=density))).astype(dtype)
    patched = packed(array, opset=opset)
    if array.itemsize > 1 or opset > 8:
        assert patched.forms[KEY].startswith("packed: ")
    assert_decodes(patched, (array,), tmp_path)


def scale(*shape: int, dtype: type = np.float32) -> Scaled:
    rng = np.random.default_rng(0)
    return Scaled(rng.uniform(0.01, 0.03, shape).astype(dtype))


@pytest.mark.parametrize("opset", [8, 9, 11, 17])
@pytest.mark.parametrize("density", [0.03, 0.4, 1.0])
@pytest.mark.parametrize(
    ("storage", "called"),
    [
        (Half(), "fp16"),
        (scale(), "int8"),
        (scale(dtype=np.float16), "int8"),
        (scale(80, 1), "int8"),
        (scale(1, 90, dtype=np.float16), "int8"),
        (Palette(np.array([-0.5, 0.25, 1.5], np.float32)), "palette of 2 bits"),
        (Palette(np.array([-1, 1], np.float32)), "palette of"),
        (Palette(np.linspace(-2, 2, 15, dtype=np.float32)), "palette of 4 bits"),
        (Palette(np.linspace(-2, 2, 100, dtype=np.float32)), "palette of 8 bits"),
    ],
)
def test_rounded_values_become_codes(
    storage: Storage, called: str, density: float, opset: int, tmp_path: Path
) -> None:
    array = rounded(thinned(80, 90, density=density), storage)
    patched = packed(array, storage=storage, opset=opset)
    if not (called == "int8" and "palette" in patched.forms[KEY]):  # few values, many zeros
        assert called in patched.forms[KEY]
    assert_decodes(patched, (array,), tmp_path)


@pytest.mark.parametrize("opset", [8, 9, 11, 17])
@pytest.mark.parametrize("density", [0.4, 1.0])
@pytest.mark.parametrize("bits", [6, 5, 4, 3, 2])
def test_codes_of_fewer_bits(bits: int, density: float, opset: int, tmp_path: Path) -> None:
    few = 2 ** (bits - 1) - 1
    scaled = Scaled(scale(90, 1).scales * np.float32(100 / few), bits)
    book = Palette(np.linspace(-2, 2, 2 * few, dtype=np.float32))
    sizes = []
    for storage, called in ((scaled, f"int{bits}"), (book, f"palette of {bits} bits")):
        array = rounded(thinned(90, 201, density=density), storage)
        patched = packed(array, storage=storage, opset=opset)
        assert called in patched.forms[KEY]
        assert_decodes(patched, (array,), tmp_path)
        sizes.append(patched.model.ByteSize())
    wide = packed(rounded(array, scale(90, 1)), storage=scale(90, 1), opset=opset)
    assert max(sizes) < wide.model.ByteSize() - 90 * 201 * density * (8 - bits) / 8 + 1300


def test_small_constants_of_fewer_bits_share_a_decoder(tmp_path: Path) -> None:
    keys = [KEY, WeightKey((), "w1"), WeightKey((), "w2")]
    storage = {k: Scaled(np.array(0.07 * (n + 2), np.float32), 5) for n, k in enumerate(keys)}
    many = [
        rounded(thinned(60, 40, density=0.4, seed=seed), storage[k]) for seed, k in enumerate(keys)
    ]
    patched = patch(holding(*many), dict(zip(keys, many, strict=True)), "packed", storage)
    assert set(patched.forms.values()) == {"packed: bitmask, int5, shared"}
    assert_decodes(patched, tuple(many), tmp_path)


def test_a_scale_that_does_not_give_the_values_back_is_not_used(tmp_path: Path) -> None:
    array = thinned(80, 90, density=0.4)
    patched = packed(array, storage=scale())
    assert patched.forms[KEY] == "packed: bitmask, float32"
    assert_decodes(patched, (array,), tmp_path)


def test_minus_zero_is_kept(tmp_path: Path) -> None:
    array = thinned(80, 90, density=0.3)
    array[::7] = -0.0
    assert_decodes(packed(array), (array,), tmp_path)
    assert_decodes(packed(rounded(array, Half())), (rounded(array, Half()),), tmp_path)


def test_gaps_longer_than_a_byte_holds(tmp_path: Path) -> None:
    for step in (255, 256, 257, 510, 511, 766):
        array: np.ndarray = np.zeros(40000, np.float32)
        array[step::step] = 0.1 + np.arange(len(array[step::step]))
        array[0] = 7
        patched = packed(array)
        assert "gaps" in patched.forms[KEY]
        assert_decodes(patched, (array,), tmp_path)
    assert patched.forms[KEY] == "packed: wide gaps, float32"


def test_bytes_per_weight_of_each_form() -> None:
    """Streams of 200,000 weights and a decoder: an int8 code takes a byte, a gap half of one."""
    for density, storage, most in [
        (0.1, None, 0.48),
        (0.1, scale(), 0.18),
        (0.5, None, 2.2),
        (0.5, scale(), 0.65),
    ]:
        array = thinned(400, 500, density=density)
        if storage is not None:
            array = rounded(array, Scaled(np.array(0.03, np.float32)))
            storage = Scaled(np.array(0.03, np.float32))
        patched = packed(array, storage=storage)
        taken = patched.model.ByteSize() - holding(array[:0]).ByteSize()
        assert taken / array.size < most


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("storage", [None, Half(), scale()])
@pytest.mark.parametrize("density", [0.05, 0.4])
def test_small_constants_share_a_decoder(
    density: float, storage: Storage | None, opset: int, tmp_path: Path
) -> None:
    arrays = tuple(
        thinned(30, 20 + 5 * (seed % 3), density=density, seed=seed) for seed in range(7)
    )
    if storage is not None:
        arrays = tuple(rounded(array, storage) for array in arrays)
    patched = packed(*arrays, storage=storage, opset=opset)
    assert all(form.endswith("shared") for form in patched.forms.values())
    assert len(patched.forms) == 7
    operators = [node.op_type for node in patched.model.graph.node]
    assert operators.count("Split") == 1
    assert_decodes(patched, arrays, tmp_path)


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("sizes", [(100,), (20, 20, 20, 20)])
def test_names_notes_and_places_come_back(
    as_node: bool, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    arrays = tuple(thinned(40, n, density=0.2, seed=n) for n in sizes)
    made = packed(*arrays, as_node=as_node, notes=True)
    assert all(form.startswith("packed") for form in made.forms.values())
    assert_decodes(made, arrays, tmp_path)
    changed = {WeightKey((), f"w{n or ''}"): array for n, array in enumerate(arrays)}
    plain = patch(holding(*arrays, as_node=as_node, notes=True), changed, "dense").model
    assert densify(made.model) == plain


def test_constant_nodes_without_a_name_stay_nodes(tmp_path: Path) -> None:
    arrays = (thinned(40, 40), thinned(50, 50, density=0.6))
    changed = {WeightKey((), name): array for name, array in zip(("w", "w1"), arrays, strict=True)}
    original = holding(*arrays, as_node=True)
    for node in original.graph.node:
        node.ClearField("name")
    made = patch(original, changed, "packed")
    assert_decodes(made, arrays, tmp_path)
    assert densify(made.model) == patch(original, changed, "dense").model


@pytest.mark.parametrize("as_node", [False, True])
def test_weights_in_the_branches_of_an_if(as_node: bool, tmp_path: Path) -> None:
    original = branching(np.ones((16, 4)), as_node)
    for branch in original.graph.node[0].attribute:  # wide enough to be worth a decoder
        (weight,) = list(branch.g.initializer) or [branch.g.node[0].attribute[0].t]
        weight.CopyFrom(from_array(np.ones((16, 400), np.float32), weight.name))
        branch.g.output[0].type.tensor_type.shape.dim[1].dim_value = 400
    original.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 400
    keys = [WeightKey((f"choose[0].{name}",), "w") for name in ("else_branch", "then_branch")]
    changed = {key: thinned(16, 400, seed=seed) for seed, key in enumerate(keys)}
    patched = patch(original, changed, "packed")
    assert set(patched.forms.values()) == {"packed: gaps, float32"}
    onnx.checker.check_model(patched.model, full_check=True)
    assert folded_operators(patched.model, tmp_path) == ["If", "MatMul", "MatMul"]
    plain = patch(original, changed, "dense").model
    assert densify(patched.model) == plain
    for chosen in (True, False):
        feed = {"x": np.ones((1, 16), np.float32), "c": np.array(chosen)}
        (one,), (other,) = (Runner(m, threads=1).run(feed) for m in (patched.model, plain))
        assert one.tobytes() == other.tobytes()


def test_what_is_not_packed_says_why() -> None:
    array = thinned(60, 60)
    old = patch(holding(array, opset=7), {KEY: array}, "packed")
    assert old.reasons[KEY] == ("opset 7 lacks operators to decode it with; opset 8 has them")
    assert old.forms[KEY] == "sparse"  # the form that needs none
    settable = holding(array)
    settable.graph.input.append(value("w", 60, 60))
    patched = patch(settable, {KEY: array}, "packed")
    assert patched.reasons[KEY] == SETTABLE
    assert patched.model.graph.input == settable.graph.input
    given = holding(array)
    given.graph.output.append(value("w", 60, 60))
    patched = patch(given, {KEY: array}, "packed")
    assert patched.reasons[KEY] == "it is an output of its graph"
    assert patched.forms[KEY] == "dense"
    full = thinned(60, 60, density=1.0)
    patched = patch(holding(full), {KEY: full}, "packed")
    assert (patched.forms[KEY], patched.reasons[KEY]) == ("dense", "dense is smaller")
    assert patched.model == patch(holding(full), {KEY: full}, "dense").model


def test_a_constant_that_is_an_input_is_frozen_on_request(tmp_path: Path) -> None:
    array = thinned(60, 60)
    settable = holding(array)
    plain = settable.graph.input[:]
    settable.graph.input.append(value("w", 60, 60))
    patched = patch(settable, {KEY: array}, "packed", freeze=True)
    assert patched.forms[KEY].startswith("packed: ")
    assert list(patched.model.graph.input) == plain
    assert_decodes(patched, (array,), tmp_path)
    full = thinned(60, 60, density=1.0)  # dense is smaller, so there is nothing to gain
    dense = patch(settable, {KEY: full}, "packed", freeze=True).model
    assert list(dense.graph.input) == plain


def listing(*arrays: np.ndarray, opset: int) -> ModelProto:
    """A model of IR version 3, which lists its constants among its inputs."""
    made = holding(*arrays, opset=opset)
    made.ir_version = 3
    made.graph.input.extend(value(t.name, *t.dims) for t in made.graph.initializer)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("opset", [8, 11])
@pytest.mark.parametrize("density", [0.02, 0.4])
def test_a_file_that_lists_its_constants_as_inputs(
    opset: int, density: float, tmp_path: Path
) -> None:
    many = [thinned(60, 60, density=density), thinned(50, 90, density=density, seed=1)]
    changed = {WeightKey((), "w"): many[0], WeightKey((), "w1"): many[1]}
    original = listing(*many, opset=opset)
    patched = patch(original, changed, "packed")
    assert all(form.startswith("packed") for form in patched.forms.values())
    made = patched.model
    onnx.checker.check_model(made, full_check=True)
    assert made.ir_version == 3
    held = [tensor.name for tensor in made.graph.initializer]
    assert [one.name for one in made.graph.input] == ["x0", "x1", *held]
    assert not {"w", "w1"} & set(held)
    dense = densify(made)
    assert dense == patch(original, changed, "dense").model
    feed = {f"x{n}": np.zeros((0, a.shape[1]), np.float32) for n, a in enumerate(many)}
    for answer, array in zip(Runner(made, threads=1).run(feed), many, strict=True):
        assert answer.tobytes() == array.tobytes()
    assert set(folded_operators(made, tmp_path)) == {"Concat"}


def test_names_never_collide(tmp_path: Path) -> None:
    array = thinned(60, 60)
    made = holding(array)
    made.graph.node[0].name = "~0.gaps"
    patched = patch(made, {KEY: array}, "packed")
    (mark,) = [entry.value for entry in patched.model.metadata_props if entry.key == MARK]
    assert mark == "~~"
    assert_decodes(patched, (array,), tmp_path)


def test_a_file_that_is_read_is_plain_and_pressed_again_the_same(tmp_path: Path) -> None:
    array = thinned(100, 60)
    patched = packed(array)
    path = tmp_path / "m.onnx"
    size = write(patched.model, path)
    first = path.read_bytes()
    assert size == len(first)
    again = read_model(path)
    assert again == densify(patched.model)
    write(patch(again, {KEY: array}, "packed").model, path)
    assert path.read_bytes() == first
    with pytest.raises(ExportError, match="packed constants already"):
        patch(patched.model, {KEY: array})


@pytest.mark.parametrize("form", ["packed", "sparse"])
def test_streams_in_a_data_file(form: str, tmp_path: Path) -> None:
    original = perceptron()
    changed = {WeightKey((), "w1"): thinned(16, 32), WeightKey((), "b1"): thinned(32)}
    made = patch(original, changed, "packed" if form == "packed" else "sparse").model
    plain = densify(made)
    tensors = [*made.graph.initializer]
    tensors += [sparse.values for sparse in made.graph.sparse_initializer]
    data = b""
    for tensor in tensors:
        raw = numpy_helper.to_array(tensor).tobytes()
        if len(raw) < 64:  # onnxruntime wants to see shapes at once; onnx.save leaves them too
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, number in (("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(number))
        tensor.external_data.add(key="location", value="m.data")
        data += raw
    (tmp_path / "m.data").write_bytes(data)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    read = read_model(tmp_path / "m.onnx")
    for one, other in zip(read.graph.initializer, plain.graph.initializer, strict=True):
        assert (one.name, one.raw_data) == (other.name, other.raw_data)
    feed = {"x": np.ones((1, 16), np.float32)}
    answers = [Runner(m, threads=1).run(feed)[0] for m in (tmp_path / "m.onnx", plain)]
    assert answers[0].tobytes() == answers[1].tobytes()


def test_zeros_are_counted_in_what_is_read(tmp_path: Path) -> None:
    changed = {
        WeightKey((), "w1"): thinned(16, 32, density=0.2),
        WeightKey((), "w2"): thinned(32, 4, density=0.2, seed=1),
    }
    patched = patch(perceptron(), changed, "packed")
    write(patched.model, tmp_path / "m.onnx")
    zeros = sum(int((array == 0).sum()) for array in changed.values())
    assert count_zeros(read_model(tmp_path / "m.onnx")) == (zeros, 16 * 32 + 32 * 4)


def test_the_bitmask_is_left_where_its_tables_cost_more_than_it_saves() -> None:
    array = thinned(40, 40, density=0.5)
    assert "gaps" in packed(array).forms[KEY]
    assert "bitmask" in packed(np.tile(array, (10, 10))).forms[KEY]


@pytest.mark.parametrize(
    ("density", "bits", "opset"),
    [(0.25, 2, 11), (0.25, 2, 17), (0.1, 4, 9), (0.1, 4, 11), (0.1, 4, 17)],
)
def test_gaps_in_parts_of_a_byte(density: float, bits: int, opset: int, tmp_path: Path) -> None:
    for first in (0.0, 1.5):
        array = thinned(201, 203, density=density)
        array[0, 0] = array[-1, -1] = first
        patched = packed(array, opset=opset)
        assert patched.forms[KEY] == f"packed: {bits}-bit gaps, float32"
        assert_decodes(patched, (array,), tmp_path)


def broken(array: np.ndarray) -> ModelProto:
    return packed(array).model


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("operator", "which no decoder of this version of onnxpress has"),
        ("place", "a place outside"),
        ("shape", "does not fit its inputs"),
        ("missing", "does not fit its inputs"),
    ],
)
def test_a_broken_decoder_is_refused(attack: str, message: str) -> None:
    made = broken(thinned(60, 60))
    graph = made.graph
    by_name = {tensor.name: tensor for tensor in graph.initializer}
    if attack == "operator":
        graph.node[0].op_type = "NonZero"
    elif attack == "place":
        gaps = by_name["~0.gaps"]
        gaps.raw_data = b"\xff" * len(gaps.raw_data)
    elif attack == "shape":
        by_name["~0.shape"].CopyFrom(from_array(np.array([60, 61]), "~0.shape"))
    else:
        graph.node[0].input[0] = "~nowhere"
    with pytest.raises(BrokenModelError, match=message):
        densify(made)


def test_a_decoder_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    made = broken(thinned(60, 60))
    by_name = {tensor.name: tensor for tensor in made.graph.initializer}
    by_name["~0.zs"].CopyFrom(from_array(np.array([1 << 40]), "~0.zs"))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(Exception, match="a packed constant takes more than"):
        read_model(tmp_path / "m.onnx")

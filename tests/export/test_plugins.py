# SPDX-License-Identifier: Apache-2.0
"""ONNX for TensorRT: its nodes are what the plugins take, and the plugins compute the network from them."""

from __future__ import annotations

import re
import runpy
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from networks import small
from tensorrt_host import BUILD, Plugin, creators, describe, library, unpacked
from test_export import BOUND, assert_right, exactly
from torch import Tensor

import ditn
from ditn.commands import cli
from ditn.export.plugins import open_reference
from ditn_kernels import REGISTRY, BackendError

absent = [name for name in ("onnx", "onnxscript") if not find_spec(name)]
pytestmark = pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (pip install .[deploy])")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")


@pytest.fixture(scope="module")
def model() -> ditn.DITN:
    return small()


@pytest.fixture(scope="module")
def file(tmp_path_factory, model) -> Path:
    path = tmp_path_factory.mktemp("trt") / "small.onnx"
    done = ditn.export(model, path, format="trt-onnx")
    assert 0 < done.error < BOUND
    return path


def fused_nodes(path: Path) -> list[Any]:
    import onnx

    return [node for node in onnx.load(path).graph.node if node.domain]


def options_of(node: Any) -> dict[str, Any]:
    import onnx

    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def test_one_node_for_every_fused_operator(file, model) -> None:
    config = model.config
    count = Counter(node.op_type for node in fused_nodes(file))
    assert count == {
        "inner_patch_attention": config.itls,
        "dilated_gate": config.sals,
        "gated_ffn": config.itls + config.sals,
    }


def test_the_file_says_what_it_is_and_not_where_it_was_made(file, model) -> None:
    import onnx

    graph = onnx.load(file)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert (facts["grid"], facts["overlap"]) == (str(model.config.grid), str(model.config.overlap))
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20, "ditn": 1}
    assert str(Path(ditn.__file__).parent).encode() not in file.read_bytes()


@needs_compiler
@pytest.mark.slow  # compiles the plugins
def test_nodes_are_what_the_plugins_take(file) -> None:
    """Names, namespace and version; every field and no other attribute; as many inputs, of constant shapes."""
    known = {name: (index, version, namespace) for index, (name, version, namespace, _) in enumerate(creators())}
    for node in fused_nodes(file):
        index, version, namespace = known[node.op_type]
        options = options_of(node)
        assert options.pop("plugin_version") == version
        assert options.pop("plugin_namespace") == namespace == node.domain
        assert set(options) == set(unpacked(library().creator_fields(index)))
        assert len(node.input) == len(REGISTRY[node.op_type].axes)


def run_plugin(op: str, options: dict[str, Any], x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    options = {name: value.decode() if isinstance(value, bytes) else value for name, value in options.items()}
    plugin = Plugin(op, options, BUILD)
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    tensors = dict(zip(REGISTRY[op].axes, (x, *weights), strict=True)) | {"result": torch.empty_like(x)}
    described = describe(tensors)
    plugin.check("configure", described, len(described))
    plugin.check("shape_change", described, len(described))
    plugin.enqueue(described, plugin.call("workspace", described, len(described)))
    plugin.destroy()
    return tensors["result"].permute(0, 2, 3, 1).contiguous()


@needs_compiler
def test_the_plugins_compute_the_network(file, model) -> None:
    """The file's own nodes, attributes and weights through the plugins, everything else by ONNX's reference."""
    image = torch.rand(1, 3, 9, 5)
    result = open_reference(file, run_plugin)(image)
    expected = exactly(model, image)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=BOUND * float(expected.abs().max()))


def test_any_size(file, model) -> None:
    assert_right(open_reference(file), model)


def test_a_node_with_another_weight_is_noticed(file, model, tmp_path) -> None:
    """The evaluator does use what the file holds."""
    import onnx

    graph = onnx.load(file)
    used = fused_nodes(file)[0].input[-1]
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == used)
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, used))
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(AssertionError):
        assert_right(open_reference(tmp_path / "other.onnx"), model)


@pytest.mark.slow
def test_other_networks_in_halves_and_bytes(tmp_path) -> None:
    tiny = small(ditn.DITN_Tiny, ufones=2, bias=True, ufone_conv=True, upscale=3, expansion=1.5)
    ditn.export(tiny, tmp_path / "tiny.onnx", format="trt-onnx")
    assert_right(open_reference(tmp_path / "tiny.onnx"), tiny)
    ditn.export(small(), tmp_path / "bytes.onnx", format="trt-onnx", dtype=torch.float16, uint8=True)


@pytest.mark.slow
def test_the_shipped_model_from_the_command_line(tmp_path) -> None:
    path = tmp_path / "real.onnx"
    assert cli.main(["export", "ditn-real-x4", "-o", str(path), "--format", "trt-onnx", "--no-verify"]) == 0
    assert len(fused_nodes(path)) == 16


def test_what_the_plugins_cannot_run_is_refused(tmp_path) -> None:
    path = tmp_path / "a.onnx"
    for refused, message in (
        (small(dim=132), "the TensorRT plugin inner_patch_attention takes at most 128 channels, the input has 132"),
        (small(patch_size=12), "the TensorRT plugin inner_patch_attention takes patch sizes 4, 8, 16, asked for 12"),
    ):
        with pytest.raises(BackendError, match=message):
            ditn.export(refused, path, format="trt-onnx")
    with pytest.raises(BackendError, match="computes float16, float32, the input is bfloat16"):
        ditn.export(small(), path, format="trt-onnx", dtype=torch.bfloat16)
    assert not list(tmp_path.iterdir())


def test_tiles_give_the_whole_picture(file, model) -> None:
    """The example's tiles, which the model runs here: none is larger than the profile, and their result is the whole
    picture's."""
    example = runpy.run_path(str(PROJECT / "examples" / "tensorrt_upscale.py"))
    facts = example["facts_of"](file)
    sizes: list[int] = []

    def run(image: Tensor) -> Tensor:
        sizes.extend(image.shape[2:])
        return model(image)

    image = torch.rand(1, 3, 93, 20)
    tiled = example["upscale"](run, image, facts, 20)
    assert max(sizes) == example["largest_input"](facts, 20) == 24 + 2 * model.config.overlap
    assert not any(size % model.config.grid for size in sizes)
    # The same sums over the same values, but for the order in which the CPU's kernels take pixels.
    torch.testing.assert_close(tiled, model(image), rtol=0, atol=BOUND * float(tiled.abs().max()))


def test_the_guides_profile_is_the_networks() -> None:
    guide = (PROJECT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    example = runpy.run_path(str(PROJECT / "examples" / "tensorrt_upscale.py"))
    config = ditn.DITN_Real(4).config
    facts = {"grid": str(config.grid), "overlap": str(config.overlap)}
    side = example["largest_input"](facts, 256)
    largest = set(re.findall(r"--(?:opt|max)?[sS]hapes=image:(\S+)", guide))
    assert largest == {f"1x3x{side}x{side}"}
    assert re.findall(r"--minShapes=image:(\S+)", guide) == [f"1x3x{config.grid}x{config.grid}"]
    assert f"{config.grid} and {config.overlap} for DITN-Real, 8 and {ditn.DITN(4).config.overlap} for DITN" in guide

# SPDX-License-Identifier: Apache-2.0
"""Build a TensorRT engine with this project's plugins for tiles of one size, and upscale a picture of any size with it.

python examples/tensorrt_upscale.py ditn.onnx PLUGINS.so photo.png large.png [TILE]
python examples/tensorrt_upscale.py ditn.onnx python photo.png large.png [TILE]

With "python" the plugins are those of ditn_kernels.tensorrt_plugins, which Triton compiles.

The file is from `ditn export --format trt-onnx`. An engine reserves memory for the largest input of its profile, so the
profile is a tile's: TILE pixels a side (256) and the overlap around them that gives the whole picture's result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditn.inference import tiles
from ditn_kernels import tensorrt_plugins


def facts_of(path: Path) -> dict[str, str]:
    """What the file says about itself."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def largest_input(facts: Mapping[str, str], tile: int) -> int:
    """Pixels a side of what a tile needs to see."""
    return tiles.round_up(tile, int(facts["grid"])) + 2 * int(facts["overlap"])


def graph_of(path: Path, plugins: str) -> bytes:
    """The file as the parser takes it for these plugins."""
    if plugins != "python":
        return path.read_bytes()
    import onnx

    model = onnx.load(path)
    tensorrt_plugins.complete(model)
    completed: bytes = model.SerializeToString()
    return completed


def load(plugins: str) -> None:
    """Make the plugins known."""
    import tensorrt as trt

    registry: Any = trt.get_plugin_registry()
    if plugins == "python":
        tensorrt_plugins.register()
    elif registry.load_library(plugins) is None:
        raise SystemExit(f"TensorRT cannot load {plugins}")


def build(graph: bytes, facts: Mapping[str, str], tile: int) -> Callable[[Tensor], Tensor]:
    """An engine for tiles, as a function of images [1, C, H, W] on the GPU."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # From TensorRT 11 on there is no other kind of network.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise RuntimeError(f"TensorRT cannot read the graph: {parser.get_error(0)}")
    channels, grid, side = network.get_input(0).shape[1], int(facts["grid"]), largest_input(facts, tile)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, channels, grid, grid), (1, channels, side, side), (1, channels, side, side))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT built no engine; its log says why")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()

    def run(image: Tensor) -> Tensor:
        context.set_input_shape("image", tuple(image.shape))
        enlarged = torch.empty(tuple(context.get_tensor_shape("enlarged")), dtype=image.dtype, device=image.device)
        context.set_tensor_address("image", image.data_ptr())
        context.set_tensor_address("enlarged", enlarged.data_ptr())
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"the engine failed on an input of shape {list(image.shape)}; TensorRT's log says why")
        torch.cuda.current_stream().wait_stream(stream)
        return enlarged

    return run


def upscale(run: Callable[[Tensor], Tensor], image: Tensor, facts: Mapping[str, str], tile: int) -> Tensor:
    """image [1, C, H, W] -> [1, C, H * s, W * s], tile by tile, as `run` would do it at once."""
    scale, grid, overlap = (int(facts[key]) for key in ("scale", "grid", "overlap"))
    (height, width), tile = image.shape[-2:], tiles.round_up(tile, grid)
    rows, columns = tiles.round_up(height, grid), tiles.round_up(width, grid)
    for axis, size, padded in ((2, height, rows), (3, width, columns)):
        image = image.index_select(axis, torch.from_numpy(tiles.reflected(size, 0, padded)).to(image.device))
    large = image.new_empty(*image.shape[:2], rows * scale, columns * scale)
    for region in tiles.cut(rows, columns, tile, grid):
        seen = region.grown(overlap, rows, columns)
        enlarged = run(_part(image, seen).contiguous())
        inner = tiles.Region(region.top - seen.top, region.left - seen.left, region.height, region.width)
        _part(large, region, scale).copy_(_part(enlarged, inner, scale))
    return large[..., : height * scale, : width * scale]


def _part(image: Tensor, region: tiles.Region, scale: int = 1) -> Tensor:
    rows = slice(region.top * scale, (region.top + region.height) * scale)
    return image[..., rows, region.left * scale : (region.left + region.width) * scale]


def main(onnx_file: str, plugins: str, source: str, target: str, tile: str = "256") -> None:
    load(plugins)
    facts = facts_of(Path(onnx_file))
    run = build(graph_of(Path(onnx_file), plugins), facts, int(tile))
    picture = torch.from_numpy(np.array(Image.open(source).convert("RGB"))).cuda()
    image = (picture.permute(2, 0, 1)[None].float() / 255).to(getattr(torch, facts["dtype"]))
    large = upscale(run, image, facts, int(tile))[0].float().clamp(0, 1).mul(255).round().byte()
    Image.fromarray(large.permute(1, 2, 0).cpu().numpy()).save(target)
    print(f"{target}: {large.shape[2]}x{large.shape[1]} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""The operators as TensorRT plugins without a C++ compiler: TensorRT's own `tensorrt.plugin`, Triton's kernels.

    from ditn_kernels import tensorrt_plugins
    tensorrt_plugins.register()
    tensorrt_plugins.complete(model)    # an onnx.ModelProto of `ditn export --format trt-onnx`

They have the names, inputs and attributes of csrc/tensorrt's plugins. An operator that is one kernel is compiled ahead
of time: an engine holds its PTX and runs without Python. One that is several is called by the engine, in Python.
No TensorRT has run this yet; docs/tensorrt.md says what is tested.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ditn_kernels._dispatch import BackendError
from ditn_kernels._op import Op
from ditn_kernels.backends.triton._dispatch import interpreted, why_missing
from ditn_kernels.ops import REGISTRY

NAMESPACE = "ditn"
# Operators that are one kernel. TensorRT gives such plugins no workspace, so their second output is the kernel's
# scratch.
AHEAD_OF_TIME = ("inner_patch_attention", "gated_ffn")
# Operators that are several kernels with maps between them.
IN_PYTHON = ("dilated_gate",)
_NEEDED = "the TensorRT plugins in Python need TensorRT 10.9 or newer"
_INPUT_TYPES = {"HALF": torch.float16, "FLOAT": torch.float32}


@dataclass(frozen=True)
class Chip:
    """What engines are built for: compute capability (90 for sm_90) and number of multiprocessors."""

    capability: int
    processors: int


def register(chip: Chip | None = None, *, most_shared: int | None = None) -> None:
    """Register the plugins with TensorRT, once in a process, for engines of a chip, by default PyTorch's current GPU.

    `most_shared`: bytes of dynamic shared memory that a launch may ask for. Above 48 KiB the launcher has to allow it
    for each kernel, and whether TensorRT does is not known. With a lower limit kernels get configurations that are in
    no table.

    Raises ImportError if TensorRT or Triton is missing or too old, RuntimeError if there is no GPU to ask or Triton
    interprets its kernels (TRITON_INTERPRET). While an engine is built, a node that the kernels cannot run raises
    BackendError, TypeError or ValueError, which TensorRT reports.
    """
    trtp = _tensorrt_plugin()
    if reasons := why_missing():
        raise ImportError(f"the TensorRT plugins in Python: {', '.join(reasons)}")
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: Triton compiles nothing, and TensorRT needs compiled kernels")
    chip = chip or _this_chip()
    for name in (*AHEAD_OF_TIME, *IN_PYTHON):
        plugin, plugin_id = _Plugin(REGISTRY[name], chip, most_shared, trtp), f"{NAMESPACE}::{name}"
        trtp.register(plugin_id)(plugin.description())
        if name in AHEAD_OF_TIME:
            trtp.aot_impl(plugin_id)(plugin.compilation())
        else:
            trtp.impl(plugin_id)(plugin.call())


def complete(model: Any) -> None:
    """Give every node of an onnx.ModelProto as many outputs as its plugin has, which newer parsers require. After that
    the model works with these plugins only: those of C++ have a workspace instead."""
    for node in model.graph.node:
        if node.domain == NAMESPACE and node.op_type in AHEAD_OF_TIME and len(node.output) == 1:
            node.output.append(f"{node.output[0]}_scratch")


class _Plugin:
    """The functions that `tensorrt.plugin` asks for, of one operator. It reads their signatures, and calls them with
    the operator's arguments in its order; maps are [B, H, W, C]."""

    def __init__(self, op: Op, chip: Chip, most_shared: int | None, trtp: Any) -> None:
        self._op, self._chip, self._most_shared, self._trtp = op, chip, most_shared, trtp
        self._options = {
            name: type(value) for name, value in op.samples[0].options.items() if name in ("norm", "patch_size")
        }

    def description(self) -> Any:
        """Shapes and dtypes of the outputs, from those of the inputs."""
        trtp = self._trtp

        def describe(*tensors: Any, **options: Any) -> Any:
            return tensors[0].like()

        def describe_with_scratch(*tensors: Any, **options: Any) -> Any:
            # TensorRT first asks for dtypes only, when there are no shapes yet.
            is_early = tensors[0].shape_expr[0].is_fake
            length = 1 if is_early else self._scratch_length(tensors, options)
            return tensors[0].like(), trtp.from_shape_expr((length,), tensors[0].dtype)

        if self._op.name in AHEAD_OF_TIME:
            return self._signed(describe_with_scratch, trtp.TensorDesc, {}, _pack(trtp.TensorDesc, trtp.TensorDesc))
        return self._signed(describe, trtp.TensorDesc, {}, trtp.TensorDesc)

    def compilation(self) -> Any:
        """The kernel and its launch, whose integers are expressions of the map's size."""
        trtp = self._trtp

        def compile_ahead(*args: Any) -> Any:
            tensors, options, _ = self._split(args)
            launch, code = self._compiled(tensors, options)
            batch, height, width, _ = tensors[0].shape_expr
            integers = self._kernels_file().sizes(batch, height, width, launch.constants)
            params = trtp.KernelLaunchParams()
            params.grid_x = trtp.min(integers[-1], self._most_programs(launch))
            params.block_x, params.shared_mem = code.threads, code.shared
            extra = trtp.SymIntExprs(len(integers))
            for index, value in enumerate(integers):
                extra[index] = trtp.SymInt32(value)
            return code.name, code.text, params, extra

        behind = {"outputs": _pack(trtp.TensorDesc), "tactic": int}
        returned = _pack(str, str, trtp.KernelLaunchParams, trtp.SymExprs)
        return self._signed(compile_ahead, trtp.TensorDesc, behind, returned)

    def call(self) -> Any:
        """The operator itself, on TensorRT's memory and stream."""

        def run(*args: Any, stream: int) -> None:
            tensors, options, (outputs,) = self._split(args)
            x, *weights = map(_as_torch, tensors)
            with _on_stream(stream):
                y = self._op(x.permute(0, 3, 1, 2), *weights, **_cleaned(options), backend="triton")
                _as_torch(outputs[0]).copy_(y.permute(0, 2, 3, 1))

        behind = {"outputs": _pack(self._trtp.Tensor), "stream": int}
        return self._signed(run, self._trtp.Tensor, behind, None)

    def _signed(self, function: Any, tensor: Any, behind: dict[str, Any], returned: Any) -> Any:
        """The function with the signature that TensorRT asks for: the operator's arguments, then those of `behind`."""
        arguments = dict.fromkeys(self._op.axes, tensor) | self._options | behind
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, annotation=what) for name, what in arguments.items()]
        function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
        return function

    def _split(self, args: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any], Sequence[Any]]:
        """Tensors, options, and the arguments after them."""
        first, last = len(self._op.axes), len(self._op.axes) + len(self._options)
        return args[:first], dict(zip(self._options, args[first:last], strict=True)), args[last:]

    def _compiled(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, Any]:
        """A launch and its code. Only its grid and its integers depend on the map's size."""
        from ditn_kernels.backends.triton import _compile
        from ditn_kernels.backends.triton._launch import configured, recording

        args = self._arguments(tensors, options)
        configs: dict[str, Any] = {}
        while True:
            with recording(self._chip.capability) as launches, configured(configs):
                self._kernels_file().forward(*self._op.structured(args.values()))
            (launch,) = launches
            code = _compile.ptx(launch, self._chip.capability)
            if self._most_shared is None or code.shared <= self._most_shared:
                return launch, code
            smaller = _smaller(launch.config)
            if smaller is None:
                reason = f"needs {code.shared} bytes of shared memory, at most {self._most_shared} are allowed"
                raise BackendError(f"the TensorRT plugin {self._op.name} {reason}")
            configs[launch.name] = smaller

    def _arguments(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments without memory, of a map of some size. Raises BackendError for what the kernels cannot run."""
        options = _cleaned(options)
        # Whole patches, and enough of them for several programs.
        side = 8 * (options["patch_size"] or 8)
        args = {name: self._meta(name, tensor, side) for name, tensor in zip(self._op.axes, tensors, strict=True)}
        args |= options
        self._op.check(args)
        support = self._op.backends["triton"]
        reasons = support.why_not(args, backward=False)
        reasons += support.why_not_on(divmod(self._chip.capability, 10), backward=False)
        if reasons:
            raise BackendError(f"the TensorRT plugin {self._op.name} {', '.join(reasons)}")
        return args

    def _meta(self, name: str, desc: Any, side: int) -> Tensor:
        """A tensor without memory, of a description's shape. Of a map only the channels are known: it gets this
        side."""
        dtype = _INPUT_TYPES.get(desc.dtype.name)
        if dtype is None:
            raise TypeError(
                f"the TensorRT plugin {self._op.name} takes {' or '.join(_INPUT_TYPES)}, {name} is {desc.dtype.name}"
            )
        if self._op.axes[name].startswith("B "):
            shape = [1, desc.shape_expr[3].constant_value(), side, side]
        else:
            shape = [size.constant_value() for size in desc.shape_expr]
        return torch.empty(shape, dtype=dtype, device="meta")

    def _scratch_length(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> int:
        """Enough scratch for the largest number of programs; 1 if the kernel needs none, since no output may be
        empty."""
        launch, _ = self._compiled(tensors, options)
        length: int = launch.args[-1].numel() // launch.programs * self._most_programs(launch)
        return max(length, 1)

    def _most_programs(self, launch: Any) -> int:
        most: int = launch.config.programs * self._chip.processors
        return most

    def _kernels_file(self) -> Any:
        return importlib.import_module(f"ditn_kernels.backends.triton.{self._op.name}")


def _tensorrt_plugin() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise ImportError(f"{_NEEDED}: pip install tensorrt") from error
    try:
        trtp = importlib.import_module("tensorrt.plugin")
    except ImportError:
        trtp = None
    # Older ones describe plugins, but do not compile them ahead.
    if not (hasattr(trtp, "aot_impl") and hasattr(trtp, "KernelLaunchParams")):
        raise ImportError(f"{_NEEDED}, {tensorrt.__version__} is installed")
    return trtp


def _smaller(config: Any) -> Any:
    """A configuration that needs less shared memory; None if there is none."""
    if config.num_stages > 1:
        return replace(config, num_stages=1)
    if config.blocks.get("SLICE", 0) > 16:
        return replace(config, blocks={**config.blocks, "SLICE": config.blocks["SLICE"] // 2})
    return None


def _pack(*kinds: type) -> Any:
    """The type of a tuple."""
    return types.GenericAlias(tuple, kinds)


def _cleaned(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without the zero that a parser may leave at the end of a string."""
    return {name: value.rstrip("\0") if isinstance(value, str) else value for name, value in options.items()}


def _this_chip() -> Chip:
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU to build engines for: name one, register(Chip(capability, processors))")
    properties = torch.cuda.get_device_properties()
    return Chip(10 * properties.major + properties.minor, properties.multi_processor_count)


def _as_torch(tensor: Any) -> Tensor:
    return torch.as_tensor(tensor, device="cuda")


def _on_stream(stream: int) -> AbstractContextManager[Any]:
    return torch.cuda.stream(torch.cuda.ExternalStream(stream))

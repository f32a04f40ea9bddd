# SPDX-License-Identifier: Apache-2.0
"""Whole networks on a GPU: this package against PyTorch.

    python -m benchmarks.gpu [--model ditn-real] [--sizes 320x180 960x540] [--dtype float16]
    python -m benchmarks.gpu --training [--model ditn-real] [--dtype float16]
    python -m benchmarks.gpu --only-cuda [--sizes 960x540]

Providers: the published formula in eager PyTorch, unfolded and contiguous; the same operators folded and
channels-last, the best that eager can do; the formula (with `--compile all`, both) compiled, by default and with
max-autotune; the fused network by the backends that it chooses and by CUDA C++, with and (on a chip that has some of
its own) without the kernels for one chip alone, each of them also replayed from a CUDA graph.
TF32 is off. Each is compared with float64 before it is timed: at most twice the error of the published formula in its
dtype. Latency is from the call to the finished result, median and quartiles of rounds in turns; "host" is until the
call returns. The picture is padded to the patch grid beforehand, so that nobody pays for that. Peak memory is what a
call allocates; null where it was set aside in advance. All run in one process, whose allocator
keeps freed memory for each of them.

`--only-cuda` is CUDA C++ against eager alone, in a file that has in its name what nvcc compiled for: with a library of
DITN_CUDA_ARCHS=7.5+PTX it measures Turing's code on a newer GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import ditn
from benchmarks.harness import cases
from benchmarks.harness import gpu_timing as gpu
from benchmarks.harness.networks import MODELS, new_model
from benchmarks.harness.outputs import PROJECT
from benchmarks.harness.providers import folded
from benchmarks.oracle import published
from benchmarks.oracle.tolerance import assert_as_good
from ditn.inference.graphs import CudaGraphRunner
from ditn.training.batches import Batch
from ditn.training.process_group import ProcessGroup
from ditn.training.recipe import Recipe
from ditn.training.update import Update
from ditn_kernels import REGISTRY, explain, use_backend
from ditn_kernels._dispatch import reasons_against
from ditn_kernels.backends.native import _hopper, _libraries

Call = Callable[[], Tensor]
AMP = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "none"}
BASE = "published, eager"
# Of the largest value: what the rounding of a result to its dtype excuses.
FLOOR = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-20}
# How many of the eager providers are also compiled.
COMPILED = {"none": 0, "published": 1, "all": 2}
OWN_MEMORY = ("max-autotune", "graph")
TRAINING_BATCH, TRAINING_SIDE = 16, 64
# The gradients of a mean over three million samples would vanish in float16.
LOSS_SCALE = 2.0**16


def why_not_cuda(dtype: torch.dtype, device: str = "cuda") -> list[str]:
    """Every reason why CUDA C++ does not run the networks."""
    ops = [op for op in REGISTRY.values() if "cuda" in op.backends]
    found = (reasons_against(op, "cuda", op.inputs(op.samples[0], dtype=dtype, device=device)) for op in ops)
    return list(dict.fromkeys(reason for reasons in found for reason in reasons))


def by_cuda(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with use_backend("cuda"):
            return network(x)

    return call


def for_all_chips(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with _hopper.without(REGISTRY, x.device):
            return network(x)

    return call


def providers(model: ditn.DITN, image: Tensor, *, compiled: str, cuda: bool, only_cuda: bool) -> dict[str, Call]:
    """`cuda`: whether CUDA C++ can run the network."""
    state = model.state_dict()

    def by_formula(x: Tensor) -> Tensor:
        return published.network(state, x)

    networks: dict[str, Callable[[Tensor], Tensor]] = {BASE: by_formula, "folded, eager": folded(model)}
    for name, network in list(networks.items())[: COMPILED[compiled]]:
        what = name.removesuffix(", eager")
        networks[f"{what}, torch.compile"] = torch.compile(network, dynamic=False)
        networks[f"{what}, max-autotune"] = torch.compile(network, dynamic=False, mode="max-autotune")
    if not only_cuda:
        networks |= {"fused": model, "fused, graph": CudaGraphRunner(model)}
    if cuda:
        networks |= {"fused, cuda": by_cuda(model), "fused, cuda, graph": by_cuda(CudaGraphRunner(model))}
        if any(_hopper.serves(name, image.device) for name in REGISTRY):
            networks["fused, cuda, all chips"] = for_all_chips(by_cuda(model))
            networks["fused, cuda, all chips, graph"] = for_all_chips(by_cuda(CudaGraphRunner(model)))
    return {name: lambda network=network: network(image) for name, network in networks.items()}  # type: ignore[misc]


def check(model: ditn.DITN, image: Tensor, calls: Mapping[str, Call]) -> None:
    """Raises SystemExit for a provider that is wrong: nothing is timed."""
    wide = {name: value.double() for name, value in model.state_dict().items()}
    exact, plain = published.network(wide, image.double()), calls[BASE]()
    for name, call in calls.items():
        try:
            assert_as_good(call(), exact, plain, FLOOR[image.dtype], name)
        except AssertionError as error:
            raise SystemExit(f"{error}; nothing timed") from error


def training_step(
    network: Callable[[Tensor], Tensor], parameters: list[Tensor], image: Tensor, target: Tensor, dtype: torch.dtype
) -> Call:
    """Forward, backward and an update by Adam; the gradients, as one vector. float16 and bfloat16 by autocast."""
    optimizer = torch.optim.Adam(parameters, lr=0.0)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = (network(image).float() - target).square().mean()
        (LOSS_SCALE * loss).backward()
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    return step


def training(name: str, upscale: int, dtype: torch.dtype) -> dict[str, Call]:
    """A training step, for everyone on the same pictures."""
    model = new_model(name, upscale).to("cuda").train().requires_grad_()
    state = {key: value.detach().clone().requires_grad_() for key, value in model.state_dict().items()}
    order = [state[key] for key, _ in model.named_parameters()]
    plain = folded(model)
    networks: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        BASE: (lambda x: published.network(state, x), order),
        "folded, eager": (plain, list(plain.parameters())),
        "fused": (model, list(model.parameters())),
    }
    image = torch.rand(TRAINING_BATCH, 3, TRAINING_SIDE, TRAINING_SIDE, device="cuda")
    target = torch.rand(TRAINING_BATCH, 3, upscale * TRAINING_SIDE, upscale * TRAINING_SIDE, device="cuda")
    calls = {key: training_step(*network, image, target, dtype) for key, network in networks.items()}
    results = {key: call() for key, call in calls.items()}
    for key, result in results.items():
        # Sums over 65,536 pixels: 1 % of the largest gradient in half precision, 0.1 % in float32.
        bound = 1e-3 if dtype == torch.float32 else 1e-2
        error = float((result - results[BASE]).abs().max() / results[BASE].abs().max())
        if not error <= bound:
            raise SystemExit(
                f"training, {key}: gradients differ by {error:.2g}, at most {bound} allowed; nothing timed"
            )
    return calls


def trained(name: str, upscale: int, dtype: torch.dtype) -> dict[str, Call]:
    """The steps of `ditn train`, which have more to do: clip the gradients, and let an average follow the weights."""
    sizes = {"batch": TRAINING_BATCH, "patch": TRAINING_SIDE}
    recipe = Recipe(model=name, upscale=upscale, **sizes, amp=AMP[dtype], consistency=0.0)  # type: ignore[arg-type]
    batch = Batch(
        *(
            torch.randint(256, (number, side, side, 3), dtype=torch.uint8, device="cuda")
            for number, side in ((TRAINING_BATCH, TRAINING_SIDE), (TRAINING_BATCH, upscale * TRAINING_SIDE), (0, 32))
        )
    )

    def steps(*, cuda_graph: bool) -> Call:
        model = new_model(name, upscale).to("cuda").train().requires_grad_()
        update = Update(recipe, model, model, ProcessGroup(), cuda_graph=cuda_graph)

        def step() -> Tensor:
            update(batch, rate=1e-5, decay=0.999)
            return model.upsample[0].weight  # type: ignore[return-value]

        return step

    calls = {"ditn train, no graph": steps(cuda_graph=False), "ditn train": steps(cuda_graph=True)}
    # The last of five are recorded. Both run the same kernels, and a step of Adam's is at most 1e-5 long.
    one, other = ([call() for _ in range(5)][-1] for call in calls.values())
    if not float((one - other).abs().max()) <= 1e-6:
        raise SystemExit("training, ditn train: a recorded step does not do what a step does; nothing timed")
    return calls


def rows(calls: Mapping[str, Call], what: str, rounds: int) -> list[dict[str, Any]]:
    times = gpu.latencies(calls, rounds)
    found = []
    for name, call in calls.items():
        row: dict[str, Any] = {"what": what, "contestant": name} | gpu.summary(times[name])
        row["host_ms"] = gpu.host_milliseconds(call, rounds)
        row["peak_bytes"] = None if name.endswith(OWN_MEMORY) else gpu.peak_bytes(call)
        found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> str:
    base = {row["what"]: row for row in found if row["contestant"] == BASE}
    lines = []
    for row in found:
        ms = row["median_ms"]
        low, high = row["quartiles_ms"]
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.0f} MiB"
        lines.append(
            f"{row['what']:>18} {row['contestant']:26}{ms:9.3f} ms ({low:.3f}..{high:.3f}) {1e3 / ms:8.1f} per s "
            f"host {row['host_ms']:.3f} ms {base[row['what']]['median_ms'] / ms:6.2f} x {BASE} {memory}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ditn-real")
    parser.add_argument("--upscale", type=int, default=4)
    parser.add_argument("--sizes", nargs="+", default=["320x180", "960x540"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--dtype", choices=cases.DTYPES, default="float16")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--training", action="store_true", help="a training step, instead of inference")
    parser.add_argument("--compile", choices=COMPILED, default="published", help="what torch.compile gets, too")
    parser.add_argument("--only-cuda", action="store_true", help="CUDA C++ against eager PyTorch, nothing else")
    args = parser.parse_args()
    gpu.require_gpu()
    dtype = cases.DTYPES[args.dtype]
    reasons = why_not_cuda(dtype)
    if reasons and args.only_cuda:
        raise SystemExit(f"nothing to measure: cuda {', '.join(reasons)}")
    if reasons:
        print(f"without CUDA C++, which {', '.join(reasons)}", file=sys.stderr)
    architectures = [] if reasons else _libraries.build_info()["cuda"]["architectures"]
    model = new_model(args.model, args.upscale).to("cuda", dtype)
    chosen = {
        op.name: explain(op, *op.inputs(op.samples[0], dtype=dtype, device="cuda").values()).chosen
        for op in REGISTRY.values()
    }
    facts = {"machine": gpu.machine(), "model": args.model, "upscale": args.upscale, "dtype": args.dtype}
    facts |= {"fused_backends": chosen, "cuda_architectures": architectures, "tf32": False, "rounds": args.rounds}
    what = f"-cuda-{'-'.join(architectures)}" if args.only_cuda else "-training" if args.training else ""
    path = gpu.results_folder() / f"{args.model}-x{args.upscale}-{args.dtype}{what}.json"
    found: dict[str, list[dict[str, Any]]] = {}

    def add(what: str, calls: Mapping[str, Call]) -> None:
        found[what] = rows(calls, what, args.rounds)
        content = facts | {"rows": [row for several in found.values() for row in several]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    if args.training:
        calls = training(args.model, args.upscale, dtype) | trained(args.model, args.upscale, dtype)
        add(f"step {TRAINING_BATCH}x{TRAINING_SIDE}", calls)
    # Compiling takes minutes. Should it be cut off, the rest has been measured and written before.
    rounds_of_compiling = [] if args.training else ["none"] if args.only_cuda else ["none", args.compile]
    for compiled in dict.fromkeys(rounds_of_compiling):
        for width, height in (map(int, size.split("x")) for size in args.sizes):
            grid = model.config.grid
            image = torch.rand(1, 3, -(-height // grid) * grid, -(-width // grid) * grid, device="cuda", dtype=dtype)
            with torch.inference_mode():
                calls = providers(model, image, compiled=compiled, cuda=not reasons, only_cuda=args.only_cuda)
                check(model, image, calls)
                add(f"{width}x{height}", calls)
            torch.compiler.reset()
    print(table([row for several in found.values() for row in several]))
    print(f"written to {path.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

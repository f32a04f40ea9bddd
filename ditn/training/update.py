# SPDX-License-Identifier: Apache-2.0
"""One step of training: loss, gradient, weights and their moving average.

It is made of tensors only. Nothing waits for a result, so that a GPU is given the next step before it has finished this
one; and there, once a shape of batches has come a few times, the whole step is a CUDA graph. What became of the steps
is counted where they run, and read now and then (`read`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditn.inference.capture import can_record, record, why_failed
from ditn.model.network import DITN
from ditn.training.batches import Batch
from ditn.training.data import to_tensor
from ditn.training.process_group import ProcessGroup
from ditn.training.recipe import Recipe

# The enlargement of an image of full contrast may ring by so much.
_RINGING = 0.3
# Steps of a shape before it is recorded: kernels are compiled, proved and chosen, and the optimiser has its memory.
_FIRST = 3


class Seen(NamedTuple):
    """What became of the steps since the last reading: how many there were and the sum of their losses; how many were
    not finite and left the weights alone, and of the last of these the loss and the gradient's norm; how many such
    steps in a row there are now, and the most that there have been."""

    steps: int
    loss: float
    bad: int
    bad_loss: float
    bad_norm: float
    bad_now: int
    bad_most: int


class Update:
    """Calling it with a batch changes the model's weights and their moving average, `average`. A step whose loss or
    gradient is not finite changes neither. `network` is the model as it is called, for several processes with their
    gradients' mean. `cuda_graph` records the step, where one process trains alone on a CUDA device."""

    def __init__(
        self,
        recipe: Recipe,
        model: DITN,
        network: Callable[[Tensor], Tensor],
        processes: ProcessGroup,
        *,
        cuda_graph: bool = True,
    ) -> None:
        self._recipe, self._network, self._processes = recipe, network, processes
        self._parameters: list[Tensor] = list(model.parameters())
        self._device = device = self._parameters[0].device
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        # What changes from step to step without being part of a batch, as memory that a graph reads.
        self._rate = torch.tensor(recipe.lr, device=device)
        self._share = torch.zeros((), device=device)
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self._parameters, self._rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self._own_groups()
        self.scaler = self._new_scaler()
        # As Seen, but for the number of steps.
        self._seen = torch.zeros(len(Seen._fields) - 1, dtype=torch.float64, device=device)
        self._steps = 0
        self._graphs: dict[tuple[Any, ...], _Graph | int] | None = None
        if cuda_graph and can_record(device) and processes.size == 1:
            self._graphs = {}
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, *, rate: float, decay: float) -> None:
        """A step at this learning rate; the average keeps `decay` of itself."""
        self._rate.fill_(rate)
        self._share.fill_(1 - decay)
        self._steps += 1
        if self._graphs is None:
            return self._step(batch)
        # All on one stream, to which autograd's accumulators and a graph's memory are bound.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._recorded(batch, self._graphs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return None

    def read(self) -> Seen:
        """Waits for all steps so far."""
        seen = self._seen.tolist()
        self._seen[:-2] = 0
        self._seen[-1] = self._seen[-2]
        steps, self._steps = self._steps, 0
        loss, bad, bad_loss, bad_norm, now, most = seen
        return Seen(steps, loss, int(bad), bad_loss, bad_norm, int(now), int(most))

    def state(self) -> dict[str, Any]:
        """To go on from exactly here, together with the model's weights."""
        return {
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any], *, bad: int) -> None:
        """`bad`: how many steps in a row were not finite before."""
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._own_groups()
        # Empty of a run without float16, and then GradScaler refuses it.
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._seen[-2:] = bad

    def _new_scaler(self) -> torch.amp.GradScaler:
        """float16 gradients underflow without a scale; bfloat16's do not."""
        return torch.amp.GradScaler(self._device.type, enabled=self._recipe.amp == "float16")

    def _own_groups(self) -> None:
        """The recipe's settings, which a state that is loaded replaces by those of the run before."""
        recipe = self._recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
            group["betas"], group["weight_decay"] = recipe.betas, recipe.weight_decay
            # All that tells AdamW from Adam.
            group["decoupled_weight_decay"] = recipe.optimizer == "adamw"
            group["capturable"] = self._device.type == "cuda"

    def _recorded(self, batch: Batch, graphs: dict[tuple[Any, ...], _Graph | int]) -> None:
        key = tuple(images.shape for images in batch)
        kept = graphs.setdefault(key, 0)
        if isinstance(kept, int):
            if kept < _FIRST:
                graphs[key] = kept + 1
                return self._step(batch)
            still = Batch(*map(torch.empty_like, batch))
            try:
                graph = record(lambda: self._step(still), self._device, self._pool, self._stream)
            except RuntimeError as error:
                text = f"trains without CUDA graphs, since recording one failed: {why_failed(error)}"
                warnings.warn(text, RuntimeWarning, 4)
                self._graphs = None
                # The old one may have been left in the middle of a step, and would refuse to begin another.
                scale, self.scaler = self.scaler.state_dict(), self._new_scaler()
                self.scaler.load_state_dict(scale)
                return self._step(batch)
            graphs[key] = kept = _Graph(graph, still)
        torch._foreach_copy_(list(kept.batch), list(batch))
        kept.graph.replay()
        return None

    def _step(self, batch: Batch) -> None:
        loss = self._loss(*(to_tensor(images, self._device) for images in batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip)
        with torch.no_grad():
            loss = self._processes.mean(loss.detach())
            good = loss.isfinite() & norm.isfinite()
            # How GradScaler tells an optimiser that it is not to change anything. It would ask the gradient alone, and
            # without float16 nobody.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~good).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.scaler.update()
            self._follow(good)
            self._count(loss, norm, good)

    def _loss(self, low: Tensor, high: Tensor, extreme: Tensor) -> Tensor:
        recipe = self._recipe
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.amp)
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            output = self._network(low)
            untargeted = self._network(extreme) if len(extreme) else None
        loss = pixel_loss(output.float(), high, recipe.loss, frequency=recipe.frequency)
        if untargeted is None:
            return loss
        return loss + recipe.consistency * consistency_loss(untargeted.float(), extreme)

    def _follow(self, good: Tensor) -> None:
        """average += share * (weights - average)"""
        average: list[Tensor] = list(self.average.parameters())
        moved = torch._foreach_sub(self._parameters, average)
        torch._foreach_mul_(moved, self._share * good)
        torch._foreach_add_(average, moved)

    def _count(self, loss: Tensor, norm: Tensor, good: Tensor) -> None:
        total, bad, bad_loss, bad_norm, now, most = self._seen.unbind()
        total.add_(loss)
        bad.add_(~good)
        bad_loss.copy_(torch.where(good, bad_loss, loss))
        bad_norm.copy_(torch.where(good, bad_norm, norm))
        now.add_(1).mul_(~good)
        most.copy_(torch.maximum(most, now))


class _Graph(NamedTuple):
    """A step as a CUDA graph, and the batch that it reads."""

    graph: torch.cuda.CUDAGraph
    batch: Batch


def pixel_loss(output: Tensor, target: Tensor, kind: str, *, frequency: float = 0.0) -> Tensor:
    """L1 or Charbonnier loss of images [B, C, H, W], plus `frequency` times the mean absolute difference of their
    orthonormal Fourier transforms, over real and imaginary parts (Cho et al., MIMO-UNet, ICCV 2021)."""
    error = output - target
    # Charbonnier's eps is 1e-3.
    loss = error.abs().mean() if kind == "l1" else torch.sqrt(error.square() + 1e-6).mean()
    if frequency:
        loss = loss + frequency * torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    return loss


def consistency_loss(output: Tensor, image: Tensor) -> Tensor:
    """How far the output [B, C, sH, sW], averaged over s x s boxes, is from the image [B, C, H, W] (mean absolute
    difference), and how far its values leave -0.3 .. 1.3 (mean).

    What any sane enlargement keeps, whatever the image: without it DITN-Real, in which nothing normalises the stream,
    answers edges of full contrast with values of 100.
    """
    back = F.avg_pool2d(output, output.shape[-1] // image.shape[-1])
    outside = F.relu(output - (1 + _RINGING)) + F.relu(-_RINGING - output)
    return (back - image).abs().mean() + outside.mean()

# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a call: the one forced by argument, by `with use_backend(...)` or by `DITN_BACKEND`; else the
first that has no reason not to, in the operator's own order or, on a GPU, in that of `_order.py`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from ditn_kernels import _proof
from ditn_kernels._op import Op
from ditn_kernels._order import Order, order
from ditn_kernels.backends import BACKENDS, FORMER_NAMES


class BackendError(RuntimeError):
    """A backend was asked for that cannot run the call, or that does not exist. The message holds every reason."""


# The name under which a stage that is run as its decomposition appears beside the backends.
DECOMPOSED = "layers"

_forced: ContextVar[str | None] = ContextVar("ditn_backend", default=None)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend for every operator called inside; None gives the choice back.

    Holds in the current thread or task, and in graphs that were compiled before. Raises BackendError for a name
    that is no backend.
    """
    token = _forced.set(_known(name))
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend(argument: str | None) -> str | None:
    """The backend that is forced at this point, if any."""
    return _known(argument or _forced.get() or os.environ.get("DITN_BACKEND") or None)


def conditions() -> tuple[str | None, ...]:
    """What a choice depends on besides the call's arguments and the machine."""
    return forced_backend(None), os.environ.get("DITN_PROOF"), os.environ.get("TRITON_INTERPRET")


def reasons_against(op: Op, backend: str, args: Mapping[str, Any], *, backward: bool = False) -> list[str]:
    """Every reason why a backend cannot run these arguments, or is known to run them wrongly; empty if it can."""
    reasons = reasons_unproved(op, backend, args, backward=backward)
    return reasons or _proof.reasons_against(op, backend, BACKENDS[backend], args, backward=backward, serving=False)


def reasons_unproved(op: Op, backend: str, args: Mapping[str, Any], *, backward: bool) -> list[str]:
    """As `reasons_against`, but without what proofs have found."""
    support = op.backends.get(backend)
    if support is None:
        return [f"has no {op.name} kernel"]
    x = next(iter(args.values()))
    return BACKENDS[backend].missing(op, x.device, backward=backward, dtype=x.dtype) + support.why_not(
        args, backward=backward
    )


def select(op: Op, args: Mapping[str, Any], *, backend: str | None = None, backward: bool = False) -> str:
    """The name of the backend that runs these arguments.

    A stage that no backend has a kernel for is run as its decomposition, "layers": each of its operators makes its own
    choice. A kernel for GPUs has to be proved before it is chosen for the first time.
    Raises BackendError, with every reason, if the forced backend cannot or none can. Warns once per operator and
    reason when a call on a GPU is left to plain PyTorch, and once of a kernel that computes wrongly.
    """
    forced = forced_backend(backend)
    candidates = [forced] if forced else auto_candidates(op, args, backward=backward)
    refusals: dict[str, list[str]] = {}
    for name in candidates:
        reasons = reasons_unproved(op, name, args, backward=backward)
        if not reasons and not forced:
            reasons = reasons_to_pass_over(op, name, args, backward=backward)
        if not reasons:
            reasons = _proof.reasons_against(op, name, BACKENDS[name], args, backward=backward, serving=True)
        if not reasons:
            if name == "torch" and not forced:
                _warn_if_slow(op, args, refusals)
            return name
        refusals[name] = reasons
    if op.decomposition is not None and not backward:
        return DECOMPOSED
    title = f"{op.name}{' backward' if backward else ''}"
    raise BackendError(f"{title}: " + "; ".join(f"{name} {', '.join(why)}" for name, why in refusals.items()))


def reasons_to_pass_over(op: Op, backend: str, args: Mapping[str, Any], *, backward: bool) -> list[str]:
    """Why a backend that can run these arguments is not to, unless it is forced. For a stage that it runs as its
    layers' kernels: the operators that another backend runs here."""
    support = op.backends[backend]
    if support.auto and (reasons := support.auto.why_not(args, backward=backward)):
        return reasons
    if not support.as_layers:
        return []
    x, *rest = op.structured(args.values())
    # All layers are alike: one of each operator tells.
    links = dict(op.decomposition(*rest)) if op.decomposition else {}
    chosen = {link.name: select(link, link.named([x, *arguments])) for link, arguments in links.items()}
    return [f"its layers' {name} runs by {other}" for name, other in chosen.items() if other != backend]


def order_on_gpu(op: Op, args: Mapping[str, Any], *, backward: bool) -> Order | None:
    """The order in which backends are tried on a GPU. None if the arguments are not on one: there it is the operator's
    own."""
    x = next(iter(args.values()))
    if x.device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    dtype = str(x.dtype).removeprefix("torch.")
    return order(op.name, tuple(op.backends), capability=10 * major + minor, dtype=dtype, backward=backward)


def auto_candidates(op: Op, args: Mapping[str, Any], *, backward: bool) -> list[str]:
    """The backends to choose from where none is forced. A stage is run as its decomposition before plain PyTorch."""
    device = next(iter(args.values())).device
    found = order_on_gpu(op, args, backward=backward)
    names = [name for name in (found.backends if found else op.backends) if name != "torch" or op.decomposition is None]
    return [name for name in names if BACKENDS[name].auto_selectable(device)]


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: the backend that would run and, for each of the others, the reasons why it cannot, or why
    it is `passed_over` although it can. `order` is the order in which they were tried on a GPU; None on a CPU and where
    a backend was forced."""

    operator: str
    chosen: str | None
    refusals: Mapping[str, tuple[str, ...]]
    passed_over: Mapping[str, tuple[str, ...]]
    order: Order | None = None

    def __str__(self) -> str:
        lines = [f"{self.operator}: {self.chosen or 'nothing can run this'}"]
        for name, reasons in self.refusals.items():
            verdict = ", ".join(reasons) or ("runs this" if name == self.chosen else self._passed_over(name))
            lines.append(f"  {name:7} {verdict}")
        return "\n".join(lines)

    def _passed_over(self, name: str) -> str:
        """Why a backend that could run it does not."""
        places = {other: place for place, other in enumerate(self.order.backends)} if self.order else {}
        if self.order and self.order.measured and self.chosen in places and places[self.chosen] < places[name]:
            return f"could, but is slower here ({self.order.source})"
        if reasons := self.passed_over[name]:
            return f"could, but is not chosen: {', '.join(reasons)}"
        return "could, but is not chosen" + (f" (order {self.order.source})" if self.order else "")


def explain(op: Op, *args: Any, backend: str | None = None, backward: bool = False, **options: Any) -> Explanation:
    """Which backend would run `op(*args, **options)` (or its gradient) at this point, and why not the others. Like the
    call itself it proves kernels for GPUs until it has found one.

    Raises the call's errors for arguments whose shapes, dtypes or devices do not fit.
    """
    named = op.named(args, options)
    op.check(named)
    try:
        chosen = select(op, named, backend=backend, backward=backward)
    except BackendError:
        chosen = None
    refusals = {name: tuple(reasons_against(op, name, named, backward=backward)) for name in op.backends}
    if forced := forced_backend(backend):
        refusals.setdefault(forced, tuple(reasons_against(op, forced, named, backward=backward)))
        return Explanation(op.name, chosen, refusals, dict.fromkeys(refusals, ()))
    passed_over = {
        name: () if reasons else tuple(reasons_to_pass_over(op, name, named, backward=backward))
        for name, reasons in refusals.items()
    }
    return Explanation(op.name, chosen, refusals, passed_over, order_on_gpu(op, named, backward=backward))


def _known(name: str | None) -> str | None:
    name = FORMER_NAMES.get(name or "", name)
    if name is not None and name not in BACKENDS:
        raise BackendError(f"{name!r} is no backend; there are {', '.join(BACKENDS)}")
    return name


_warned: set[str] = set()


def _warn_if_slow(op: Op, args: Mapping[str, Any], refusals: Mapping[str, list[str]]) -> None:
    """A GPU that runs plain PyTorch is several times slower than the user expects: say why, once."""
    if next(iter(args.values())).device.type != "cuda":
        return
    why = "; ".join(f"{name} {', '.join(reasons)}" for name, reasons in refusals.items()) or "it has no GPU kernel yet"
    message = f"{op.name} runs as plain PyTorch on the GPU: {why}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)

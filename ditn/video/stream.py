# SPDX-License-Identifier: Apache-2.0
"""Frames through an Upscaler while the next are read and the last are written: three threads, few frames between."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ditn.imaging.arrays import Pixels
from ditn.imaging.colour import interpretation
from ditn.imaging.resample import resampled
from ditn.inference.guard import Finding
from ditn.inference.plan import TilePlan
from ditn.inference.tiles import Region, round_up
from ditn.inference.upscaler import Upscaler

T = TypeVar("T")
R = TypeVar("R")
# Frames that wait on each side of the network: enough for it never to wait for one that takes a little longer.
_WAITING = 2


class _Queue(Generic[T]):
    """A queue of which both ends let go when the other has failed."""

    def __init__(self) -> None:
        self._items: queue.Queue[T | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self.closed = threading.Event()

    def put(self, item: T | None) -> None:
        """Raises what ended the other side."""
        while True:
            if self.closed.is_set():
                raise self._error or InterruptedError
            try:
                return self._items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.closed.set()

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self._items.get(timeout=0.1)
            except queue.Empty:
                if self.closed.is_set():
                    raise self._error or InterruptedError from None
                continue
            if item is None:
                return
            yield item


@contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same items, made by a thread before they are asked for."""
    waiting: _Queue[T] = _Queue()

    def work() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(None)
        except BaseException as error:
            waiting.fail(error)

    with _running(work, waiting):
        yield iter(waiting)


@contextmanager
def behind(take: Callable[[T], None]) -> Iterator[Callable[[T], None]]:
    """Something that takes items at once and has a thread do it. All are done when the block has ended."""
    waiting: _Queue[T] = _Queue()

    def work() -> None:
        try:
            for item in waiting:
                take(item)
        except BaseException as error:
            waiting.fail(error)

    with _running(work, waiting) as thread:
        yield waiting.put
        waiting.put(None)
        thread.join()
        if waiting.closed.is_set():
            waiting.put(None)  # raises what ended the thread


@contextmanager
def _running(work: Callable[[], None], waiting: _Queue[Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        waiting.closed.set()
        thread.join()


def overlapped(function: Callable[[T], R], items: Iterable[T], device: torch.device | None) -> Iterator[R]:
    """function(item) of each, in order; with a CUDA device two at once, each in a thread with a stream of its own: what
    one copies from and to the host goes beside what the other computes."""
    if device is None:
        yield from map(function, items)
        return

    def with_a_stream() -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)

    with ThreadPoolExecutor(2, initializer=with_a_stream) as pool:
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) == 2:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


class FrameUpscaler:
    """Frames of one size and kind in the tiles of `plan`, to `size` (width, height): the model's
    enlargement and, where that differs, Lanczos'.

    With `reuse`, for which they come one after the other, a tile whose pixels, with all that reach it, are those of the
    frame before is not computed again, and the result is the same to the bit. Transparency is not looked at tile by
    tile: with it that holds for whole frames.
    """

    def __init__(self, upscaler: Upscaler, plan: TilePlan, size: tuple[int, int], *, reuse: bool = False) -> None:
        self._upscaler, self._plan, self._size, self._reuse = upscaler, plan, size, reuse
        self._before: Pixels | None = None
        self._result: Pixels | None = None
        self.reused = 0

    def __call__(self, pixels: Pixels) -> tuple[Pixels, list[Finding]]:
        """The enlargement [H, W, bands], of the frame's dtype, and what the guard found in the tiles computed."""
        changed = self._changed(pixels)
        self.reused += len(self._plan.regions) - len(changed)
        if not changed and self._result is not None:
            return _resized(self._result, self._size), []
        # A new one each time: the one before may still be in the encoder's hands.
        height, width, bands = pixels.shape
        scale = self._upscaler.scale
        result = np.empty((height * scale, width * scale, bands), pixels.dtype)
        if self._result is not None and len(changed) < len(self._plan.regions):
            result[:] = self._result

        def place(top: int, left: int, part: Pixels) -> None:
            result[top : top + part.shape[0], left : left + part.shape[1]] = part

        findings = self._upscaler.stream(pixels, place, plan=replace(self._plan, regions=changed))
        if self._reuse:
            self._before, self._result = pixels, result
        return _resized(result, self._size), findings

    def _changed(self, pixels: Pixels) -> tuple[Region, ...]:
        """The tiles that have to be computed."""
        regions = self._plan.regions
        if not self._reuse or self._before is None:
            return regions
        if pixels.shape[2] in (2, 4):
            return () if np.array_equal(pixels, self._before) else regions
        config = self._upscaler.model.config
        padded = round_up(self._plan.height, config.grid), round_up(self._plan.width, config.grid)
        changed = []
        for region in regions:
            around = region.grown(config.overlap, *padded)
            here = slice(around.top, around.top + around.height), slice(around.left, around.left + around.width)
            if not np.array_equal(pixels[here], self._before[here]):
                changed.append(region)
        return tuple(changed)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    import pyvips

    image = pyvips.Image.new_from_array(pixels)
    image = image.copy(interpretation=interpretation(image.bands, 8 * pixels.itemsize))
    made: Pixels = resampled(image, *size).numpy()
    return made[..., None] if made.ndim == 2 else made

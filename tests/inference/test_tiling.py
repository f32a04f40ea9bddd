# SPDX-License-Identifier: Apache-2.0
"""Tiles: they cover the picture once, lie on the grid, and change nothing."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from networks import MODELS, small, without_guard
from torch import Tensor

import ditn
from ditn.inference.ensemble import self_ensemble
from ditn.inference.memory import FIXED, bytes_per_pixel, predicted_peak
from ditn.inference.tiles import Region, cut, reflected
from ditn_kernels import REGISTRY, explain, use_backend


@pytest.mark.parametrize(
    ("height", "width", "side", "grid"), [(8, 8, 8, 8), (200, 336, 64, 8), (48, 96, 24, 24), (8, 800, 40, 8)]
)
def test_regions_cover_every_pixel_once_on_the_grid(height: int, width: int, side: int, grid: int) -> None:
    covered = np.zeros((height, width), int)
    for region in cut(height, width, side, grid):
        assert max(region.height, region.width) <= side
        assert not any(value % grid for value in (region.top, region.left, region.height, region.width))
        covered[region.top : region.top + region.height, region.left : region.left + region.width] += 1
    assert (covered == 1).all()


def test_halves_cover_the_region() -> None:
    region = Region(16, 8, 24, 56)
    first, second = region.halves(8)
    assert (first.pixels + second.pixels, first.width + second.width) == (region.pixels, region.width)
    assert Region(0, 0, 8, 8).halves(8) is None


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_reflection_is_numpys(size: int) -> None:
    expected = np.pad(np.arange(size), (0, 40 - size), mode="reflect")
    np.testing.assert_array_equal(reflected(size, 0, 40), expected)
    np.testing.assert_array_equal(reflected(size, 13, 29), expected[13:29])


@pytest.mark.parametrize("name", MODELS)
def test_tiled_equals_whole(name: str) -> None:
    """At the model's full depth, at a size that no tile divides."""
    fields = {"ufones": 3 if name == "ditn" else 1, "itls": 2, "sals": 4, "dim": 8}
    model = small(MODELS[name], **fields)
    assert model.config.overlap == (160 if name == "ditn" else 64)
    image = np.random.default_rng(0).random((331, 203, 3), dtype=np.float32)
    whole = without_guard(model, tile=0)(image)
    for tile in (100, 168):
        upscaler = without_guard(model, tile=tile)
        assert len(upscaler.plan(331, 203).regions) > 1
        np.testing.assert_allclose(upscaler(image), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "reach"), [("ditn-real", 57), ("ditn-tiny", 57), ("ditn", 153)])
def test_the_overlap_is_what_the_gradient_reaches(name: str, reach: int) -> None:
    """How far a grid cell of the output sees, read off the gradient: 57 pixels by hand (tail 2, four SALs of 12, up to
    the patch border, head 1), and with three UFONEs 153. The overlap is the next multiple of 8."""
    model = small(MODELS[name], ufones=3 if name == "ditn" else 1, sals=4, dim=4, upscale=1, fused=False).double()
    start = 168
    image = torch.rand(1, 3, 8, 2 * start, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(image)[..., start : start + 8].sum(), image)
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    assert start - int(columns.min()) == reach
    assert int(columns.max()) - (start + 7) == reach
    assert model.config.overlap - 8 < reach <= model.config.overlap


@pytest.mark.parametrize("patch_size", [6, 16])
def test_tiles_lie_on_the_common_grid_of_padding_and_patch(patch_size: int) -> None:
    model = small(patch_size=patch_size)
    image = np.random.default_rng(0).random((170, 131, 3), dtype=np.float32)
    whole, tiled = (without_guard(model, tile=tile)(image) for tile in (0, 50))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)


def test_8_bit_values_differ_by_rounding_only() -> None:
    model = small(ditn.DITN_Real)
    image = np.random.default_rng(0).integers(0, 256, (150, 120, 3), dtype=np.uint8)
    whole, tiled = (without_guard(model, tile=tile)(image).astype(int) for tile in (0, 32))
    assert np.abs(whole - tiled).max() <= 1


def peak_of(model: Callable[[Tensor], Tensor], height: int, width: int) -> int:
    """The most bytes that PyTorch's allocator held during a forward pass, from its own events."""
    image = torch.rand(1, 3, height, width)
    with torch.inference_mode():
        model(image[..., :8, :8])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(image)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "fields", [{"dim": 60, "itls": 1, "sals": 1}, {"dim": 8, "expansion": 1, "upscale": 4}], ids=str
)
def test_predicted_memory_is_within_25_percent_of_the_allocators_peak(name: str, fields: dict) -> None:
    model = small(MODELS[name], **fields)
    pixels = 96 * 104
    with use_backend("torch"):
        measured = peak_of(model, 96, 104)
        predicted = bytes_per_pixel(model) * pixels
        assert 0.75 <= predicted / measured <= 1.25
        assert predicted_peak(model, pixels) == predicted + FIXED


def test_a_self_ensemble_keeps_image_and_sum_beside_each_pass() -> None:
    model = small(dim=8, expansion=1, upscale=4)
    with use_backend("torch"):
        measured = peak_of(lambda image: self_ensemble(model, image), 96, 104)
        predicted = predicted_peak(model, 96 * 104, ensemble=True) - FIXED
        assert predicted > 1.25 * bytes_per_pixel(model) * 96 * 104
        assert 0.75 <= predicted / measured <= 1.25
        plan = without_guard(model, self_ensemble=True, tile=0).plan(96, 104)
        assert plan.predicted_peak == predicted + FIXED


@pytest.mark.parametrize(
    "name", ["ditn-real", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ditn", "ditn-tiny"))]
)
def test_predicted_memory_of_the_cpp_kernels(name: str) -> None:
    """Their buffers are not PyTorch's: measured as what the process grows by, from a mark that Linux lets one reset."""
    op = REGISTRY["spatial_stage"]
    found = explain(op, *op.inputs(op.samples[0]).values())
    if found.chosen != "cpp" or not Path("/proc/self/clear_refs").exists():
        pytest.skip(f"needs Linux and the C++ kernels, which here: {', '.join(found.refusals['cpp']) or 'run'}")
    code = f"""
        import sys
        sys.path.insert(0, "tests")
        import torch
        from ditn.inference.memory import bytes_per_pixel
        from networks import MODELS, small

        def status(key):
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

        model = small(MODELS["{name}"], dim=60, ufones={3 if name == "ditn" else 1})
        image = torch.rand(1, 3, 512, 448)
        with torch.inference_mode():
            model(image[..., :64, :64])
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
            model(image)
        print(bytes_per_pixel(model) * 512 * 448 / (status("VmHWM") - before))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert 0.75 <= float(result.stdout) <= 1.25


def test_auto_keeps_max_memory() -> None:
    model = small()
    budget = FIXED + 300 * 300 * bytes_per_pixel(model)
    upscaler = without_guard(model, max_memory=budget)
    regions = upscaler.plan(3000, 2000).regions
    assert len(regions) > 1
    largest = max(region.grown(model.config.overlap, 3000, 2000).pixels for region in regions)
    assert predicted_peak(model, largest) <= budget
    assert len(upscaler.plan(200, 200).regions) == 1
    with pytest.raises(MemoryError, match="the smallest tile needs"):
        without_guard(model, max_memory=FIXED).plan(100, 100)


@pytest.mark.parametrize("tile", ["auto", 0, 16])
def test_a_plan_knows_the_largest_image_that_the_network_gets(tile: int | str) -> None:
    """The image is padded to the grid before it is cut: 203 x 33 pixels become 208 x 40."""
    upscaler = without_guard(small(), tile=tile, max_memory=FIXED + 208 * 40 * bytes_per_pixel(small()))
    plan, given = upscaler.plan(203, 33), []
    run = upscaler._run
    upscaler._run = lambda image: given.append(image.shape[-2] * image.shape[-1]) or run(image)
    upscaler.stream(np.zeros((203, 33, 3), np.uint8), lambda top, left, part: None, plan=plan)
    assert len(plan.regions) == len(given) == (39 if tile == 16 else 1)
    assert plan.predicted_peak == FIXED + max(given) * bytes_per_pixel(upscaler.model)
    with pytest.raises(ValueError, match="the plan is for an image of 203x33, this one has 33x203"):
        upscaler.stream(np.zeros((33, 203, 3), np.uint8), lambda top, left, part: None, plan=plan)

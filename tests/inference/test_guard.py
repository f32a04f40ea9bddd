# SPDX-License-Identifier: Apache-2.0
"""The guard finds enlargements that have nothing to do with their image, repairs them, and leaves photographs alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import hard_images
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

import ditn
from benchmarks.harness.degraded import encoded, page
from ditn.commands import cli, pictures
from ditn.inference import guard


class _Exploding(ditn.DITN_Tiny):
    """Nearest neighbours, but for a square of the input whose answer is a wave of a hundred."""

    square = (slice(16, 24), slice(32, 40))

    def forward(self, image: Tensor) -> Tensor:
        output = image.repeat_interleave(4, -1).repeat_interleave(4, -2)
        rows, columns = (slice(4 * side.start, 4 * side.stop) for side in self.square)
        wave = 100 * torch.cos(torch.arange(output.shape[-1]) / 3)
        mask = torch.zeros_like(output)
        mask[..., rows, columns] = 1
        return output + mask * wave


def _stepped() -> np.ndarray[Any, Any]:
    """A black and a white half, uint8 [64, 80, 3]."""
    image = np.zeros((64, 80, 3), np.uint8)
    image[:, 40:] = 255
    return image


def _upscaler(**options: Any) -> ditn.Upscaler:
    return ditn.Upscaler(_Exploding(4).eval().requires_grad_(False), **options)


def test_an_explosion_is_repaired_and_reported_once() -> None:
    upscaler, image, parts = _upscaler(), _stepped(), []
    exact = image.repeat(4, 0).repeat(4, 1)
    with pytest.warns(RuntimeWarning, match=r"nothing to do with the image: 64 pixels of the 80x64 at \(0, 0\)"):
        upscaler(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upscaler(image)
        findings = upscaler.stream(image, lambda top, left, part: parts.append(part))
    (finding,) = findings
    assert (finding.top, finding.left, finding.height, finding.width) == (0, 0, 64, 80)
    assert finding.blocks == 4
    assert finding.repaired
    # The wave's mean over four output pixels is at most 100, over a block at least a tenth of it.
    assert 10 < finding.error <= 100
    difference = np.abs(parts[0].astype(int) - exact)
    assert difference[64:96, 128:160].max() <= 255 * 0.6, "an edge is smooth, but between its two sides"
    # What is far from the square is as it was.
    assert (difference[:, :64] == 0).all()
    assert (difference[:, 240:] == 0).all()


def test_the_repair_is_within_its_neighbours_and_has_no_seam() -> None:
    # On a gradient every neighbouring pixel differs by a two-hundredth, and so it has to stay.
    ramp = np.tile(np.linspace(0.2, 0.6, 80, dtype=np.float32)[None, :, None], (64, 1, 3))
    with pytest.warns(RuntimeWarning):
        result = _upscaler()(ramp)
    assert np.abs(np.diff(result, axis=1)).max() <= 0.4 / 79 + 1e-4
    assert np.abs(np.diff(result, axis=0)).max() <= 0.4 / 79 + 1e-4
    assert result.min() >= 0.2
    assert result.max() <= 0.6


def test_warn_and_off_leave_the_output() -> None:
    image = _stepped()
    with pytest.warns(RuntimeWarning, match="left as they are"):
        warned = _upscaler(guard="warn")(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = _upscaler(guard="off")(image)
    np.testing.assert_array_equal(warned, plain)
    assert (plain != image.repeat(4, 0).repeat(4, 1)).any()


def test_tiles_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.asarray(Image.fromarray(_stepped()).resize((320, 256), Image.Resampling.NEAREST))

    def everywhere(self: _Exploding, image: Tensor) -> Tensor:
        """Wrong wherever the image is white, whatever tile it is in."""
        output = image.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return output + 30 * (output > 0.5)

    monkeypatch.setattr(_Exploding, "forward", everywhere)
    with pytest.warns(RuntimeWarning):
        whole, tiled = (_upscaler(tile=side)(image) for side in (0, 64))
    np.testing.assert_array_equal(whole, tiled)
    np.testing.assert_array_equal(whole[:, :600], 0)
    np.testing.assert_array_equal(whole[:, 680:], 255)


def test_alpha_is_repaired_whatever_the_guard() -> None:
    image = np.full((64, 80, 4), 120, np.uint8)
    image[..., 3] = _stepped()[..., 0]
    with pytest.warns(RuntimeWarning):
        alpha = _upscaler(guard="off")(image)[..., 3]
    assert (alpha[:, :144] == 0).all()
    assert (alpha[:, 176:] == 255).all()


def test_blocks_are_compared_by_hand() -> None:
    image = torch.full((1, 1, 8, 8), 0.5)
    output = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    output[..., :8, :8] += 0.1
    output[..., 8:, 8:] += 0.4
    wrong, error = guard.compare(output, image)
    assert error.flatten().tolist() == pytest.approx([0.1, 0, 0, 0.4], abs=1e-6)
    # A block's mean may move by 0.35.
    assert wrong.flatten().tolist() == [False, False, False, True]
    # By 0.25 where the output is far out of range anywhere.
    gray = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
    gray[..., :8, :8] += 0.3
    assert not guard.compare(gray, image)[0].any()
    gray[..., 15, 15] = 2.1
    assert guard.compare(gray, image)[0].flatten().tolist() == [True, False, False, False]
    # Its pixels may by 0.48, on average: black and white ones may not become gray, fainter ones may.
    noisy = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 1, 8, 8)
    assert guard.compare(torch.full((1, 1, 16, 16), 0.5), noisy)[0].all()
    faint = 0.5 + 0.7 * (noisy - 0.5)
    assert not guard.compare(torch.full((1, 1, 16, 16), 0.5), faint)[0].any()
    # Blurred strokes may become black and white again.
    blurred = 0.5 + 0.3 * (noisy - 0.5)
    assert not guard.compare(noisy.repeat_interleave(2, -1).repeat_interleave(2, -2), blurred)[0].any()
    # Not a number is wrong.
    assert guard.compare(torch.full((1, 1, 16, 16), torch.nan), faint)[0].all()
    # In an image of larger values the same holds in units of the largest.
    large = 20 * image
    moved = large.repeat_interleave(2, -1).repeat_interleave(2, -2) + 1
    assert not guard.compare(moved, large)[0].any()


def test_bounded_is_bicubic_without_ringing() -> None:
    image = torch.stack(list(hard_images.text()))[:6]
    enlarged = guard.bounded(image, 3)
    assert enlarged.min() >= 0
    assert enlarged.max() <= 1
    smooth = torch.linspace(0, 1, 12).expand(1, 1, 12, 12)
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(
        guard.bounded(smooth, 3)[inside], F.interpolate(smooth, scale_factor=3.0, mode="bicubic")[inside]
    )


@pytest.mark.parametrize("name", [name for name in ditn.models() if name.endswith("x4")])
def test_photographs_are_never_repaired(shared: Path, name: str) -> None:
    model = ditn.load(name)
    paths = sorted((shared / "data" / "eval" / "Set5" / "LR_bicubic" / "X4").iterdir())
    paths += sorted((shared / "data" / "real" / "RealESRGAN_inputs").iterdir())[:6]
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB").crop((0, 0, 128, 128)))
        assert ditn.Upscaler(model, tile=0).stream(pixels, lambda top, left, part: None) == [], path.name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_blurred_text_may_become_sharp(scale: int) -> None:
    """Which moves it further than anything else that is right."""
    upscaler = ditn.Upscaler(ditn.load(f"ditn-real-photo-x{scale}"), tile=0)
    for size, ink in ((14, 0), (20, 0), (30, 0), (30, 60)):
        for paper in (0, 255):
            sharp = Image.fromarray(paper ^ page(size, ink)).crop((0, 0, 160, 104))
            blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(1)))
            for pixels in (blurred, encoded(blurred, "jpeg", quality=75)):
                assert upscaler.stream(pixels, lambda top, left, part: None) == [], (size, ink, paper)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.endswith("x4") else pytest.mark.exhaustive) for name in ditn.models()],
)
def test_no_photograph_of_the_sets_is_repaired(shared: Path, name: str) -> None:
    upscaler, low = ditn.Upscaler(ditn.load(name)), f"X{name[-1]}"
    folders = [shared / "data" / "real" / source for source in ("RealESRGAN_inputs", "RealSRSet")]
    folders += [shared / "data" / "eval" / data / "LR_bicubic" / low for data in ("Set5", "Set14")]
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    paths += sorted((shared / "data" / "eval" / "BSD100" / "LR_bicubic" / low).iterdir())[::5]
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB").crop((0, 0, min(picture.width, 128), min(picture.height, 128))))
        assert upscaler.stream(pixels, lambda top, left, part: None) == [], path.name


def test_the_official_weights_are_guarded_too(shared: Path) -> None:
    upscaler = ditn.Upscaler(ditn.load(shared / "golden" / "DITN_Real_x4.pth", flavor="official"), tile=0)
    found = 0
    for image in hard_images.patterns():
        pixels, parts = image.permute(1, 2, 0).numpy(), []
        if upscaler.stream(pixels, lambda top, left, part, parts=parts: parts.append(part)):
            found += 1
            repaired = torch.from_numpy(parts[0]).permute(2, 0, 1)[None]
            left, excused = (guard.compare(x, image[None])[0] for x in (repaired, guard.bounded(image[None], 4)))
            # Of a checker of single pixels interpolation, too, makes almost gray.
            assert not (left & ~excused).any()
    assert found >= 6


def test_an_unknown_guard_names_the_known() -> None:
    with pytest.raises(ValueError, match="guard is 'on', must be one of 'repair', 'warn', 'off'"):
        _upscaler(guard="on")


def test_the_command_line_reports_and_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "load", lambda *_, **__: _Exploding(4).eval().requires_grad_(False))
    Image.fromarray(_stepped()).save(tmp_path / "step.png")
    arguments = ["upscale", str(tmp_path / "step.png"), "--model", "exploding", "--json", str(tmp_path / "report.json")]
    assert cli.main([*arguments, "-o", str(tmp_path / "repaired.png")]) == 0
    assert "64 pixels of the 80x64 at (0, 0) were wrong by up to" in capsys.readouterr().out
    (picture,) = json.loads((tmp_path / "report.json").read_text())["pictures"]
    (finding,) = picture["guard"]
    assert (finding["blocks"], finding["repaired"]) == (4, True)
    assert cli.main([*arguments, "-o", str(tmp_path / "off.png"), "--guard", "off"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["pictures"][0]["guard"] == []
    repaired, off = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("repaired.png", "off.png"))
    assert np.ptp(repaired[64:96, 176:]) == 0, "white stays white"
    assert np.ptp(off[64:96, 128:160]) == 255
    with pytest.raises(SystemExit):
        cli.main([*arguments, "-o", str(tmp_path / "x.png"), "--guard", "on"])
    assert "invalid choice: 'on' (choose from" in capsys.readouterr().err

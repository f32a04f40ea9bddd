# SPDX-License-Identifier: Apache-2.0
"""The model that suits the picture: what is seen in pixels, and which model they go through."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image

import ditn
from benchmarks import auto
from benchmarks.harness.degraded import DEGRADATIONS, drawings, encoded, page, resized
from ditn.commands.cli import main
from ditn.inference import chooser
from ditn.inference.judge import judge
from ditn.inference.recompression import NOTHING, resaved

DRAWINGS = drawings(np.random.default_rng(0))


def example(name: str = "spiral") -> np.ndarray:
    with Image.open(PROJECT / "examples" / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def clean() -> np.ndarray:
    return example()


def jpeg(picture: np.ndarray, quality: int, **options: int) -> np.ndarray:
    return encoded(picture, "jpeg", quality=quality, **options)


def test_the_clean_example_is_clean_until_compressed(clean) -> None:
    assert judge(clean).reason == "clean"
    for quality in (30, 50, 75):
        assert judge(jpeg(clean, quality)).kind == "photo"
    assert judge(jpeg(clean, 95)).kind == "clean"


@pytest.mark.parametrize("name", ["statue", "house"])
def test_the_example_photographs_are_seen(name: str) -> None:
    """Blurred, shrunk, noisy and compressed; see examples/README.md."""
    assert judge(example(name)).kind != "clean"


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 5), (7, 2)])
def test_jpegs_grid_is_found_at_any_offset(clean, subsampling: int, x: int, y: int) -> None:
    found = judge(jpeg(clean, 70, subsampling=subsampling)[y:, x:])
    assert found.kind == "photo"
    # The first whole block lies where the crop leaves off, by hand.
    assert found.measurements.jpeg.offset == (-x % 8, -y % 8)
    assert f"at offset ({-x % 8}, {-y % 8})" in found.reason


@pytest.mark.parametrize("quality", [25, 40, 60, 75, 80, 85])
def test_jpegs_quality_is_estimated(clean, quality: int) -> None:
    # libjpeg's own number; whole steps of the table leave it uncertain by a few.
    assert judge(jpeg(clean, quality)).measurements.jpeg.quality == pytest.approx(quality, abs=4)


def test_webp_is_found(clean) -> None:
    found = judge(encoded(clean, "webp", quality=45)[2:, 3:])
    assert found.kind == "photo"
    assert found.reason.startswith("WebP in steps of")
    assert found.reason.endswith("blocks of 4x4 at offset (1, 2)")


@pytest.mark.parametrize("sigma", [7.7, 12, 20])
def test_noise_is_measured(clean, sigma: float) -> None:
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape[:2])[..., None]
    found = judge((clean + noise).round().clip(0, 255).astype(np.uint8))
    assert found.kind == "photo"
    assert found.measurements.noise == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize("sigma", [1, 2])
def test_blur_is_found_though_it_was_saved(clean, sigma: int) -> None:
    blurred = DEGRADATIONS[f"blur of {sigma} pixels"](clean, np.random.default_rng(0))
    for found in (judge(blurred), judge(jpeg(blurred, 85))):
        assert (found.kind, found.reason.split(",")[0]) == ("photo", "blurred")


def test_speckle_around_compressed_text_is_found() -> None:
    """Where neither grid nor quality can be made out: cropped, and enlarged since."""
    text = DRAWINGS["text 16"]
    assert judge(text).reason == "clean"
    for found in (judge(jpeg(text, 60)[2:, 3:]), judge(resized(jpeg(text, 60), 1.5))):
        assert found.kind == "photo"
        assert "mosquito noise" in found.reason


@pytest.mark.parametrize("quality", [28, 45, 60, 75, 84])
@pytest.mark.parametrize(("size", "ink"), [(8, 0), (11, 90), (20, 40)])
def test_the_quality_of_a_page_is_found_though_its_paper_is_clipped(size: int, ink: int, quality: int) -> None:
    text = page(size, ink)
    assert judge(text).reason == "clean"
    found = judge(jpeg(text, quality))
    # Every fourth quality is tried.
    assert found.measurements.resaved.quality == pytest.approx(quality, abs=4)
    if quality <= 75:
        assert found.reason.startswith(f"JPEG of quality {found.measurements.resaved.quality} or so")
        assert found.kind == "photo"


def test_saving_again_is_tried_on_the_grid_it_is_told() -> None:
    compressed = jpeg(page(11, 0), 60)[2:, 3:, 0].astype(np.float32)
    assert resaved([compressed], (5, 6)).quality == 60
    assert resaved([compressed], (5, 6)).ratio < 0.6
    assert resaved([compressed], (0, 0)) == resaved([compressed[:20, :20]], (5, 6)) == resaved([], (0, 0)) == NOTHING
    compressed[::8, ::8] = np.nan
    assert resaved([compressed], (5, 6)) == NOTHING


def test_saving_again_says_nothing_of_ramps() -> None:
    """Each of their blocks is moved by a fraction of a level, at some quality by chance much less than at others."""
    for direction in np.linspace(0, np.pi / 2, 7):
        y, x = np.indices((240, 240), np.float32) / 240
        ramp = (255 * (x * np.cos(direction) + y * np.sin(direction)) / 1.5).round()
        assert resaved([ramp], (0, 0)) == NOTHING


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_clean(name: str) -> None:
    drawing = DRAWINGS[name]
    for shifted in (drawing, drawing[3:, 5:], drawing[..., 0]):
        assert judge(shifted).kind == "clean", judge(shifted)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 4), (1, 300), (7, 9, 3), (8, 8, 2), (30, 5, 1), (64, 64, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_little_or_no_evidence_is_clean(shape: tuple[int, ...], dtype: type) -> None:
    limit = 1 if dtype == np.float32 else np.iinfo(dtype).max
    assert judge(np.full(shape, limit // 2 or 0.5, dtype)).reason == "clean"
    assert judge(np.zeros(shape, dtype)).reason == "clean"
    small = (np.random.default_rng(0).random((9, 11, *shape[2:])) * limit).astype(dtype)
    assert judge(small).reason == "clean"
    assert judge(np.full((8, 8), np.nan, np.float32)).reason == "clean"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(30_000, 1, 3), (1, 30_000, 3)], ids=["column", "row"])
def test_a_line_of_pixels_is_judged_by_its_busy_parts(shape: tuple[int, ...], monkeypatch) -> None:
    """Whichever way it runs: busier and busier, tile by tile."""
    busy = np.random.default_rng(0).random(30_000) < np.linspace(0, 0.5, 30_000)
    line = np.repeat(np.where(busy, 255, 128).astype(np.uint8), 3).reshape(shape)
    seen = []
    monkeypatch.setattr("ditn.inference.judge.resaved", lambda tiles, _: seen.extend(tiles) or resaved(tiles, _))
    assert judge(line).kind == "clean"
    changes = [float((np.diff(tile.reshape(-1)) != 0).mean()) for tile in seen[:4]]
    assert len(changes) == 4
    assert changes == sorted(changes)
    assert changes[-1] > 0.5


def test_samples_of_every_type_are_judged_alike(clean) -> None:
    compressed = jpeg(clean, 50)[1:, 6:]
    expected = judge(compressed)
    deep, real = compressed.astype(np.uint16) * 257, compressed.astype(np.float32) / 255
    opaque = np.concatenate([compressed, np.full_like(compressed[..., :1], 255)], axis=2)
    for other in (deep, real, opaque):
        assert judge(other).reason == expected.reason
    gray = np.asarray(Image.fromarray(clean).convert("L"))
    with_gray = encoded(gray, "jpeg", quality=50)[..., 0]
    assert judge(with_gray).measurements.jpeg.step == pytest.approx(1, abs=0.05)
    assert judge(with_gray[..., None]) == judge(with_gray)


def test_what_is_transparent_is_ignored(clean) -> None:
    alpha = np.zeros((*clean.shape[:2], 1), np.uint8)
    half = clean.shape[1] // 2
    alpha[:, half:] = 255
    compressed = jpeg(clean, 40)
    visible = np.concatenate([clean[:, :half], compressed[:, half:]], axis=1)
    hidden = np.concatenate([compressed[:, :half], clean[:, half:]], axis=1)
    assert judge(np.concatenate([visible, alpha], axis=2)).kind == "photo"
    assert judge(np.concatenate([hidden, alpha], axis=2)).kind == "clean"


def test_a_large_picture_is_judged_by_a_bounded_number_of_pixels(clean) -> None:
    large = np.tile(clean, (12, 12, 1))
    assert large.size > 6e6
    compressed = jpeg(large, 60)[4:, 4:]
    found = judge(compressed)
    assert found.measurements.pixels <= 125_000
    assert (found.kind, found.measurements.jpeg.offset) == ("photo", (4, 4))
    assert judge(compressed) == found
    assert judge(resized(large, 1.0)).kind == "clean"


def test_wrong_samples_are_named() -> None:
    with pytest.raises(TypeError, match="got int64"):
        judge(np.zeros((4, 4), np.int64))
    with pytest.raises(ValueError, match=r"got shape \[4, 4, 5\]"):
        judge(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        ditn.Upscaler("auto", scale=4)(np.zeros((0, 4, 3), np.uint8))


def test_every_variant_ships_and_has_its_scale() -> None:
    table = chooser.shipped_by_scale()
    assert {2, 3, 4} <= set(table)
    for scale in (2, 3, 4):
        assert list(table[scale]) == ["clean", "photo"]
    for scale, names in table.items():
        assert {ditn.load(name).config.upscale for name in names.values()} == {scale}


@pytest.mark.parametrize(("factor", "scale"), [(0.5, 2), (2, 2), (2.1, 3), (3.5, 4), (4, 4), (11, 4)])
def test_the_smallest_scale_that_is_enough(factor: float, scale: int) -> None:
    assert chooser.scale_for(factor) == scale


def test_auto_takes_the_model_that_suits(clean) -> None:
    upscaler, small = ditn.Upscaler("auto", scale=4, device="cpu"), clean[40:88, 50:114]
    compressed = jpeg(small, 50)
    for picture, name in ((small, "ditn-tiny-x4"), (compressed, "ditn-real-photo-x4")):
        expected = ditn.Upscaler(ditn.load(name))(picture)
        np.testing.assert_array_equal(upscaler(picture), expected)
        assert upscaler.suited(picture)[1].model == name
    again, other = (upscaler.suited(picture)[0] for picture in (small, compressed))
    assert upscaler.suited(small)[0] is again
    assert (again.scale, other.scale, upscaler.scale) == (4, 4, 4)
    assert again is not other
    image = Image.fromarray(compressed)
    assert np.array_equal(np.asarray(upscaler(image)), upscaler(compressed))
    batch = torch.from_numpy(np.stack([small, compressed])).permute(0, 3, 1, 2).float() / 255
    singly = torch.cat([upscaler(one[None]) for one in batch])
    torch.testing.assert_close(upscaler(batch), singly, rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda upscaler: pickle.loads(pickle.dumps(upscaler))])
def test_a_copy_stands_for_itself(clean, copied) -> None:
    """For another process, or beside the first, which may change."""
    first, small = ditn.Upscaler("auto", scale=4, device="cpu", self_ensemble=True), clean[40:56, 50:74]
    expected = ditn.Upscaler("ditn-tiny-x4", device="cpu", self_ensemble=True)(small)
    second = copied(first)
    first.model.sft.weight.zero_()
    np.testing.assert_array_equal(second(small), expected)
    assert second.suited(jpeg(clean, 50))[1].model == "ditn-real-photo-x4"


def test_options_reach_both_models(clean) -> None:
    shares: list[float] = []
    upscaler = ditn.Upscaler("auto", scale=4, tile=32, device="cpu", dtype=torch.bfloat16)
    for picture in (clean, jpeg(clean, 50)):
        chosen = upscaler.suited(picture)[0]
        assert (chosen.tile, chosen.dtype, chosen.model.sft.weight.dtype) == (32, torch.bfloat16, torch.bfloat16)
    upscaler(clean[:40, :40], progress=shares.append)
    assert shares[-1] == 1


def test_models_are_loaded_when_they_are_needed(clean, monkeypatch) -> None:
    from ditn.inference import upscaler

    loaded: list[str] = []

    def watched(name: str, **options):
        loaded.append(name)
        return ditn.load(name, **options)

    monkeypatch.setattr(upscaler, "load", watched)
    upscaler = ditn.Upscaler("auto", scale=4, device="cpu")
    for picture in (clean, clean, jpeg(clean, 50), jpeg(clean, 40)):
        upscaler.suited(picture)
    assert loaded == ["ditn-tiny-x4", "ditn-real-photo-x4"]


def test_a_scale_without_a_model_for_a_kind_says_so(clean, monkeypatch) -> None:
    shipped = [name for name in ditn.models() if name != "ditn-real-photo-x4"]
    monkeypatch.setattr(chooser, "models", lambda: shipped)
    _, choice = ditn.Upscaler("auto", scale=4).suited(jpeg(clean, 50))
    assert choice.model == "ditn-tiny-x4"
    assert choice.reason.startswith("JPEG of quality")
    assert choice.reason.endswith("no model for photographs ships at this scale")


def test_names_and_scales_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="scale is 7, but models ship for 2, 3, 4"):
        ditn.Upscaler("auto", scale=7)
    with pytest.raises(ValueError, match="scale is 3, but the model enlarges 4 times"):
        ditn.Upscaler("ditn-tiny-x4", scale=3)
    with pytest.raises(FileNotFoundError, match=r"nothing is no file and no shipped model; there are ditn-"):
        ditn.Upscaler("nothing")
    assert ditn.Upscaler("ditn-tiny-x2").scale == 2
    assert ditn.Upscaler("auto").scale == 4


def test_the_command_line_says_which_model_and_why(clean, tmp_path, capsys) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(clean[:48, :64]).save(source / "clean.png")
    # A PNG that was a JPEG.
    Image.fromarray(jpeg(clean, 50)[35:107, 45:133]).save(source / "was-jpeg.png")
    report = tmp_path / "report.json"
    assert main(["upscale", str(source), "-o", str(output), "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert content["model"] == "auto"
    pictures = {Path(entry["input"]).name: entry for entry in content["pictures"]}
    assert pictures["clean.png"]["model"] == "ditn-tiny-x4"
    assert pictures["clean.png"]["model_reason"] == "clean"
    assert pictures["was-jpeg.png"]["model"] == "ditn-real-photo-x4"
    assert "blocks of 8x8 at offset (3, 5)" in pictures["was-jpeg.png"]["model_reason"]
    assert pictures["clean.png"]["output_size"] == [256, 192]
    said = capsys.readouterr().out
    assert f"{source / 'was-jpeg.png'}: ditn-real-photo-x4: JPEG of quality" in said
    assert (
        main(["upscale", str(source), "-o", str(output), "--overwrite", "--scale", "2.5", "--json", str(report)]) == 0
    )
    pictures = {Path(entry["input"]).name: entry for entry in json.loads(report.read_text())["pictures"]}
    assert pictures["clean.png"]["model"] == "ditn-tiny-x3"
    with Image.open(output / "clean.png") as result:
        assert result.size == (160, 120)


def test_a_named_model_is_not_second_guessed(clean, tmp_path) -> None:
    Image.fromarray(jpeg(clean, 30)[:32, :32]).save(tmp_path / "in.png")
    report = tmp_path / "report.json"
    options = ["-o", str(tmp_path / "out.png"), "--model", "ditn-tiny-x2", "--json", str(report)]
    assert main(["upscale", str(tmp_path / "in.png"), *options]) == 0
    (picture,) = json.loads(report.read_text())["pictures"]
    assert (picture["model"], picture["model_reason"]) == ("ditn-tiny-x2", "")


def test_a_flavor_needs_a_file(tmp_path, capsys) -> None:
    assert main(["upscale", "x.png", "-o", str(tmp_path / "y.png"), "--flavor", "neosr"]) == 2
    assert "name that file with --model" in capsys.readouterr().err


def test_info_shows_the_table(capsys) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auto"]["4"] == chooser.shipped_by_scale()[4]
    assert main(["info"]) == 0
    expected = "ditn-tiny-x4 for clean images, ditn-real-photo-x4 for photographs"
    assert expected in capsys.readouterr().out


@pytest.mark.slow  # 400 pictures
def test_evaluation_images_are_told_apart(shared: Path) -> None:
    """The bars of the benchmark, on a part of its pictures."""
    rows = {row["label"]: row for row in auto.confusion(shared / "data" / "eval", 24)}
    found = [rows[label] for label in rows if auto.wanted(label) == "photo" and label.startswith("JPEG")]
    assert len(found) == 10  # qualities of 30 to 80, with and without subsampling
    assert sum(row["clean"] for row in found) <= 0.05 * sum(row["pictures"] for row in found)
    assert rows["drawing"]["clean"] == rows["drawing"]["pictures"]
    clean = auto.losses(shared / "data" / "eval")
    others = {name.split(":")[0] for row in clean for name in row["others"]}
    # These high-resolution ones were JPEGs once: high frequencies are nearly zero on the grid of their corner, far more
    # often than on any other. Of the rest one of 472 is mistaken.
    jpegs = {"woman", "coastguard", "foreman", "zebra"}
    assert others >= jpegs
    assert len(others - jpegs) <= 1
    assert all(row["loss_db"] <= 0.02 for row in clean if row["loss_db"] is not None)

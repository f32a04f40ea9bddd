# SPDX-License-Identifier: Apache-2.0
"""One reader for upscaling, training and evaluation: pixels as other libraries, or formulas, have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import pyvips
from handmade import png, tiff
from PIL import Image

from ditn.commands.evaluate import evaluate
from ditn.imaging.arrays import ImageError
from ditn.imaging.files import read, read_8_bit
from ditn.imaging.resample import resampled
from ditn.training.data import PairedImages

RANDOM = np.random.default_rng(0)
LAB = np.array([[50.0, 40.0, -30.0], [80.0, -40.0, 20.0], [100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [30.0, 10.0, 20.0]])


def srgb(lab: np.ndarray) -> np.ndarray:
    """L*a*b* relative to D50 as sRGB in 0..1: CIE's formula, and Bradford's adaptation to D65 in the matrix."""
    f = (lab[:, 0] + 16) / 116 + np.stack([lab[:, 1] / 500, np.zeros(len(lab)), -lab[:, 2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)).T * [0.96422, 1, 0.82521]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


ENCODINGS = {
    # TIFF's: a* and b* signed, L* up to the largest number.
    "8 bits": (8, lambda lab: (lab * [2.55, 1, 1]).round().astype(np.int16).astype(np.uint8)),
    "16 bits": (8, lambda lab: (lab * [655.35, 256, 256]).round().astype(np.int32).astype(np.uint16)),
    "float": (8, lambda lab: lab.astype(np.float32)),
    # ICC's: a* and b* with an offset, L* of 16 bits up to 0xFF00.
    "ICC, 8 bits": (9, lambda lab: (lab * [2.55, 1, 1] + [0, 128, 128]).round().astype(np.uint8)),
    "ICC, 16 bits": (9, lambda lab: (lab * [652.8, 256, 256] + [0, 32768, 32768]).round().astype(np.uint16)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("alpha", [False, True])
def test_lab_tiff(tmp_path, encoding: str, order: str, alpha: bool) -> None:
    photometric, encode = ENCODINGS[encoding]
    stored = encode(LAB)[None]
    if alpha and stored.dtype == np.float32:
        pytest.skip("alpha in float has no range that is agreed on")
    clear = np.linspace(0, 255 if stored.dtype == np.uint8 else 65535, 5).astype(stored.dtype)
    if alpha:
        stored = np.concatenate([stored, clear.reshape(1, 5, 1)], axis=2)
    tiff(tmp_path / "a.tif", stored, photometric, order=order, alpha=alpha)
    page = read(tmp_path / "a.tif")
    limit = 255 if "8" in encoding else 65535
    assert page.pixels.dtype == (np.uint8 if limit == 255 else np.uint16)
    # 8 bits hold L* to half of 1/2.55 and a*, b* to a half, which is up to 2 of 255; lcms' tables are good to 0.1 %.
    allowed = 2 if limit == 255 else 65535 / 500
    assert np.abs(page.pixels[0, :, :3] - srgb(LAB) * limit).max() <= allowed
    assert page.described.notes == ["lab converted to sRGB"]
    if alpha:
        np.testing.assert_array_equal(page.pixels[0, :, 3], clear)
    else:
        assert page.pixels.shape == (1, 5, 3)


def test_unknown_colours_of_tiff_are_refused(tmp_path) -> None:
    """Photometric 10, ITU's L*a*b*, and 32803, a camera's colour filter array: read as RGB they would be wrong."""
    for photometric in (10, 32803):
        tiff(tmp_path / "a.tif", np.zeros((2, 2, 3), np.uint8), photometric)
        with pytest.raises(ImageError, match=f"TIFF's kind {photometric}"):
            read(tmp_path / "a.tif")


def test_the_name_does_not_say_what_a_file_is(tmp_path) -> None:
    """Each kind under each other's suffix: 16-bit PNG, BMP and JPEG."""
    deep = RANDOM.integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    png(tmp_path / "deep", deep)
    plain = (deep >> 8).astype(np.uint8)
    Image.fromarray(plain).save(tmp_path / "plain", "bmp")
    for suffix in ("png", "bmp", "jpg", "tif", "webp"):
        shutil.copy(tmp_path / "deep", tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}").pixels, deep)
        shutil.copy(tmp_path / "plain", tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}").pixels, plain)


def test_a_file_that_has_changed_is_read_again(tmp_path) -> None:
    for value in (10, 200):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png").pixels == value).all()


def deep_gray(folder: Path, kind: str) -> tuple[Path, np.ndarray]:
    """A file of 16-bit gray, which Pillow's `convert` would clip, and its samples."""
    samples = RANDOM.integers(0, 65536, (48, 48, 1), dtype=np.uint16)
    folder.mkdir(exist_ok=True)
    path = folder / f"a.{'png' if 'png' in kind else 'tif'}"
    if kind == "png":
        png(path, samples)
    elif kind == "png, transparent":
        # Whatever has this value is clear, and so white where there is no alpha.
        png(path, samples, (b"tRNS", samples[0, 0].astype(">u2").tobytes()))
    elif kind == "white is zero":
        tiff(path, 65535 - samples, 0)
    else:
        tiff(path, samples, 1, order=">" if kind == "big-endian" else "<")
    return path, samples


@pytest.mark.parametrize("kind", ["png", "png, transparent", "tiff", "big-endian", "white is zero"])
def test_16_bit_gray_in_8_bits(tmp_path, kind: str) -> None:
    path, samples = deep_gray(tmp_path, kind)
    expected = np.rint(samples[..., 0] / 257.0)
    if kind == "png, transparent":
        expected[samples[..., 0] == samples[0, 0, 0]] = 255
    np.testing.assert_array_equal(read_8_bit(path), expected)


def test_training_and_evaluation_see_16_bits(tmp_path) -> None:
    path, samples = deep_gray(tmp_path / "deep", "png")
    expected = np.rint(samples[..., 0] / 257.0).astype(np.uint8)
    high, _ = PairedImages([path], 2, tmp_path / "cache")[0]
    np.testing.assert_array_equal(high, expected[..., None].repeat(3, 2))
    (tmp_path / "plain").mkdir()
    Image.fromarray(expected).save(tmp_path / "plain" / "a.png")
    seen = []
    for folder in ("deep", "plain"):
        result = evaluate(
            lambda low: np.kron(low, np.ones((2, 2), np.uint8)),
            tmp_path / folder,
            2,
            observe=lambda name, low, high, output: seen.append(high),
        )
        assert len(result.scores) == 1
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16])
def test_samples_of_no_known_range_are_refused_everywhere(tmp_path, dtype: type) -> None:
    tiff(tmp_path / "a.tif", np.ones((48, 48, 1), dtype), 1)
    names = {"float32": "float", "int32": "int", "uint32": "uint", "int16": "short"}
    reason = f"has {names[np.dtype(dtype).name]} samples; convert it to 8 or 16 bits per channel first"
    with pytest.raises(ImageError, match=reason):
        read_8_bit(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"a.tif cannot be used for training: {reason}"):
        PairedImages([tmp_path / "a.tif"], 2, tmp_path / "cache")
    assert evaluate(lambda low: low, tmp_path, 2).errors == (f"a: {reason}",)


def test_transparency_is_white_in_8_bits_and_orientation_is_applied(tmp_path) -> None:
    pixels = RANDOM.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    share = pixels[..., 3:] / 255
    expected = np.rot90(pixels[..., :3] * share + 255 * (1 - share), -1)
    assert np.abs(read_8_bit(tmp_path / "a.png") - expected).max() <= 0.5 + 1e-4  # rounded, computed in float32


def edge(width: int, colour: int = 90) -> np.ndarray:
    """Clear to the left, visible to the right; black where it is clear."""
    pixels = np.zeros((16, width, 4), np.uint8)
    pixels[:, width // 2 :] = colour, 180, 40, 255
    return pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", [0.3, 0.5, 0.75, 1.5, 2.3, 3.0])
def test_resampled_alpha_leaves_no_haze_and_no_fringe(factor: float, dtype: type) -> None:
    limit = np.iinfo(dtype).max
    pixels = (edge(64).astype(np.uint32) * (limit // 255)).astype(dtype)
    kind = "srgb" if dtype == np.uint8 else "rgb16"
    width, height = round(64 * factor), max(round(16 * factor), 1)
    image = pyvips.Image.new_from_array(pixels).copy(interpretation=kind)
    result = resampled(image, width, height).numpy()
    assert (result.shape, result.dtype) == ((height, width, 4), dtype)
    alpha, middle = result[..., 3], width / 2
    # Beyond the nearest 3 x 3 source pixels, or 3 x 3 of its own where it is smaller, nothing of the edge is seen.
    reach = 2 * max(factor, 1) + 1
    assert (alpha[:, : int(middle - reach)] == 0).all()
    assert (alpha[:, int(middle + reach) + 1 :] == limit).all()
    # The one visible colour stays what it is wherever alpha has room for it.
    visible = result[alpha > limit // 16][:, :3].astype(int) / (limit // 255)
    assert np.abs(visible - [90, 180, 40]).max() <= 1


def test_resampling_counts_colours_by_their_alpha() -> None:
    """Premultiplied by hand: red that is nearly clear beside opaque blue is hardly seen in their mean."""
    pixels = np.array([[[255, 0, 0, 15], [0, 0, 255, 255]] * 8] * 16, np.uint8)
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    result = resampled(image, 8, 8).numpy()[2:-2, 2:-2].astype(float)
    share = 15 / (15 + 255)
    # Lanczos' weights are not exactly a half each, but those of a period of two pixels nearly are.
    np.testing.assert_allclose(result.mean((0, 1)), [255 * share, 0, 255 * (1 - share), 135], atol=3)

# SPDX-License-Identifier: Apache-2.0
"""What scanners, archives and old programs write, and what is no image but near to one. Files are made by hand, or by
another library than reads them, or without loss."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditn.commands.cli import main
from ditn.imaging.arrays import ImageError
from ditn.imaging.files import page_count, pixel_count, read

RANDOM = np.random.default_rng(0)
GRAY, COLOURS = (RANDOM.integers(0, 256, shape, dtype=np.uint8) for shape in ((5, 7, 1), (5, 7, 3)))
DEEP = RANDOM.integers(0, 65536, (5, 7, 1), dtype=np.uint16)
BITS = np.unpackbits(RANDOM.integers(0, 256, (5, 1), dtype=np.uint8), axis=1)[:, :7]


def text(samples: np.ndarray) -> bytes:
    return " ".join(map(str, samples.ravel())).encode()


NETPBM = {
    "bits as text": (b"P1\n# scanned\n7 5\n" + text(BITS), 255 * (1 - BITS[..., None])),
    "gray as text": (b"P2\n7 5\n255\n" + text(GRAY), GRAY),
    "colours as text": (b"P3 7 5 255 " + text(COLOURS), COLOURS),
    "bits": (b"P4\n7 5\n" + np.packbits(BITS, axis=1).tobytes(), 255 * (1 - BITS[..., None])),
    "gray": (b"P5\n7 5\n255\n" + GRAY.tobytes(), GRAY),
    "gray of 16 bits": (b"P5\n7 5\n65535\n" + DEEP.astype(">u2").tobytes(), DEEP),
    "colours": (b"P6\n# of a scanner\n7 5\n255\n" + COLOURS.tobytes(), COLOURS),
}


@pytest.mark.parametrize("kind", NETPBM)
def test_netpbm(tmp_path, kind: str) -> None:
    path = tmp_path / "page.pnm"
    path.write_bytes(NETPBM[kind][0])
    page = read(path)
    np.testing.assert_array_equal(page.pixels, NETPBM[kind][1])
    assert page.described.notes == []
    assert (page_count(path), pixel_count(path)) == (1, 35)


def test_bits_that_are_lost_are_told(tmp_path) -> None:
    """Of colours Pillow has 8 bits at most: these are rounded, or cut off."""
    colours = RANDOM.integers(0, 65536, (16, 24, 3), dtype=np.uint16)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# deep\n24 16\n65535\n" + colours.astype(">u2").tobytes())
    page = read(tmp_path / "a.ppm")
    assert np.abs(page.pixels - colours / 257).max() < 1
    assert page.described.notes == ["read in 8 of its 16 bits"]


def test_deep_jpeg_2000(tmp_path) -> None:
    """Written by FFmpeg, with loss."""
    av = pytest.importorskip("av", reason="needs PyAV, which is not installed")
    y, x = np.mgrid[:32, :48]
    colours = np.stack([1300 * x, 2000 * y, 700 * (x + y)], axis=2).astype(np.uint16)
    codec = av.CodecContext.create("jpeg2000", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 48, 32, "rgb48le", Fraction(1)
    frame = av.VideoFrame.from_ndarray(colours, format="rgb48le")
    (tmp_path / "a.jp2").write_bytes(b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None))))
    page = read(tmp_path / "a.jp2")
    assert np.abs(page.pixels - colours / 257).max() < 3
    assert page.described.notes == ["read in 8 of its 16 bits"]


@pytest.mark.parametrize("suffix", ["jp2", "j2k", "tga", "pcx"])
def test_colours_without_loss(tmp_path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOURS).save(path)
    np.testing.assert_array_equal(read(path).pixels, COLOURS)


def test_deep_gray_jpeg_2000(tmp_path) -> None:
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.jp2")
    page = read(tmp_path / "a.jp2")
    np.testing.assert_array_equal(page.pixels, DEEP)
    assert page.described.notes == []


@pytest.mark.parametrize(("suffix", "size"), [("tga", 7), ("ico", 16)])
def test_transparency(tmp_path, suffix: str, size: int) -> None:
    pixels = RANDOM.integers(0, 256, (size, size, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", sizes=[(size, size)])
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}").pixels, pixels)


@pytest.mark.parametrize("suffix", ["ppm", "jp2", "tga", "pcx", "ico"])
def test_damaged_files_are_refused(tmp_path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ImageError, match="that can be read"):
        read(path)


def test_forged_sizes_are_refused_before_anything_is_decoded(tmp_path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n100000 100000\n255\n")
    with pytest.raises(ImageError, match="claims 100000x100000"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("scan.pdf", b"%PDF-1.7\n", "pdfimages"),
        ("photo.nef", b"MM\0*\0\0\0\x08", "develop it first"),
    ],
)
def test_what_is_to_be_done_first_is_said(tmp_path, capsys, name: str, content: bytes, advice: str) -> None:
    path: Path = tmp_path / name
    path.write_bytes(content)
    assert main(["upscale", str(path), "-o", str(tmp_path / "a.png")]) == 1
    assert advice in capsys.readouterr().err

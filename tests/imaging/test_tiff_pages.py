# SPDX-License-Identifier: Apache-2.0
"""Which of a TIFF's directories are pages. Files are written by Pillow and libvips."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, TiffImagePlugin

from ditn.commands.cli import main
from ditn.imaging.files import page_count, pixel_count, read

RANDOM = np.random.default_rng(0)
SMALLER = "smaller images"


def picture(side: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)


def write(path: Path, *directories: tuple[np.ndarray, int | None]) -> None:
    """A TIFF of several directories, with NewSubfileType where it is given; TIFF demands none."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as file:
        for pixels, kind in directories:
            mode = "LAB" if kind and kind & 64 else "RGB"
            tags = {} if kind is None else {254: kind & 63}
            Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(file, "TIFF", tiffinfo=tags)
            file.newFrame()


def test_a_pyramids_levels_are_no_pages(tmp_path) -> None:
    pixels = picture(700)
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    image.write_to_file(str(path), tile=True, tile_width=128, tile_height=128, pyramid=True)
    with Image.open(path) as found:
        assert found.n_frames > 2
    assert page_count(path) == 1
    page = read(path)
    np.testing.assert_array_equal(page.pixels, pixels)
    assert page.described.metadata.dropped == (SMALLER,)


@pytest.mark.parametrize(
    ("kinds", "pages"),
    [
        ((None, 1), [0]),
        ((0, 1), [0]),
        ((1, 0), [1]),  # as cameras write it
        ((2, 1, 2, 3, 2), [0, 2, 4]),  # 2: one page of several
        ((None, None), [0, 1]),
        ((1,), [0]),  # nothing else is there
        ((1, 1), [0, 1]),
        ((1, 64, 1, 64), [1, 3]),  # L*a*b* of 8 bits, which Pillow reads
    ],
)
def test_previews_are_no_pages(tmp_path, kinds: tuple[int | None, ...], pages: list[int]) -> None:
    path = tmp_path / "a.tif"
    images = [picture(9 + number) for number in range(len(kinds))]
    write(path, *zip(images, kinds, strict=True))
    assert page_count(path) == len(pages)
    for number, place in enumerate(pages):
        page = read(path, page=number)
        assert pixel_count(path, number) == images[place].shape[0] * images[place].shape[1]
        assert page.pixels.shape == images[place].shape
        if 64 not in kinds:
            np.testing.assert_array_equal(page.pixels, images[place])
        assert page.described.metadata.dropped == ((SMALLER,) if len(pages) < len(kinds) else ())


def test_every_reader_takes_the_same_directory(tmp_path) -> None:
    """Pixels and metadata: of a preview with a description, and of the image after it."""
    path = tmp_path / "a.tif"
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as file:
        for side, kind, text in ((9, 1, "a preview"), (12, 0, "the image")):
            Image.fromarray(picture(side)).save(file, "TIFF", tiffinfo={254: kind, 270: text})
            file.newFrame()
    page = read(path)
    assert page.pixels.shape[:2] == (12, 13)
    assert b"the image" in page.described.metadata.exif
    assert b"a preview" not in page.described.metadata.exif


def test_directories_in_a_circle_end(tmp_path) -> None:
    path = tmp_path / "a.tif"
    write(path, (picture(9), 0), (picture(10), 0))
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0])
    struct.pack_into("<I", data, second + 2 + 12 * struct.unpack_from("<H", data, second)[0], first)
    path.write_bytes(data)
    assert page_count(path) == 2


def test_a_second_directory_that_is_cut_off_costs_no_page_before_it(tmp_path) -> None:
    path = tmp_path / "a.tif"
    pixels = picture(9)
    write(path, (pixels, 0), (picture(10), 0))
    data = path.read_bytes()
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0])
    path.write_bytes(data[: second + 4])
    assert page_count(path) == 1
    np.testing.assert_array_equal(read(path).pixels, pixels)


def test_one_picture_is_written_of_a_pyramid(tmp_path, weights) -> None:
    image = pyvips.Image.new_from_array(picture(40)).copy(interpretation="srgb")
    image.write_to_file(str(tmp_path / "a.tif"), tile=True, tile_width=16, tile_height=16, pyramid=True)
    report = tmp_path / "report.json"
    options = ["--model", str(weights), "--guard", "off", "--json", str(report)]
    assert main(["upscale", str(tmp_path / "a.tif"), "-o", str(tmp_path / "out" / "a.tif"), *options]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tif"]
    (entry,) = json.loads(report.read_text())["pictures"]
    assert entry["notes"] == ["not in the tif: smaller images"]
    assert entry["output_size"] == [82, 80]

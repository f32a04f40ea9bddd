# SPDX-License-Identifier: Apache-2.0
"""Images larger than memory: rectangles are read, and tiled BigTIFF is written in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from ditn.imaging.files import open_page
from ditn.imaging.regions import Regions, is_tiled, write_tiled
from ditn.imaging.tiled_tiff import PartWriter, TiledTiff, join, told


def noise(height: int, width: int, bands: int, dtype: str = "uint8") -> np.ndarray:
    limit = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, limit, (height, width, bands)).astype(dtype)


def write_parts(folder: Path, samples: np.ndarray, form: TiledTiff, rows: list[int]) -> list[Path]:
    """A part for each so many rows of tiles, the tiles of each from right to left."""
    parts, top = [], 0
    for count in rows:
        parts.append(folder / f"{top}.part")
        with parts[-1].open("wb") as file:
            writer = PartWriter(file)
            for column in reversed(range(form.across)):
                for row in range(top, top + count):
                    y, x = row * form.side, column * form.side
                    writer.add(row, column, form.compressed(samples[y : y + form.side, x : x + form.side]))
            writer.close(rows=count)
        top += count
    return parts


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_joined_parts_are_the_image_to_libvips(tmp_path, bands: int, dtype: str) -> None:
    samples = noise(75, 130, bands, dtype)
    form = TiledTiff(130, 75, bands, dtype, 32)
    parts = write_parts(tmp_path, samples, form, [2, 1])
    assert [told(part)["rows"] for part in parts] == [2, 1]
    join(parts, form, tmp_path / "joined.tif")
    image = pyvips.Image.new_from_file(str(tmp_path / "joined.tif"))
    assert (image.get("tile-width"), image.hasalpha()) == (32, bands in (2, 4))
    np.testing.assert_array_equal(image.numpy().reshape(samples.shape), samples)
    if (bands, dtype) == (3, "uint8"):  # what Pillow reads, whose decoder is libtiff
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "joined.tif")), samples)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_places_beyond_four_gigabytes(tmp_path) -> None:
    """As the file of an image of 100,000 x 100,000 has them: 5 GB lie before the second tile."""
    samples = noise(16, 32, 1)
    form = TiledTiff(32, 16, 1, "uint8", 16)
    with (tmp_path / "part").open("wb") as file:
        file.truncate(5 * 2**30)
        writer = PartWriter(file)
        file.seek(5 * 2**30)
        writer._places[0, 0] = 0, 5 * 2**30
        writer.add(0, 1, form.compressed(samples[:, 16:]))
        writer.close()
    join([tmp_path / "part"], form, tmp_path / "joined.tif")
    assert (tmp_path / "joined.tif").stat().st_size > 5 * 2**30
    image = pyvips.Image.new_from_file(str(tmp_path / "joined.tif"))
    np.testing.assert_array_equal(image.crop(16, 0, 16, 16).numpy(), samples[:, 16:, 0])


def test_parts_that_do_not_fit_are_refused(tmp_path) -> None:
    samples = noise(64, 32, 1)
    form = TiledTiff(32, 64, 1, "uint8", 32)
    first, second = write_parts(tmp_path, samples, form, [1, 1])
    with pytest.raises(ValueError, match="the parts hold 1 tiles, 1 x 2 are needed"):
        join([first], form, tmp_path / "joined.tif")
    content = second.read_bytes()
    for damaged in (content[:-64], content[64:], b""):
        second.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged; remove it"):
            join([first, second], form, tmp_path / "joined.tif")


def test_rectangles_are_those_of_the_whole(tmp_path) -> None:
    samples = noise(70, 90, 4, "uint16")
    source = tmp_path / "strips.tif"
    pyvips.Image.new_from_array(samples, interpretation="rgb16").tiffsave(str(source))
    assert not is_tiled(source, 0)
    image, _ = open_page(source, once_through=True)
    tiled = tmp_path / "input"
    tiled.touch()
    write_tiled(image, tiled)
    assert is_tiled(tiled, 0)
    regions = Regions(open_page(tiled)[0], 3)
    assert (regions.shape, regions.dtype.name, regions.ndim, regions.size) == ((70, 90, 3), "uint16", 3, 18900)
    rows, columns = np.array([3, 2, 1, 0, 1, 2, 69]), np.array([5, 4, 89, 4])
    np.testing.assert_array_equal(regions[rows[:, None], columns], samples[..., :3][rows[:, None], columns])
    np.testing.assert_array_equal(regions[60:80, 7:9], samples[60:80, 7:9, :3])
    assert regions.constant(0) is None

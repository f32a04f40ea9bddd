# SPDX-License-Identifier: Apache-2.0
"""What JPEG 2000, AVIF and PCX tell beside the pixels: files of Pillow's, into which boxes are put by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_metadata import PIXELS, SRGB, XMP, chunks_of, dpi_of, enlarge, told

XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
# A profile with other primary colours than sRGB's, which is all that matters of Adobe RGB here.
OTHER = SRGB.replace(b"sRGB", b"aRGB")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def resolution(kind: bytes, across: int, down: int) -> bytes:
    """Pixels per inch as tens of pixels per metre: numerators and denominators, then exponents."""
    tens = [round(value / 0.254) for value in (down, across)]
    return box(kind, struct.pack(">HHHHbb", tens[0], 1, tens[1], 1, 1, 1))


def jp2(path: Path, *, colour: bytes = b"", inside: bytes = b"", behind: bytes = b"") -> None:
    """A JPEG 2000 file with another colour box, and with further boxes in its header and behind it."""
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    start = data.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", data, start)
    header = data[start + 8 : start + length]
    if colour:
        place = header.index(b"colr") - 4
        (size,) = struct.unpack_from(">I", header, place)
        header = header[:place] + box(b"colr", colour) + header[place + size :]
    path.write_bytes(data[:start] + box(b"jp2h", header + inside) + behind + data[start + length :])


@pytest.mark.parametrize("method", [2, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_profile_of_jpeg_2000_is_kept(tmp_path, suffix: str, method: int) -> None:
    jp2(tmp_path / "a.jp2", colour=bytes([method, 0, 0]) + OTHER)
    target, notes = enlarge(tmp_path / "a.jp2", f"b.{suffix}")
    assert notes == []
    with Image.open(target) as result:
        assert result.info["icc_profile"] == OTHER
        if suffix in ("png", "tif"):
            np.testing.assert_array_equal(np.asarray(result)[::2, ::2], PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_the_resolution_of_jpeg_2000_is_kept(tmp_path, suffix: str) -> None:
    scanned, shown = resolution(b"resc", 600, 300), resolution(b"resd", 72, 72)
    for boxes, dpi in ((shown + scanned, (600, 300)), (shown, (72, 72))):
        jp2(tmp_path / "a.jp2", inside=box(b"res ", boxes))
        with Image.open(tmp_path / "a.jp2") as source:  # which knows that of the scan only
            assert source.info.get("dpi") == (pytest.approx(dpi, abs=0.2) if boxes != shown else None)
        target, notes = enlarge(tmp_path / "a.jp2", f"b.{suffix}")
        assert notes == []
        assert dpi_of(target) == pytest.approx(dpi, abs=0.5)
        target.unlink()
    jp2(tmp_path / "a.jp2")
    assert dpi_of(enlarge(tmp_path / "a.jp2", f"b.{suffix}")[0]) is None


def test_xmp_of_jpeg_2000_is_kept_and_the_rest_is_noted(tmp_path) -> None:
    behind = box(b"uuid", XMP_UUID + XMP.encode()) + box(b"uuid", b"JpgTiffExif->JP2II*\0")
    behind += box(b"xml ", b"<a/>") + box(b"uuid", bytes(range(16)) + b"?")
    jp2(tmp_path / "a.jp2", colour=b"\1\0\0" + struct.pack(">I", 21), behind=behind)
    target, notes = enlarge(tmp_path / "a.jp2", "b.png")
    with Image.open(target) as result:
        assert told(result.info["xmp"])["dc"] == {"source": "J\u00fcrgen & Co"}
    lost = ["the colours' meaning, JPEG 2000's colour space 21", "EXIF", "JPEG 2000's XML"]
    lost += ["JPEG 2000's box 000102030405060708090a0b0c0d0e0f", "XMP's hdrgm:Version"]
    assert notes == [f"not in the png: {name}" for name in (*lost, "a gain map or other further images")]


def test_the_resolution_of_pcx_is_kept(tmp_path) -> None:
    path = tmp_path / "a.pcx"
    Image.fromarray(PIXELS).save(path)
    for dpi in ((200, 96), (0, 0)):
        data = bytearray(path.read_bytes())
        struct.pack_into("<HH", data, 12, *dpi)
        path.write_bytes(data)
        target, notes = enlarge(path, "b.png")
        assert notes == []
        assert dpi_of(target) == (pytest.approx(dpi, abs=0.02) if dpi[0] else None)
        target.unlink()


def avif(path: Path, primaries: int, transfer: int) -> np.ndarray:
    """An AVIF that says that of its colours, and the pixels that Pillow reads if it says sRGB."""
    Image.fromarray(PIXELS).save(path, quality=100, subsampling="4:4:4")
    with Image.open(path) as plain:
        pixels = np.asarray(plain)
    data = path.read_bytes()
    assert data.count(b"colrnclx\0\1\0\r") == 1
    path.write_bytes(data.replace(b"colrnclx\0\1\0\r", b"colrnclx" + struct.pack(">HH", primaries, transfer)))
    return pixels


@pytest.mark.parametrize(
    ("primaries", "transfer", "name"), [(9, 16, "PQ"), (9, 18, "HLG"), (12, 13, ""), (1, 13, None)]
)
def test_what_the_colours_of_avif_mean(tmp_path, primaries: int, transfer: int, name: str | None) -> None:
    """HDR or a wide gamut: the values are kept as they are, and PNG says what they are of."""
    pixels = avif(tmp_path / "a.avif", primaries, transfer)
    target, notes = enlarge(tmp_path / "a.avif", "b.png")
    assert notes == []
    found = [data for kind, data in chunks_of(target) if kind == b"cICP"]
    assert found == ([] if name is None else [bytes([primaries, transfer, 0, 1])])
    with Image.open(target) as result:
        difference = np.asarray(result)[::2, ::2].astype(int) - pixels
    assert np.abs(difference).max() <= 2  # of two decoders
    target.unlink()
    _, notes = enlarge(tmp_path / "a.avif", "b.tif")
    said = f"cICP, that the colours are HDR ({name})" if name else "cICP"
    assert notes == ([] if name is None else [f"not in the tif: {said}"])


def test_the_colours_of_another_image_in_a_heif_are_not_taken(tmp_path) -> None:
    """A second colour box, as a gain map's image has it: belongs to no primary image."""
    avif(tmp_path / "a.avif", 1, 13)
    data = (tmp_path / "a.avif").read_bytes()
    place = data.index(b"colrnclx") - 4
    other = box(b"colr", b"nclx" + struct.pack(">HHHB", 9, 16, 9, 128))
    # The first one is property 4; behind it there is nothing.
    assert data[place + 19 + 4 : place + 19 + 8] == b"ipma"
    grown = bytearray(data[: place + 19] + other + data[place + 19 :])
    for name in (b"meta", b"iprp", b"ipco"):
        at = grown.index(name) - 4
        struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + len(other))
    # The pixels have moved by as much.
    at = grown.index(b"iloc")
    (offset,) = struct.unpack_from(">I", grown, at + 18)
    assert offset == data.index(b"mdat") + 4
    struct.pack_into(">I", grown, at + 18, offset + len(other))
    (tmp_path / "a.avif").write_bytes(grown)
    target, _ = enlarge(tmp_path / "a.avif", "b.png")
    assert b"cICP" not in [kind for kind, _ in chunks_of(target)]

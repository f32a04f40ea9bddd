# SPDX-License-Identifier: Apache-2.0
"""What a file tells beside the pixels that would not be true of an enlargement goes, and is noted."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from handmade import png
from PIL import Image
from test_metadata import PIXELS, chunks_of, enlarge

CAMERA = "http://ns.google.com/photos/1.0/camera/"
FILM = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42"


def photo(path: Path, properties: str) -> None:
    """A JPEG with a film behind it and these properties of a camera, one of which stays."""
    packet = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:GCamera="{CAMERA}" GCamera:PortraitVersion="2" {properties}/></rdf:RDF></x:xmpmeta>
"""
    Image.fromarray(PIXELS).save(path, xmp=packet.encode())
    path.write_bytes(path.read_bytes() + FILM)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kind", ["MicroVideo", "MotionPhoto"])
def test_a_motion_photo_becomes_a_photo(tmp_path, kind: str, suffix: str) -> None:
    names = [kind, f"{kind}Offset", f"{kind}PresentationTimestampUs", f"{kind}Version"]
    photo(tmp_path / "a.jpg", " ".join(f'GCamera:{name}="1"' for name in names))
    target, notes = enlarge(tmp_path / "a.jpg", f"b.{suffix}")
    with Image.open(target) as result:
        assert b"PortraitVersion" in result.info["xmp"]
        assert kind.encode() not in result.info["xmp"]
    assert FILM not in target.read_bytes()
    lost = [f"XMP's GCamera:{name}" for name in names]
    assert notes == [f"not in the {suffix}: {name}" for name in (*lost, "a motion photo's film")]


def test_what_else_a_camera_tells_stays(tmp_path) -> None:
    photo(tmp_path / "a.jpg", 'GCamera:BurstID="7"')
    target, notes = enlarge(tmp_path / "a.jpg", "b.jpg")
    assert notes == []
    with Image.open(target) as result:
        assert b'BurstID="7"' in result.info["xmp"]


def test_places_and_sizes_in_pixels_of_png(tmp_path) -> None:
    """Programs that know no better may copy them, by their names' last letter; they were of the smaller image."""
    places = [
        (b"oFFs", struct.pack(">iiB", 3, 4, 0)),
        (b"vpAg", struct.pack(">IIB", 24, 16, 0)),
        (b"caNv", struct.pack(">IIii", 24, 16, 0, 0)),
    ]
    kept = (b"tEXt", b"Author\0me")
    png(tmp_path / "a.png", PIXELS, *places, kept)
    target, notes = enlarge(tmp_path / "a.png", "b.png")
    assert notes == [f"not in the png: {kind.decode()}" for kind, _ in places]
    assert [one for one in chunks_of(target) if one[0] not in (b"IHDR", b"IDAT", b"IEND")] == [kept]

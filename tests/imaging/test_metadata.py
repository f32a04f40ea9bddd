# SPDX-License-Identifier: Apache-2.0
"""What a file tells beside the pixels: written by Pillow or by hand, enlarged, read by Pillow or by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
from handmade import png, tiff
from PIL import ExifTags, Image, ImageCms

from ditn.imaging.files import read
from ditn.imaging.output import write_raw

WIDTH, HEIGHT = 24, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER_NOTE = bytes(range(256)) * 180
SUFFIXES = ("png", "jpg", "webp", "tif", "bmp")
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:g="http://ns.google.com/photos/1.0/panorama/"
 xmlns:r="http://www.metadataworkinggroup.com/schemas/regions/" xmlns:d="http://ns.adobe.com/xap/1.0/sType/Dimensions#"
 t:Orientation="6" t:ImageWidth="24" hdrgm:Version="1.0" g:CroppedAreaLeftPixels="5" dc:source="J\u00fcrgen &amp; Co">
<t:ImageLength>16</t:ImageLength><exif:PixelXDimension>24</exif:PixelXDimension>
<xmp:Thumbnails><rdf:Alt><rdf:li>stale</rdf:li></rdf:Alt></xmp:Thumbnails>
<r:Regions rdf:parseType="Resource"><r:AppliedToDimensions d:w="24" d:h="16" d:unit="pixel"/></r:Regions>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def enlarge(source: Path, name: str, size: tuple[int, int] | None = None) -> tuple[Path, list[str]]:
    """The file at twice the size, its pixels repeated, beside it; and what was noted."""
    page = read(source)
    pixels = np.kron(page.pixels, np.ones((2, 2, 1), page.pixels.dtype))
    raw, target = source.with_name("raw"), source.with_name(name)
    raw.write_bytes(pixels.tobytes())
    size = size or (pixels.shape[1], pixels.shape[0])
    notes = write_raw(raw, pixels.shape, pixels.dtype.name, target, page, size=size, quality=90)
    assert sorted(path.name for path in source.parent.iterdir()) == sorted({source.name, name, "raw"})
    return target, page.described.notes + notes


def camera_exif(order: str = ">") -> Image.Exif:
    found = Image.Exif()
    found.endian = order
    found[0x010F], found[0x0112], found[0x0100], found[0x0101] = "Maker", 6, WIDTH, HEIGHT
    found.get_ifd(0x8769).update(
        {0xA002: WIDTH, 0xA003: HEIGHT, 0x927C: MAKER_NOTE, 0x9214: (5, 6), 0x9003: "2020:01:01"}
    )
    found.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 14.5)})
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("order", "<>")
def test_exif_is_kept_whole_and_adapted(tmp_path, suffix: str, order: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=camera_exif(order), quality=95)
    target, notes = enlarge(tmp_path / "a.jpg", f"b.{suffix}")
    moved = "the maker note's place in EXIF, from which its own offsets may count"
    assert notes == [f"not in the {suffix}: {name}" for name in {"bmp": ["EXIF"], "tif": [moved]}.get(suffix, [])]
    with Image.open(target) as result:
        assert result.size == (2 * HEIGHT, 2 * WIDTH)  # upright
        found = result.getexif()
        if suffix == "bmp":
            assert not found
            return
        details, place = found.get_ifd(0x8769), found.get_ifd(0x8825)
        assert (found[0x010F], found[0x0112], found[0x0100], found[0x0101]) == ("Maker", 1, 2 * HEIGHT, 2 * WIDTH)
        assert (details[0xA002], details[0xA003], details[0x9003]) == (2 * HEIGHT, 2 * WIDTH, "2020:01:01")
        assert 0x9214 not in details  # the subject's place in pixels that are no more
        assert details[0x927C] == MAKER_NOTE
        assert (place[1], place[2]) == ("N", (48.0, 8.0, 14.5))


def test_a_maker_note_stays_where_it_lies(tmp_path) -> None:
    """Its own offsets count from the block's beginning."""
    block = camera_exif().tobytes().removeprefix(b"Exif\0\0")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    for suffix in ("jpg", "png", "webp"):
        with Image.open(enlarge(tmp_path / "a.jpg", f"b.{suffix}")[0]) as result:
            assert result.info["exif"].removeprefix(b"Exif\0\0").index(MAKER_NOTE) == block.index(MAKER_NOTE)
        (tmp_path / f"b.{suffix}").unlink()


def test_exif_too_large_for_jpeg_is_noted(tmp_path) -> None:
    exif = camera_exif()
    exif.get_ifd(0x8769)[0x927C] = MAKER_NOTE * 2
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    for suffix, lost in (("jpg", ["not in the jpg: EXIF"]), ("png", []), ("webp", [])):
        target, notes = enlarge(tmp_path / "a.png", f"b.{suffix}")
        assert notes == lost
        with Image.open(target) as result:
            found = result.getexif().get_ifd(0x8769).get(0x927C)
            assert found == (None if lost else MAKER_NOTE * 2)
        target.unlink()


def test_the_thumbnail_and_its_directory_go(tmp_path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(PIXELS).save(thumbnail, "jpeg")
    small = thumbnail.getvalue()
    # By hand: a directory with the orientation, one with the thumbnail's place and length, and the thumbnail.
    first = struct.pack("<HHHII", 1, 0x0112, 3, 1, 1) + struct.pack("<I", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    block = b"II*\0\x08\0\0\0" + first + second + small
    assert block.index(small) == 56
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    with Image.open(tmp_path / "a.jpg") as source:
        assert source.getexif().get_ifd(ExifTags.IFD.IFD1)  # Pillow sees it
    target, notes = enlarge(tmp_path / "a.jpg", "b.jpg")
    with Image.open(target) as result:
        assert not result.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert result.getexif()[0x0112] == 1
    assert small not in target.read_bytes()
    assert notes == []


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_xmp_is_adapted_by_meaning(tmp_path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=XMP.encode(), exif=camera_exif())
    target, notes = enlarge(tmp_path / "a.jpg", f"b.{suffix}")
    with Image.open(target) as result:
        packet = result.info["xmp"]
    found = told(packet)
    # The image lay on its side: 24 x 16 became 32 x 48. The margin of 5 pixels was of 16 across and is of 32.
    assert found["tiff"] == {"Orientation": "1", "ImageWidth": "32", "ImageLength": "48"}
    assert found["exif"] == {"PixelXDimension": "32"}
    assert found["panorama"] == {"CroppedAreaLeftPixels": "10"}
    assert found["dc"] == {"source": "J\u00fcrgen & Co"}
    assert not {"hdr-gain-map", "xap", "regions"} & found.keys()
    assert packet.startswith(b'<?xpacket begin="\xef\xbb\xbf"')
    assert packet.rstrip().endswith(b'<?xpacket end="w"?>')
    lost = ["XMP's hdrgm:Version", "XMP's r:Regions", "a gain map or other further images"]
    lost += ["the maker note's place in EXIF, from which its own offsets may count"] * (suffix == "tif")
    assert notes == [f"not in the {suffix}: {name}" for name in lost]


def test_xmp_of_an_upright_image_keeps_its_regions(tmp_path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=XMP.encode())
    with Image.open(enlarge(tmp_path / "a.jpg", "b.jpg")[0]) as result:
        found = told(result.info["xmp"])
    assert found["Dimensions#"] == {"w": "48", "h": "32", "unit": "pixel"}


def told(packet: bytes) -> dict[str, dict[str, str]]:
    """Of each namespace, by the last part of its name, the properties and their texts."""
    found: dict[str, dict[str, str]] = {}
    for element in ElementTree.fromstring(packet).iter():
        for name, value in (*element.attrib.items(), (element.tag, (element.text or "").strip())):
            space, _, local = name[1:].partition("}")
            if value:
                found.setdefault(
                    space.rstrip("/").removesuffix("/1.0").removesuffix("/elements/1.1").rpartition("/")[2], {}
                )[local] = value
    return found


def chunks_of(path: Path) -> list[tuple[bytes, bytes]]:
    data, place, found = path.read_bytes(), 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        place += length + 12
    return found


def test_png_text_and_the_colours_meaning(tmp_path) -> None:
    colours = [
        (b"gAMA", struct.pack(">I", 100000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600)),
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"cLLI", struct.pack(">II", 10**7, 10**6)),
    ]
    texts = [
        (b"tEXt", b"parameters\0a cat, steps: 20"),
        (b"iTXt", b"Author\0\0\0de\0Autor\0" + "J\u00fcrgen".encode()),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"long " * 100)),
    ]
    png(
        tmp_path / "a.png",
        PIXELS,
        *colours,
        (b"bKGD", bytes(6)),
        (b"tIME", bytes(7)),
        *texts[:1],
        after=tuple(texts[1:]),
    )
    target, notes = enlarge(tmp_path / "a.png", "b.png")
    assert notes == ["not in the png: bKGD"]
    found = chunks_of(target)
    assert [one for one in found if one[0] in {kind for kind, _ in colours}] == colours
    assert [one for one in found if one[0] in {kind for kind, _ in texts}] == texts
    kinds = [kind for kind, _ in found]
    assert kinds.index(b"cICP") < kinds.index(b"IDAT")
    assert b"tIME" not in kinds
    with Image.open(target) as result:
        result.load()
        assert result.text == {"parameters": "a cat, steps: 20", "Author": "J\u00fcrgen", "Comment": "long " * 100}
    for suffix in ("jpg", "tif", "webp", "bmp"):
        target.unlink()
        target, notes = enlarge(tmp_path / "a.png", f"b.{suffix}")
        lost = ["bKGD", "gAMA", "cHRM", "cICP, that the colours are HDR (PQ)", "cLLI"]
        lost += [f'the text "{name}"' for name in ("parameters", "Author", "Comment")]
        assert notes == [f"not in the {suffix}: {name}" for name in lost]


def test_png_that_says_srgb_loses_nothing_by_not_saying_it(tmp_path) -> None:
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    png(tmp_path / "a.png", PIXELS, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", srgb))
    assert enlarge(tmp_path / "a.png", "b.jpg")[1] == []


def test_imagemagicks_exif_in_png_text(tmp_path) -> None:
    content = b"Exif\0\0" + camera_exif().tobytes().removeprefix(b"Exif\0\0")
    text = b"Raw profile type exif\0\0" + zlib.compress(
        b"\nexif\n%8d\n" % len(content) + content.hex().encode() + b"\n"
    )
    png(tmp_path / "a.png", PIXELS, (b"zTXt", text))
    target, notes = enlarge(tmp_path / "a.png", "b.png")
    assert notes == []
    assert b"zTXt" not in [kind for kind, _ in chunks_of(target)]
    with Image.open(target) as result:
        assert (result.getexif()[0x010F], result.getexif()[0x0100]) == ("Maker", 2 * WIDTH)


def dpi_of(path: Path) -> tuple[float, float] | None:
    """By hand where Pillow answers with a number of its own."""
    data = path.read_bytes()
    if path.suffix == ".jpg":
        unit, x, y = struct.unpack_from(">BHH", data, data.index(b"JFIF\0") + 7)
        return (x, y) if unit == 1 else None
    if path.suffix == ".bmp":
        x, y = struct.unpack_from("<ii", data, 38)
        return (x * 0.0254, y * 0.0254) if x else None
    with Image.open(path) as image:
        if path.suffix == ".tif":
            return (float(image.tag_v2[282]), float(image.tag_v2[283])) if 282 in image.tag_v2 else None
        if path.suffix == ".webp":
            found = image.getexif()
            return (float(found[282]), float(found[283])) if 282 in found else None
        return image.info.get("dpi")


@pytest.mark.parametrize("dpi", [None, (300, 150)])
@pytest.mark.parametrize("before", SUFFIXES)
@pytest.mark.parametrize("after", SUFFIXES)
def test_resolution(tmp_path, before: str, after: str, dpi: tuple[int, int] | None) -> None:
    source = tmp_path / f"a.{before}"
    exif = Image.Exif()
    if dpi and before == "webp":
        exif[282], exif[283], exif[296] = *dpi, 2
    Image.fromarray(PIXELS).save(source, exif=exif, **({"dpi": dpi} if dpi and before != "webp" else {}))
    if before == "bmp" and not dpi:  # Pillow writes 96
        source.write_bytes(source.read_bytes()[:38] + bytes(8) + source.read_bytes()[46:])
    target, notes = enlarge(source, f"b.{after}")
    assert notes == []
    assert dpi_of(target) == (dpi and pytest.approx(dpi, abs=0.02))


def profile_for(space: str) -> bytes:
    """A profile that says it is for another space, which is all that anybody asks here."""
    return SRGB[:16] + space.ljust(4).encode() + SRGB[20:]


@pytest.mark.parametrize(
    ("space", "gray", "suffix", "lost"),
    [
        ("RGB", True, "png", "which is for RGB and not for GRAY"),
        ("RGB", True, "jpg", None),
        ("RGB", True, "tif", None),
        ("RGB", True, "webp", None),
        ("GRAY", True, "webp", "which is for GRAY and not for RGB"),
        ("GRAY", True, "png", None),
        ("GRAY", False, "png", "which is for GRAY and not for RGB"),
        ("CMYK", False, "tif", "which is for CMYK and not for RGB"),
        ("CMYK", True, "jpg", "which is for CMYK and not for GRAY or RGB"),
        ("RGB", False, "bmp", ""),
        ("broken", False, "jpg", "which is damaged"),
    ],
)
def test_profiles_stay_where_they_fit(tmp_path, space: str, gray: bool, suffix: str, lost: str | None) -> None:
    profile = profile_for(space) if space != "broken" else b"no profile" * 20
    image = Image.fromarray(PIXELS[..., 0] if gray else PIXELS)
    image.save(tmp_path / "a.tif", icc_profile=profile)
    target, notes = enlarge(tmp_path / "a.tif", f"b.{suffix}")
    reason = f", {lost}" if lost else ""
    assert notes == ([] if lost is None else [f"not in the {suffix}: the colour profile{reason}"])
    with Image.open(target) as result:
        assert result.info.get("icc_profile") == (profile if lost is None else None)


def test_tiff_notes_only_what_is_lost(tmp_path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert enlarge(tmp_path / "a.png", "b.tif")[1] == []
    tags = {270: "what it shows", 305: "a scanner", 33550: (1.0, 1.0, 0.0), 65000: "a secret"}
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo=tags)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.tif").unlink()
    target, notes = enlarge(tmp_path / "a.tif", "b.tif")
    assert notes == ["not in the tif: a place on a map", "not in the tif: the TIFF tag 65000"]
    with Image.open(target) as result:
        assert (result.tag_v2[270], result.tag_v2[305]) == ("what it shows", "a scanner")
        np.testing.assert_array_equal(np.asarray(result), np.kron(PIXELS, np.ones((2, 2, 1), np.uint8)))


def photoshop(number: int, data: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + b"\0" * (len(data) % 2)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_iptc_is_kept_without_photoshops_thumbnail(tmp_path, suffix: str) -> None:
    iptc = b"\x1c\x02\x50\x00\x07J. Bach"
    resources = photoshop(0x0404, iptc) + photoshop(0x040C, b"thumbnail") + photoshop(0x0406, b"1234567")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "jpeg")
    segment = b"Photoshop 3.0\0" + resources
    data = file.getvalue()
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    target, notes = enlarge(tmp_path / "a.jpg", f"b.{suffix}")
    if suffix == "png":
        assert notes == ["not in the png: IPTC and Photoshop's data"]
        return
    assert notes == []
    with Image.open(target) as result:
        if suffix == "jpg":
            assert result.info["photoshop"] == {0x0404: iptc, 0x0406: b"1234567"}
        else:
            assert result.tag_v2[34377] == photoshop(0x0404, iptc) + photoshop(0x0406, b"1234567")


@pytest.mark.parametrize("order", "<>")
def test_iptc_of_tiff_reaches_jpeg(tmp_path, order: str) -> None:
    """Many writers call IPTC's bytes long numbers, and write them in the file's byte order."""
    iptc = b"\x1c\x02\x50\x00\x07J. Bach"
    swapped = iptc if order == "<" else b"".join(iptc[at : at + 4][::-1] for at in (0, 4, 8))
    for stored in (iptc, swapped):
        tiff(tmp_path / "a.tif", PIXELS, 2, order=order, tags={33723: (4, stored)})
        target, _ = enlarge(tmp_path / "a.tif", "b.jpg")
        with Image.open(target) as result:
            assert result.info["photoshop"] == {0x0404: iptc}
        target.unlink()


def test_comments_and_gain_maps_of_jpeg(tmp_path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", comment=b"seen by hand")
    target, notes = enlarge(tmp_path / "a.jpg", "b.jpg")
    assert notes == []
    with Image.open(target) as result:
        assert result.info["comment"] == b"seen by hand"
    target.unlink()
    target, notes = enlarge(tmp_path / "a.jpg", "b.png")
    assert notes == ["not in the png: a comment"]
    target.unlink()
    (tmp_path / "a.jpg").unlink()
    if not pyvips.type_find("VipsOperation", "uhdrsave"):
        pytest.skip("libvips was built without Ultra HDR")
    light = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32) * 4
    pyvips.Image.new_from_array(light).copy(interpretation="scrgb").uhdrsave(str(tmp_path / "a.jpg"))
    target, notes = enlarge(tmp_path / "a.jpg", "b.jpg")
    assert notes == ["not in the jpg: a gain map or other further images"]
    assert b"MPF" not in target.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_metadata_cost_no_pixels(tmp_path, suffix: str) -> None:
    """Every byte of EXIF wrong in turn, and XMP that is no XML: the image is written and can be read."""
    block = camera_exif().tobytes()[:200]
    random = np.random.default_rng(0)
    for _ in range(20):
        wrong = bytearray(block)
        for place in random.integers(6, len(block), 4):
            wrong[place] = int(random.integers(256))
        Image.fromarray(PIXELS).save(tmp_path / "a.webp", exif=bytes(wrong), xmp=b"<x", lossless=True)
        target, notes = enlarge(tmp_path / "a.webp", f"b.{suffix}")
        assert any("XMP, which is no XML" in note for note in notes)
        with Image.open(target) as result:
            result.load()
            assert {*result.size} == {2 * WIDTH, 2 * HEIGHT}
        target.unlink()


def test_damaged_chunks_do_not_damage_the_output(tmp_path) -> None:
    """A text whose checksum is wrong goes, and the next is kept; bytes behind the end or that are no chunk's name are
    no chunks."""
    good, bad = (b"tEXt", b"Author\0me"), (b"tEXt", b"Title\0none")
    png(tmp_path / "a.png", PIXELS, bad, good, after=((b"\x91\x9a\x79\xe4", b"damaged"),))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole.replace(b"none", b"some") + b"\0\0\0\1teXtX")
    target, notes = enlarge(tmp_path / "a.png", "b.png")
    assert notes == ["not in the png: tEXt, which is damaged"]
    with Image.open(target) as result:
        np.testing.assert_array_equal(np.asarray(result), np.kron(PIXELS, np.ones((2, 2, 1), np.uint8)))
        assert result.text == {"Author": "me"}

# SPDX-License-Identifier: Apache-2.0
"""Pictures from file to file: written by one library, upscaled, read by another."""

from __future__ import annotations

import json
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
import torch.nn.functional as F
from networks import small
from PIL import Image, ImageCms, PngImagePlugin

import ditn
from ditn.commands.cli import main
from ditn.imaging import files, output
from ditn.training.warm_start import start_at_interpolation

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network that interpolates, so that pictures come out as pictures and survive a lossy format."""
    model = small()
    high = F.avg_pool2d(torch.rand(1, 3, 80, 80), 5, 1, 2)
    start_at_interpolation(model, [(F.avg_pool2d(high, 2), high)])
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    ditn.save(model, path)
    return path


@pytest.fixture
def upscale(weights, tmp_path):
    """Run `ditn upscale` on one picture at x2 and give back the output's path."""

    def run(source: Path, *options: str, to: str | None = None, code: int = 0) -> Path:
        output = tmp_path / "out" / (to or source.name)
        assert main(["upscale", str(source), "-o", str(output), "--model", str(weights), *options]) == code
        return output

    return run


def smooth(height: int, width: int, bands: int, dtype: type = np.uint8) -> np.ndarray:
    """A picture without sharp edges, so that a lossy format keeps it nearly."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    layers = [0.5 + 0.4 * np.sin(3 * x + 2 * y + band) for band in range(bands)]
    limit = np.iinfo(dtype).max
    return (np.stack(layers, axis=2) * limit).astype(dtype)


def expected(pixels: np.ndarray, weights: Path) -> np.ndarray:
    return ditn.Upscaler(ditn.load(weights))(pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jpg"])
@pytest.mark.parametrize("bands", [1, 3])
def test_8_bit_pictures_stay_gray_or_colour(tmp_path, weights, upscale, suffix: str, bands: int) -> None:
    pixels = smooth(13, 18, bands)
    source = tmp_path / f"a{suffix}"
    Image.fromarray(pixels[..., 0] if bands == 1 else pixels).save(
        source, **({"quality": 100} if suffix == ".jpg" else {})
    )
    with Image.open(source) as decoded:
        given = np.asarray(decoded)
    with Image.open(upscale(source, "--quality", "100")) as result:
        values = np.asarray(result)
        assert result.size == (36, 26)
    if suffix in (".webp", ".jpg"):
        assert values.shape[:2] == (26, 36)
        assert result.mode == ("L" if bands == 1 and suffix == ".jpg" else "RGB")
        want = expected(given, weights)
        want = want if want.ndim == values.ndim else want[..., None].repeat(3, 2)
        assert np.abs(values.astype(int) - want).mean() < 2  # quality 100 with halved chroma
    else:
        np.testing.assert_array_equal(values, expected(given, weights))


@pytest.mark.parametrize("bands", [3, 4])
def test_a_lossless_webp_stays_lossless(tmp_path, weights, upscale, bands: int) -> None:
    """Sample by sample, hidden colours included, unless a quality is asked for. RFC 9649: the chunk of pixels is called
    VP8L if they are lossless."""
    source = tmp_path / "a.webp"
    Image.fromarray(smooth(13, 18, bands)).save(source, lossless=True, exact=True)
    outputs = [upscale(source), upscale(source, "--quality", "80", to="b.webp")]
    with Image.open(outputs[0]) as result:
        np.testing.assert_array_equal(np.asarray(result), expected(smooth(13, 18, bands), weights))
    assert [b"VP8L" in path.read_bytes()[:64] for path in outputs] == [True, False]
    Image.fromarray(smooth(13, 18, bands)).save(source)
    assert b"VP8L" not in upscale(source, to="c.webp").read_bytes()[:64]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit_pictures_keep_depth_and_alpha(tmp_path, weights, upscale, suffix: str, bands: int) -> None:
    pixels = smooth(9, 12, bands, np.uint16)
    source = tmp_path / f"a{suffix}"
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="grey16" if bands < 3 else "rgb16")
    image.write_to_file(str(source))
    result = pyvips.Image.new_from_file(str(upscale(source)))
    assert (result.format, result.bands) == ("ushort", bands)
    np.testing.assert_array_equal(result.numpy().reshape(18, 24, bands), expected(pixels, weights))


def test_palette_with_transparency_becomes_rgba(tmp_path, upscale) -> None:
    pixels = smooth(8, 8, 3)
    pixels[:4] = (255, 0, 255)
    image = Image.fromarray(pixels).quantize(16)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    with Image.open(upscale(tmp_path / "a.png")) as result:
        assert result.mode == "RGBA"
        alpha = np.asarray(result)[..., 3]
        assert alpha[:4].mean() < alpha[-4:].mean()


def test_no_dark_fringe_grows_into_visible_pixels(tmp_path, upscale) -> None:
    """White on black-under-transparency gives what white on white gives, wherever it can be seen."""
    visible = np.zeros((16, 16), np.uint8)
    visible[4:12, 4:12] = 255
    outputs = []
    for hidden in (0, 255):
        colours = np.where(visible[..., None], 255, hidden).repeat(3, 2).astype(np.uint8)
        Image.fromarray(np.dstack([colours, visible])).save(tmp_path / f"{hidden}.png")
        with Image.open(upscale(tmp_path / f"{hidden}.png")) as result:
            outputs.append(np.asarray(result))
    np.testing.assert_array_equal(*outputs)


def test_profile_exif_and_resolution_are_kept_and_mended(tmp_path, upscale) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010F] = "Maker"
    exif[0x0100], exif[0x0101] = 30, 20
    exif.get_ifd(0x8769).update({0xA002: 30, 0xA003: 20, 0x9003: "2020:01:01 00:00:00"})
    pixels = smooth(20, 30, 3)
    source = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(source, exif=exif, dpi=(300, 300), icc_profile=profile, quality=100)
    for suffix in (".jpg", ".png", ".webp"):
        with Image.open(upscale(source, "--overwrite", to=f"a{suffix}")) as result:
            assert result.size == (40, 60), suffix  # upright
            found = result.getexif()
            assert (found[0x0112], found[0x010F], found[0x0100], found[0x0101]) == (1, "Maker", 40, 60)
            details = found.get_ifd(0x8769)
            assert (details[0xA002], details[0xA003], details[0x9003]) == (40, 60, "2020:01:01 00:00:00")
            assert result.info["icc_profile"] == profile
            if suffix != ".webp":  # which has no place for it outside EXIF
                assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_orientation_turns_the_right_way(tmp_path, upscale, weights) -> None:
    """Orientation 6: the stored top row is the right-hand column of the upright picture."""
    pixels = smooth(8, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(upscale(tmp_path / "a.png")) as result:
        np.testing.assert_array_equal(np.asarray(result), expected(np.rot90(pixels, -1).copy(), weights))


def test_cmyk_is_converted_and_said_so(tmp_path, upscale, capsys) -> None:
    Image.fromarray(smooth(8, 9, 3)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    report = tmp_path / "report.json"
    with Image.open(upscale(tmp_path / "a.jpg", "--json", str(report), to="a.png")) as result:
        assert result.mode == "RGB"
    assert "cmyk converted to sRGB" in report.read_text()


def test_pages_are_done_one_by_one(tmp_path, upscale, weights) -> None:
    pages = [smooth(8, 8 + 4 * i, 3) for i in range(3)]
    first, *others = map(Image.fromarray, pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    output = upscale(tmp_path / "a.tif")
    names = [f"a-page{i + 1}.tif" for i in range(3)]
    assert sorted(path.name for path in output.parent.iterdir()) == names
    for name, page in zip(names, pages, strict=True):
        with Image.open(output.with_name(name)) as result:
            np.testing.assert_array_equal(np.asarray(result), expected(page, weights))


def forged_png(path: Path, width: int, height: int) -> None:
    """A few bytes that claim to be a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is no image that can be read"),
        ("empty", "is empty"),
        ("truncated", "cannot be decoded"),
        ("bomb", "60000x50000 = 3,000,000,000 pixels, more than the limit of 268,435,456"),
        ("float", "has float samples"),
        ("gif", "is an animation of 3 frames"),
        ("webp", "is an animation of 3 frames"),
        ("apng", "is an animated PNG"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, upscale, capsys, kind: str, message: str) -> None:
    source = tmp_path / f"a.{kind if kind in ('gif', 'webp') else 'tif' if kind == 'float' else 'png'}"
    frames = [Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    if kind == "text":
        source.write_text("no picture")
    elif kind == "empty":
        source.touch()
    elif kind == "truncated":
        Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(source)
        source.write_bytes(source.read_bytes()[:5000])
    elif kind == "bomb":
        forged_png(source, 60000, 50000)
    elif kind == "float":
        pyvips.Image.new_from_array(np.zeros((4, 4, 3), np.float32)).write_to_file(str(source))
    else:
        frames[0].save(source, save_all=True, append_images=frames[1:])
    output = upscale(source, to="a.tif" if "anim" in message else "a.png", code=1)
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_the_limit_is_the_users(tmp_path, upscale, capsys, kind: str) -> None:
    Image.fromarray(smooth(8, 9, 3)).save(tmp_path / f"a.{kind}")
    output = upscale(tmp_path / f"a.{kind}", "--max-pixels", "71", to="a.png", code=1)
    assert "claims 9x8 = 72 pixels, more than the limit of 71; raise --max-pixels" in capsys.readouterr().err
    assert not output.exists()
    assert upscale(tmp_path / f"a.{kind}", "--max-pixels", "72", to="a.png").exists()


@pytest.mark.parametrize(
    ("to", "dtype", "bands", "note"),
    [
        ("a.jpg", np.uint16, 3, "16 bits rounded to 8: jpg has no more"),
        ("a.jpg", np.uint8, 4, "transparency flattened onto white: jpg has none"),
        ("a.webp", np.uint16, 4, "16 bits rounded to 8: webp has no more"),
        ("a.bmp", np.uint8, 4, "transparency flattened onto white: bmp has none"),
    ],
)
def test_what_a_format_cannot_keep_is_said(tmp_path, upscale, to: str, dtype: type, bands: int, note: str) -> None:
    pixels = smooth(8, 8, bands, dtype)
    pixels[..., -1] = pixels[..., -1] if bands == 3 else 0
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb" if dtype == np.uint8 else "rgb16")
    image.write_to_file(str(tmp_path / "a.png"))
    report = tmp_path / "report.json"
    output = upscale(tmp_path / "a.png", "--json", str(report), to=to)
    assert note in report.read_text()
    with Image.open(output) as result:
        values = np.asarray(result)
    if bands == 4 and "flattened" in note:
        assert (values >= 254).all()  # wholly transparent: white


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_an_output_that_does_not_fit_is_not_there(tmp_path, suffix: str) -> None:
    """A limit on a file's size, as a full disk would, lets its last bytes not be written."""
    pixels = RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    page = files.Page(pixels, files.Described(files.Metadata()))
    (tmp_path / "raw").write_bytes(pixels.tobytes())

    def write(name: str) -> None:
        path = tmp_path / f"{name}{suffix}"
        output.write_raw(tmp_path / "raw", pixels.shape, "uint8", path, page, size=(64, 64), quality=100)

    write("whole")
    size = (tmp_path / f"whole{suffix}").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 9, limits[1]))
        with pytest.raises((OSError, files.ImageError)):
            write("cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", f"whole{suffix}"]


def test_sizes_that_a_format_cannot_hold(tmp_path, upscale, capsys) -> None:
    Image.fromarray(np.zeros((1, 9000, 3), np.uint8)).save(tmp_path / "a.png")
    upscale(tmp_path / "a.png", to="a.webp", code=1)
    assert "18000x2 pixels do not fit webp, which ends at 16383 a side; use png or tif" in capsys.readouterr().err
    upscale(tmp_path / "a.png", "--scale", "1e9", code=1)
    assert "pixels are too many; 10,000,000 a side can be written" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "size"), [("2", (24, 18)), ("3.5", (42, 32)), ("0.5", (6, 4)), ("1", (12, 9))])
def test_any_scale(tmp_path, upscale, scale: str, size: tuple[int, int]) -> None:
    pixels = smooth(9, 12, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Image.open(upscale(tmp_path / "a.png", "--scale", scale)) as result:
        assert (result.size, result.mode) == (size, "RGBA")


def test_no_haze_at_a_scale_that_is_not_the_models(tmp_path, upscale, weights) -> None:
    """Clear to the left of column 12, opaque from there on: alpha beyond the next column is untouched, at any scale."""
    opaque = expected(np.full((16, 24, 3), (90, 180, 40), np.uint8), weights).astype(int)
    pixels = np.zeros((16, 24, 4), np.uint8)
    pixels[:, 12:] = 90, 180, 40, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for scale in (1.3, 3.0, 4.5):
        with Image.open(upscale(tmp_path / "a.png", "--scale", str(scale), "--overwrite")) as result:
            values = np.asarray(result)
        assert (values[:, : int(10 * scale), 3] == 0).all()
        assert (values[:, int(14 * scale) + 1 :, 3] == 255).all()
        # What the model makes of the one colour that is seen is all there is: no black is mixed into it. Lanczos goes
        # beyond the range of its pixels by a tenth or so.
        seen = values[values[..., 3] > 16][:, :3].astype(int)
        low, high = opaque.min((0, 1)), opaque.max((0, 1))
        beyond = (high - low) // 8 + 1
        assert ((seen >= low - beyond) & (seen <= high + beyond)).all()


def test_the_report_says_what_is_lost_beside_the_pixels(tmp_path, upscale) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat, steps: 20")
    Image.fromarray(smooth(8, 9, 3)).save(tmp_path / "a.png", pnginfo=text, dpi=(300, 300))
    report = tmp_path / "report.json"
    for to, notes in (
        ("a.jpg", ['not in the jpg: the text "parameters"']),
        ("a.png", []),
        ("a.tif", ['not in the tif: the text "parameters"']),
    ):
        upscale(tmp_path / "a.png", "--json", str(report), to=to)
        (picture,) = json.loads(report.read_text())["pictures"]
        assert picture["notes"] == notes
    with Image.open(tmp_path / "out" / "a.png") as result:
        assert result.text == {"parameters": "a cat, steps: 20"}

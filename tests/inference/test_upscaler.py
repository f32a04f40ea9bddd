# SPDX-License-Identifier: Apache-2.0
"""Upscaler: what comes in comes out larger, of the same kind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from networks import small, without_guard
from PIL import Image, ImageCms

import ditn
from ditn.imaging.pil import from_pil
from ditn.inference import memory
from ditn.inference.alpha import bleed

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rgb_arrays_are_the_models_output_rounded(dtype) -> None:
    model = small()
    limit = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (RANDOM.random((9, 14, 3)) * limit).astype(dtype)
    with torch.no_grad():
        exact = (
            model(torch.from_numpy(image.astype(np.float32) / limit).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        )
    result = without_guard(model)(image)
    assert result.dtype == dtype
    if dtype != np.float32:
        exact = np.rint(np.clip(exact, 0, 1) * limit)
    # A float32 quotient or product may round to the neighbouring integer; floats agree to float32's rounding.
    np.testing.assert_allclose(result.astype(float), exact, rtol=0, atol=1 if dtype != np.float32 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_white_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    model = small()
    image = np.full((8, 8, 3), 65535, np.uint16)
    image[:4] = 20000
    half = without_guard(model, dtype=dtype)(image)
    # Each type's own rounding of values up to 1, some layers deep: 11 and 8 bits.
    bound = 65535 * (2**-7 if dtype == torch.float16 else 2**-4)
    assert np.abs(half.astype(float) - without_guard(model)(image)).max() < bound


def test_an_output_that_is_not_finite_is_an_error() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e30)
    with pytest.raises(RuntimeError, match=r"not finite in torch\.float32"):
        without_guard(model)(np.full((8, 8, 3), 255, np.uint8))


def test_gray_is_the_mean_of_the_models_colours() -> None:
    model = small()
    gray = RANDOM.random((8, 11), dtype=np.float32)
    colour = without_guard(model)(np.stack([gray] * 3, axis=2))
    result = without_guard(model)(gray)
    assert result.shape == (16, 22)
    np.testing.assert_allclose(result, colour.mean(axis=2), atol=1e-5)


def test_constant_alpha_is_kept_and_another_goes_through_the_model() -> None:
    # Trained: the alpha of a random model would be repaired.
    upscaler = ditn.Upscaler("ditn-tiny-x2", device="cpu")
    image = RANDOM.random((8, 8, 4), dtype=np.float32)
    image[..., 3] = 0.4
    result = upscaler(image)
    assert (result[..., 3] == np.float32(0.4)).all()
    np.testing.assert_allclose(result[..., :3], upscaler(image[..., :3]), atol=1e-6)
    alpha = RANDOM.random((8, 8), dtype=np.float32)
    image[..., 3] = alpha
    # Bounds by hand: each output pixel lies in the range of the 3 x 3 input pixels around its own.
    around = np.stack([np.pad(alpha, 1, "edge")[y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    low, high = (np.kron(bound, np.ones((2, 2))) for bound in (around.min(0), around.max(0)))
    np.testing.assert_allclose(upscaler(image)[..., 3], upscaler(alpha).clip(low, high), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.filterwarnings("ignore:in places the network's output")
def test_no_haze_where_alpha_is_constant(dtype) -> None:
    limit = np.iinfo(dtype).max
    image = np.full((16, 24, 4), limit // 2, dtype)
    image[:, :12, 3], image[:, 12:, 3] = 0, limit
    for tile in (0, 8):
        alpha = without_guard(small(), tile=tile)(image)[..., 3]
        assert (alpha[:, : 2 * 11] == 0).all()
        assert (alpha[:, 2 * 13 :] == limit).all()


def test_colours_bleed_under_transparency() -> None:
    colours = np.zeros((1, 7, 3), np.uint8)
    colours[0, 0], colours[0, 1], colours[0, 2], colours[0, 4] = (10, 20, 30), (0, 0, 0), (99, 99, 99), (200, 0, 0)
    alpha = np.array([255, 255, 0, 0, 1, 0, 0], np.uint8).reshape(1, 7, 1)
    result = bleed(colours, alpha)
    # Visible black is a colour, not a hole; 2 and 3 lie in the block of four that starts with 0 and 1; 5 in 4's pair.
    assert result[0].tolist() == [[10, 20, 30], [0, 0, 0], *[[5, 10, 15]] * 2, *[[200, 0, 0]] * 3]
    assert result.dtype == np.uint8
    assert (bleed(colours, np.zeros_like(alpha)) == colours).all()


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "L")]
)
def test_pil_images(mode: str, expected: str) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (7, 9, 3), dtype=np.uint8)).convert(mode)
    result = without_guard(small())(image)
    assert (result.size, result.mode) == ((18, 14), expected)


def test_16_bit_pil_and_palette_with_transparency() -> None:
    upscaler = without_guard(small())
    deep = Image.fromarray(RANDOM.integers(0, 65536, (5, 6), dtype=np.uint16))
    assert upscaler(deep).mode == "I;16"
    palette = Image.fromarray(RANDOM.integers(0, 256, (5, 6, 3), dtype=np.uint8)).convert("P")
    palette.info["transparency"] = 0
    assert upscaler(palette).mode == "RGBA"
    with pytest.raises(TypeError, match="mode 'F'"):
        upscaler(Image.new("F", (4, 4)))


def test_16_bits_of_either_byte_order() -> None:
    """Pillow's I;16B, and arrays as numpy reads them from files."""
    upscaler = without_guard(small())
    deep = RANDOM.integers(0, 65536, (5, 6), dtype=np.uint16)
    expected = upscaler(deep)
    swapped = deep.astype(">u2")
    np.testing.assert_array_equal(upscaler(swapped), expected)
    pil = Image.frombytes("I;16B", (6, 5), swapped.tobytes())
    np.testing.assert_array_equal(np.asarray(upscaler(pil)), expected)


@pytest.mark.parametrize(("mode", "clear"), [("1", 0), ("L", 50), ("RGB", (50, 50, 50)), ("I;16", 50), ("P", 50)])
def test_a_transparent_value_of_pil_becomes_alpha(mode: str, clear: object) -> None:
    gray = np.full((8, 8), 200, np.uint8)
    gray[:, :4] = 50
    image = Image.fromarray(gray.astype(np.uint16)) if mode == "I;16" else Image.fromarray(gray)
    if mode == "1":
        image = image.point(lambda value: 255 * (value > 100), "1")
    elif mode == "P":
        image.putpalette([value // 3 for value in range(768)])
    elif mode == "RGB":
        image = image.convert("RGB")
    image.info["transparency"] = clear
    result = ditn.Upscaler("ditn-tiny-x2", device="cpu")(image) if mode != "I;16" else from_pil(image)[0]
    alpha = np.asarray(result)[..., -1]
    scale = alpha.shape[0] // 8
    assert (alpha[:, : 3 * scale] == 0).all()
    assert (alpha[:, 5 * scale :] == (65535 if mode == "I;16" else 255)).all()
    assert "transparency" not in getattr(result, "info", {})


def test_pil_images_come_back_upright_and_described(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0100], exif[0x0101] = "Maker", 6, 12, 8
    pixels = RANDOM.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    upscaler = without_guard(small())
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        options = {"quality": 100} if name == "a.jpg" else {"lossless": True} if name == "a.webp" else {}
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, dpi=(300, 300), icc_profile=profile, **options)
        with Image.open(tmp_path / name) as image:
            stored = np.asarray(image)
            result = upscaler(image)
        found = result.getexif()
        turned = name != "a.tif"  # Pillow turns a TIFF while it decodes it
        np.testing.assert_array_equal(np.asarray(result), upscaler(np.rot90(stored, -1).copy() if turned else stored))
        assert (result.size, found[0x010F], found.get(0x0112, 1)) == ((16, 24), "Maker", 1), name
        assert result.info["icc_profile"] == profile
        if name != "a.webp":  # which has no place for it
            assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        if name != "a.tif":  # whose own sizes these tags are
            assert (found[0x0100], found[0x0101]) == (16, 24)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_every_orientation_of_pil(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a", kind, exif=exif)
    with Image.open(tmp_path / "a") as image:
        samples, _ = from_pil(image)
    # Mirrored left to right, or not, and then turned to the left by so many quarters.
    mirrored, quarters = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}[
        orientation
    ]
    np.testing.assert_array_equal(samples, np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_other_colours_of_pil_are_converted_by_profiles(mode: str) -> None:
    rgb = ImageCms.createProfile("sRGB")
    colours = Image.fromarray(np.full((8, 8, 3), (180, 120, 90), np.uint8))
    if mode == "LAB":
        image = ImageCms.applyTransform(
            colours, ImageCms.buildTransform(rgb, ImageCms.createProfile("LAB"), "RGB", mode)
        )
        expected: tuple[int, ...] = (180, 120, 90)
    else:
        image, expected = Image.new("CMYK", (8, 8), (0, 0, 0, 0)), (255, 255, 255)
    image.info["icc_profile"] = b"of other colours"
    assert np.abs(from_pil(image)[0].astype(int) - expected).max() <= 2  # 8 bits of L*a*b*
    assert "icc_profile" not in without_guard(small())(image).info


def test_tensors() -> None:
    model, image = small(), torch.rand(2, 3, 9, 8)
    result = without_guard(model)(image)
    torch.testing.assert_close(result, model(image), rtol=0, atol=1e-5)
    assert without_guard(model)(image[:0]).shape == (0, 3, 18, 16)


def test_progress_is_of_one_call() -> None:
    """Three tiles of an image, then two images of a batch."""
    upscaler, shares, others = without_guard(small(), tile=8), [], []
    upscaler(np.zeros((24, 8, 3), np.uint8), progress=shares.append)
    assert shares == [1 / 3, 2 / 3, 1]
    upscaler(torch.zeros(2, 3, 8, 16), progress=others.append)
    assert others == [1 / 4, 1 / 2, 3 / 4, 1]
    assert len(shares) == 3


def test_self_ensemble_is_the_mean_over_flips_and_rotations() -> None:
    model = small()
    image = torch.rand(1, 3, 16, 16)
    views = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
    outputs = []
    for turns, mirrored in views:
        array = np.rot90(image[0].numpy(), turns, (1, 2))
        array = array[:, :, ::-1] if mirrored else array
        output = model(torch.from_numpy(array.copy())[None])[0].numpy()
        output = output[:, :, ::-1] if mirrored else output
        outputs.append(np.rot90(output, -turns, (1, 2)))
    result = without_guard(model, self_ensemble=True)(image)
    np.testing.assert_allclose(result[0].numpy(), np.mean(outputs, axis=0), atol=1e-5)


def test_out_of_memory_halves_the_tile_and_goes_on() -> None:
    model = small()
    image = RANDOM.random((90, 120, 3), dtype=np.float32)
    expected = without_guard(model, tile=0)(image)
    upscaler = without_guard(model, tile=0)
    sizes = []

    def scarce(tile: torch.Tensor) -> torch.Tensor:
        sizes.append(tile.shape[2] * tile.shape[3])
        if sizes[-1] > 88 * 80:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: ...")
        return model(tile)

    upscaler._run = scarce
    np.testing.assert_allclose(upscaler(image), expected, rtol=0, atol=1e-5)
    assert sum(size > 88 * 80 for size in sizes) <= 3

    def broken(tile: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("something else")

    upscaler._run = broken
    with pytest.raises(RuntimeError, match="something else"):
        upscaler(image)


@pytest.mark.parametrize(("limit", "left"), [("700\n", 700 - 600 + 50), ("500\n", 0), ("max\n", None)])
def test_a_containers_memory_limit_is_known(monkeypatch, tmp_path: Path, limit: str, left: int | None) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    elsewhere = memory.free_memory(torch.device("cpu"))
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 550\ninactive_file 50\n")
    if left is None:
        assert memory.free_memory(torch.device("cpu")) > elsewhere / 2
    else:
        assert memory.free_memory(torch.device("cpu")) == left


@pytest.mark.slow
def test_a_hard_memory_limit_is_kept() -> None:
    """A picture whose whole-image pass would take over 2 GB of activations, in a process that may have 500 MB."""
    code = """
        import resource, sys
        sys.path.insert(0, "tests")
        import numpy as np, torch
        torch.set_num_threads(1)
        import ditn
        from ditn.inference.memory import predicted_peak
        from networks import small
        model = small(ditn.DITN_Real, dim=16)
        image = np.random.default_rng(0).integers(0, 256, (3000, 3600, 3), dtype=np.uint8)
        upscaler = ditn.Upscaler(model, guard="off", max_memory=250 * 2**20)
        assert predicted_peak(model, 3000 * 3600) > 2 * 2**30
        upscaler(image[:64, :64])
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + 500 * 2**20, resource.RLIM_INFINITY))
        result = upscaler(image)
        assert result.shape == (6000, 7200, 3) and result.any()
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc and RLIMIT_DATA, which this system lacks")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=PROJECT)


def test_wrong_arguments_are_named() -> None:
    model = small()
    with pytest.raises(ValueError, match="tile is -3"):
        without_guard(model, tile=-3)
    with pytest.raises(ValueError, match="max_memory is 0"):
        without_guard(model, max_memory=0)
    with pytest.raises(ValueError, match="4 channels in"):
        without_guard(small(in_channels=4, out_channels=4))
    upscaler = without_guard(model)
    with pytest.raises(TypeError, match="got int64"):
        upscaler(np.zeros((4, 4, 3), np.int64))
    with pytest.raises(ValueError, match=r"got shape \[4, 4, 5\]"):
        upscaler(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        upscaler(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(TypeError, match="got str"):
        upscaler("photo.png")
    with pytest.raises(TypeError, match="expected a DITN, the name of weights or a file of them, got Conv2d"):
        ditn.Upscaler(torch.nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize(
    ("gpu", "options", "place", "dtype"),
    [
        (True, {}, "cuda", torch.float16),
        (True, {"device": "cpu"}, "cpu", torch.float32),
        (True, {"dtype": torch.bfloat16}, "cuda", torch.bfloat16),
        (False, {}, "cpu", torch.float32),
        (False, {"device": "cuda:1"}, "cuda:1", torch.float16),
    ],
)
def test_a_model_that_is_named_runs_on_the_gpu_if_there_is_one(monkeypatch, gpu, options, place, dtype) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("ditn.inference.upscaler.load", lambda name, **where: asked.append((name, where)) or small())
    ditn.Upscaler("ditn-tiny-x2", cuda_graph=False, **options)
    assert asked == [("ditn-tiny-x2", {"device": torch.device(place), "dtype": dtype})]
    assert ditn.Upscaler(small(), cuda_graph=False).device == torch.device("cpu")


def test_the_callers_model_is_left_alone() -> None:
    model = small().train()
    without_guard(model, dtype=torch.float64)(np.zeros((4, 4, 3), np.uint8))
    assert model.training
    assert model.sft.weight.dtype == torch.float32

# SPDX-License-Identifier: Apache-2.0
"""Between YUV and RGB, against the standards' equations in float64 and against FFmpeg."""

from __future__ import annotations

import numpy as np
import pytest

from ditn.video.colour import BT709, Colour, from_rgb, to_rgb, understood

av = pytest.importorskip("av", reason="PyAV is not installed")
import films  # noqa: E402

from ditn.video.layout import FilmError, layout_of, planar_name  # noqa: E402


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("matrix", films.LUMA)
def test_the_equations_of_the_standards(matrix: int, depth: int, full: bool) -> None:
    rgb = np.random.default_rng(1).random((16, 16, 3))
    layout = layout_of("yuv444p" if depth == 8 else f"yuv444p{depth}le")
    colour = Colour(matrix, 2 if full else 1)
    exact = films.coded(rgb, matrix, depth, full=full)
    whole = [np.rint(plane).astype(np.uint8 if depth == 8 else np.uint16) for plane in exact]
    for plane, right in zip(from_rgb(np.rint(rgb * 65535).astype(np.uint16), layout, colour), exact, strict=True):
        # Half a step, and what 16 bits of RGB are rounded by.
        assert np.abs(plane - right).max() <= 0.5 + 2**depth / 65535
    back = to_rgb(whole, layout, colour) / 65535
    # A step of each component reaches RGB by at most 1 + 2 of them.
    assert np.abs(back - rgb).max() <= 0.5 * 3 / (219 * 2 ** (depth - 8))


def test_chroma_lies_between_two_rows_and_on_the_first_column() -> None:
    """4:2:0 as MPEG-2, H.264 and HEVC have it: by hand."""
    layout, colour = layout_of("yuv420p"), Colour(BT709, 2)
    luma = np.full((4, 4), 128, np.uint8)
    v = np.full((2, 2), 128, np.uint8)
    u = np.array([[128, 168], [128, 168]], np.uint8)
    blue = to_rgb([luma, u, v], layout, colour)[0, :, 2] / 65535 * 255
    assert np.allclose(blue, 128 + 2 * (1 - 0.0722) * np.array([0, 20, 40, 40]), atol=0.01)
    blue = to_rgb([luma, u.T.copy(), v], layout, colour)[:, 0, 2] / 65535 * 255
    assert np.allclose(blue, 128 + 2 * (1 - 0.0722) * np.array([0, 10, 30, 40]), atol=0.01)
    blue = to_rgb([luma, u, v], layout, Colour(BT709, 2, centred=True))[0, :, 2] / 65535 * 255
    assert np.allclose(blue, 128 + 2 * (1 - 0.0722) * np.array([0, 10, 30, 40]), atol=0.01)


@pytest.mark.parametrize(
    "name", ["yuv420p", "yuv422p10le", "yuv444p", "yuv440p", "yuva420p", "gbrp", "gbrap12le", "gray10le"]
)
def test_a_picture_of_one_colour_comes_back(name: str) -> None:
    """Whatever the layout, also with odd sides."""
    layout = layout_of(name)
    value = [20000, 45000, 30000, 50000] if not layout.gray else [30000]
    pixels = np.broadcast_to(np.array(value[: layout.bands], np.uint16), (5, 7, layout.bands)).copy()
    colour = Colour(0 if layout.rgb else BT709, 2 if layout.rgb else 1)
    planes = from_rgb(pixels, layout, colour)
    frame = av.VideoFrame(7, 5, name)
    assert [(plane.height, plane.width) for plane in frame.planes] == [plane.shape for plane in planes]
    assert np.abs(to_rgb(planes, layout, colour).astype(int) - pixels).max() <= 65535 * 1.5 / (
        219 * 2 ** (layout.depth - 8)
    )


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("nv12", "yuv420p"),
        ("p010le", "yuv420p10le"),
        ("uyvy422", "yuv422p"),
        ("pal8", "gbrap"),
        ("rgb48le", "gbrp16le"),
    ],
)
def test_packed_layouts_have_a_planar_twin(name: str, same: str) -> None:
    assert not layout_of(name).planar
    assert planar_name(layout_of(name)) == same


def test_what_a_film_leaves_open_follows_its_size() -> None:
    layout, open_ = layout_of("yuv420p"), Colour(2, 0, 2, 2)
    assert understood(open_, layout, 720, 480) == Colour(6, 1, 6, 1)
    assert understood(open_, layout, 720, 576) == Colour(5, 1, 5, 1)
    assert understood(open_, layout, 1280, 720) == Colour(1, 1, 1, 1)
    assert understood(open_, layout_of("yuvj420p"), 1280, 720) == Colour(1, 2, 1, 1)
    assert understood(Colour(9, 2, 9, 14), layout, 720, 480) == Colour(9, 2, 9, 14)


@pytest.mark.parametrize(("transfer", "name"), [(16, "HDR10"), (18, "HLG")])
def test_high_dynamic_range_is_refused_by_name(transfer: int, name: str) -> None:
    with pytest.raises(FilmError, match=name):
        understood(Colour(9, 1, 9, transfer), layout_of("yuv420p10le"), 3840, 2160)


def test_an_unknown_matrix_is_refused() -> None:
    with pytest.raises(FilmError, match="matrix 8"):
        understood(Colour(8, 1, 1, 1), layout_of("yuv420p"), 640, 480)

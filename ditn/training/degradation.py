# SPDX-License-Identifier: Apache-2.0
"""What happens to a picture between the lens and the reader.

One half were sharp, were made smaller and saved, perhaps twice: what chats and web sites do. The other half went
through the degradation of Real-ESRGAN (Wang, Xie, Dong, Shan, ICCV workshops 2021, sections 3.1 to 3.4 and its
published training options): blur, resizing, noise and JPEG, twice. A network that is trained on the latter alone takes
every picture for a blurred one, and does worse than an interpolation to a JPEG that was sharp.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from ditn.imaging.arrays import Pixels8

Random = np.random.Generator
# Of an image [H, W, 3], the scale and random numbers.
Degradation = Callable[[Pixels8, int, Random], Pixels8]

_KERNEL_SIDES = range(7, 22, 2)
_SHAPES = ("gaussian", "generalized", "plateau")
_MODES = ("area", "bilinear", "bicubic")
_SINC_SHARE, _LAST_SINC_SHARE = 0.1, 0.8
_POISSON_SHARE, _GRAY_NOISE_SHARE = 0.5, 0.4


@dataclass(frozen=True)
class _Round:
    """The ranges that one of the two rounds draws from; noise in 8-bit levels."""

    blur_share: float
    sigma: tuple[float, float]
    up_down_same: tuple[float, float, float]
    resize: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]


_FIRST = _Round(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
_SECOND = _Round(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
_QUALITY = (30, 95)

# Of the pictures that were sharp: the share of all, and of them those that were saved at another size before, are a
# little soft, have grain. Few are WebP, most JPEGs have colour at half the resolution.
_SHARP_SHARE, _TWICE_SHARE, _SOFT_SHARE, _GRAIN_SHARE = 0.5, 0.4, 0.3, 0.3
_WEBP_SHARE, _SUBSAMPLED_SHARE = 0.1, 0.7
_FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
# Gaussian blur in pixels of the result, grain in 8-bit levels, the other size in units of the result's.
_SOFT, _GRAIN, _OTHER_SIZE = (0.2, 0.6), (1.0, 8.0), (0.75, 2.0)


def photo(high: Pixels8, scale: int, random: Random) -> Pixels8:
    """A degraded image [H / s, W / s, 3] of an image [H, W, 3], both uint8 RGB, `shared` or `worn`; a function of the
    image and `random`.

    Raises ValueError if the sides are not multiples of `scale`.
    """
    return (shared if random.random() < _SHARP_SHARE else worn)(high, scale, random)


def shared(high: Pixels8, scale: int, random: Random) -> Pixels8:
    """As `photo`: made smaller by one of the usual filters and saved; some were saved at another size before."""
    size = _smaller(high, scale)
    image = Image.fromarray(high)
    if random.random() < _SOFT_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*_SOFT) * scale))
    if random.random() < _TWICE_SHARE:
        factor = random.uniform(*_OTHER_SIZE)
        image = _saved(
            _fitted(image, (max(1, round(size[0] * factor)), max(1, round(size[1] * factor))), random), random
        )
    pixels = np.asarray(_fitted(image, size, random))
    if random.random() < _GRAIN_SHARE:
        grain = random.standard_normal(pixels.shape) * random.uniform(*_GRAIN)
        pixels = (pixels + grain).clip(0, 255).round().astype(np.uint8)
    return np.asarray(_saved(Image.fromarray(pixels), random))


def _fitted(image: Image.Image, size: tuple[int, int], random: Random) -> Image.Image:
    return image.resize((size[1], size[0]), _FILTERS[random.integers(len(_FILTERS))])


def _saved(image: Image.Image, random: Random) -> Image.Image:
    """As JPEG, or WebP, and read again."""
    quality = int(random.integers(_QUALITY[0], _QUALITY[1] + 1))
    if random.random() < _WEBP_SHARE:
        return _read_again(image, format="webp", quality=quality)
    subsampling = "4:2:0" if random.random() < _SUBSAMPLED_SHARE else "4:4:4"
    return _read_again(image, format="jpeg", quality=quality, subsampling=subsampling)


def _read_again(image: Image.Image, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **options)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")


def worn(high: Pixels8, scale: int, random: Random) -> Pixels8:
    """As `photo`: Real-ESRGAN's two rounds. The second ends in a resize to the result's size with a sinc filter
    (ringing), and in JPEG, in either order."""
    size = _smaller(high, scale)
    image = torch.tensor(high).permute(2, 0, 1)[None].to(torch.float32) / 255
    image = _blurred(image, _FIRST, random)
    image = _resized(image, _size((high.shape[0], high.shape[1]), _FIRST, random), random)
    image = _jpeg(_noisy(image, _FIRST, random), random)
    image = _blurred(image, _SECOND, random)
    image = _resized(image, _size(size, _SECOND, random), random)
    image = _noisy(image, _SECOND, random)
    ringing = _last_sinc(random)
    if random.random() < 0.5:
        image = _jpeg(_filtered(_resized(image, size, random), ringing), random)
    else:
        image = _filtered(_resized(_jpeg(image, random), size, random), ringing)
    pixels: Pixels8 = _to_bytes(image)
    return pixels


def _smaller(high: Pixels8, scale: int) -> tuple[int, int]:
    height, width = high.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"an image of {width}x{height} is no multiple of the scale {scale}")
    return height // scale, width // scale


def _size(size: tuple[int, int], ranges: _Round, random: Random) -> tuple[int, int]:
    """Where a round resizes to: larger, smaller or the same."""
    low, high = ranges.resize
    direction = random.choice(3, p=ranges.up_down_same)
    factor = (random.uniform(1, high), random.uniform(low, 1), 1.0)[direction]
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resized(image: Tensor, size: tuple[int, int], random: Random) -> Tensor:
    mode = _MODES[random.integers(len(_MODES))]
    resized: Tensor = F.interpolate(image, size, mode=mode)
    return resized


def _blurred(image: Tensor, ranges: _Round, random: Random) -> Tensor:
    if random.random() >= ranges.blur_share:
        return image
    side = int(random.choice(_KERNEL_SIDES))
    if random.random() < _SINC_SHARE:
        return _filtered(image, sinc_kernel(side, _cutoff(side, random)))
    shape = _SHAPES[random.choice(3, p=(0.70, 0.15, 0.15))]
    # Of the Gaussian kernels 45 in 70 are isotropic, of the others 12 in 15.
    isotropic = random.random() < (45 / 70 if shape == "gaussian" else 12 / 15)
    first = random.uniform(*ranges.sigma)
    second = first if isotropic else random.uniform(*ranges.sigma)
    angle = 0.0 if isotropic else random.uniform(-math.pi, math.pi)
    low, high = {"gaussian": (1.0, 1.0), "generalized": (0.5, 4.0), "plateau": (1.0, 2.0)}[shape]
    # Half of the exponents below 1, half above, as the options have it.
    beta = random.uniform(low, 1) if random.random() < 0.5 else random.uniform(1, high)
    return _filtered(image, blur_kernel(side, (first, second), angle, beta, plateau=shape == "plateau"))


def blur_kernel(side: int, sigma: tuple[float, float], angle: float, beta: float, *, plateau: bool) -> Tensor:
    """exp(-q^beta / 2), or 1 / (1 + q^beta) with a `plateau`, where q = d^T S^-1 d and S has the standard deviations
    `sigma` along axes turned by `angle` (radians): [side, side], its sum 1, odd side. beta 1 is a Gaussian."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    power = ((along / sigma[0]) ** 2 + (across / sigma[1]) ** 2) ** beta
    kernel = 1 / (1 + power) if plateau else torch.exp(-power / 2)
    return (kernel / kernel.sum()).to(torch.float32)


def sinc_kernel(side: int, cutoff: float) -> Tensor:
    """The ideal low-pass filter cut off at `cutoff` radians per pixel, w J1(w r) / (2 pi r): [side, side], sum 1."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    radius = torch.hypot(axis[:, None], axis[None, :])
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).to(torch.float32)


def _cutoff(side: int, random: Random) -> float:
    """Small kernels cannot hold a low cutoff."""
    return random.uniform(math.pi / 3 if side < 13 else math.pi / 5, math.pi)


def _last_sinc(random: Random) -> Tensor:
    if random.random() >= _LAST_SINC_SHARE:
        return torch.ones(1, 1)
    return sinc_kernel(int(random.choice(_KERNEL_SIDES)), random.uniform(math.pi / 3, math.pi))


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with the kernel, the border mirrored as often as it takes."""
    radius = kernel.shape[0] // 2
    for axis in (-2, -1):
        length = image.shape[axis]
        index = torch.arange(-radius, length + radius) % (2 * length)
        image = image.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
    return F.conv2d(image.transpose(0, 1), kernel[None, None]).transpose(0, 1)


def _noisy(image: Tensor, ranges: _Round, random: Random) -> Tensor:
    """Gaussian or Poisson noise, for each colour its own or the same for all."""
    gray = random.random() < _GRAY_NOISE_SHARE
    if random.random() < _POISSON_SHARE:
        source = _luma(image) if gray else image
        # Photons per unit of light: as many as there are levels in the image, to the next power of two.
        levels = np.unique(_to_bytes(source)).size
        photons = 2.0 ** math.ceil(math.log2(levels))
        exact = np.round(source.numpy().clip(0, 1).astype(np.float64) * 255) / 255
        noise = (random.poisson(exact * photons) / photons - exact) * random.uniform(*ranges.poisson)
    else:
        shape = (1, 1 if gray else 3, *image.shape[-2:])
        noise = random.standard_normal(shape) * random.uniform(*ranges.noise) / 255
    return image + torch.tensor(noise, dtype=torch.float32)


def _luma(image: Tensor) -> Tensor:
    return (image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _jpeg(image: Tensor, random: Random) -> Tensor:
    quality = int(random.integers(_QUALITY[0], _QUALITY[1] + 1))
    decoded = np.asarray(_read_again(Image.fromarray(_to_bytes(image)), format="jpeg", quality=quality))
    return torch.tensor(decoded).permute(2, 0, 1)[None].to(torch.float32) / 255


def _to_bytes(image: Tensor) -> Pixels8:
    """[1, C, H, W] in 0..1 -> uint8 [H, W, C], clamped and rounded."""
    return image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# By the names that recipes have for them; "bicubic" is `ditn.imaging.resize.downscale`.
DEGRADE: dict[str, Degradation] = {"jpeg": shared, "photo": photo}

# SPDX-License-Identifier: Apache-2.0
"""The peers that benchmarks time are the published networks: parameters, work, and the arithmetic of their windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.peers import PEERS, elan, swinir
from benchmarks.harness.peers.layout import from_windows, to_windows
from benchmarks.peers import SIZES, facts


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _random(network: nn.Module) -> nn.Module:
    """Float64, and no statistic of a batch norm at its neutral value."""
    for tensor in [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point() and b.ndim == 1)]:
        nn.init.uniform_(tensor.data, 0.05, 0.3)
    return network.double().eval().requires_grad_(False)


def test_parameters_are_as_many_as_published() -> None:
    """Published counts. ELAN's larger one, 640,392, has its frozen parameters in it: a 3x3 kernel for each of the 60
    and 120 channels that 24 blocks shift, and two 1x1 convolutions of three colours."""
    assert _count(PEERS["swinir-light"](4)) == 929_628
    assert _count(PEERS["elan-light"](4)) == 601_488
    assert 601_488 + 24 * 9 * (60 + 120) + 2 * (3 * 3 + 3) == 640_392


def test_folded_batch_norms_change_nothing_but_the_number_of_parameters() -> None:
    network = _random(elan.ELAN(2, blocks=4))
    image = torch.rand(1, 3, 16, 32, dtype=torch.float64)
    before, count = network(image), _count(network)
    torch.testing.assert_close(network.fold()(image), before, rtol=1e-9, atol=1e-9)  # type: ignore[operator]
    assert count - _count(network) == 2 * (240 + 120)


def test_work_is_what_papers_count() -> None:
    """SwinIR-light x4: 63.6 G by later papers' count, which leaves the products with the biases out and takes a shape
    that needs no padding. By hand, multiply-adds per pixel of the padded map."""
    layer = 60 * 180 + 60 * 60 + 2 * 60 * 120 + 2 * 64 * 60
    per_pixel = 27 * 60 + 24 * layer + 5 * 9 * 60 * 60 + 9 * 60 * 48
    assert facts("swinir-light", 4, SIZES[4])["macs"] == per_pixel * 320 * 184
    local, project = 2 * 60 * 120, 12 * (60 * 120 + 60 * 60) + 24 * 60 * 60
    attention = 12 * 3 * 20 * (16 + 64 + 256)  # scores once per pair of blocks, weighted sums twice
    per_pixel = 27 * 60 + 24 * local + project + attention + 9 * 60 * 48
    assert facts("elan-light", 4, SIZES[4])["macs"] == per_pixel * 320 * 192
    assert facts("ditn-real", 4, "16x8")["macs"] == 469_380 * 16 * 8  # reference count of the published formula


@pytest.mark.parametrize("shift", [0, 4])
def test_window_attention_is_that_of_every_window_by_itself(shift: int) -> None:
    """A loop over windows, heads and pixels. Shifted, a pixel sees the pixels of its window that it did not meet by
    wrapping round: that is, those that lie within its window of the map continued without end."""
    height, width, dim, heads, window = 16, 24, 12, 3, 8
    layer = _random(swinir.WindowAttention(dim, heads, window, shift))
    nn.init.normal_(layer.bias_table)
    x = torch.randn(1, height, width, dim, dtype=torch.float64)
    mask = swinir.shift_mask(height, width, window, torch.float64, x.device)
    expected = _window_by_window(layer, x[0], shift)
    torch.testing.assert_close(layer(x, mask)[0], expected, rtol=1e-10, atol=1e-10)


def _window_by_window(layer: nn.Module, x: Tensor, shift: int) -> Tensor:
    """The map's windows start at multiples of 8 minus the shift and are cut off at its borders."""
    out = torch.zeros_like(x)
    (height, width, dim), heads, table = x.shape, layer.heads, layer.bias_table
    edges = [sorted({0, n, *range(8 - shift, n, 8)}) if shift else list(range(0, n + 1, 8)) for n in (height, width)]
    for top, bottom in zip(edges[0], edges[0][1:], strict=False):
        for left, right in zip(edges[1], edges[1][1:], strict=False):
            pixels = [(y, z) for y in range(top, bottom) for z in range(left, right)]
            tokens = torch.stack([x[pixel] for pixel in pixels])
            q, k, v = F.linear(tokens, layer.qkv.weight, layer.qkv.bias).split(dim, dim=1)
            bias = torch.stack(
                [torch.stack([table[(a[0] - b[0] + 7) * 15 + a[1] - b[1] + 7] for b in pixels]) for a in pixels]
            )
            size = dim // heads
            results = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = q[:, part] @ k[:, part].T / size**0.5 + bias[..., head]
                results.append(scores.softmax(-1) @ v[:, part])
            result = F.linear(torch.cat(results, dim=1), layer.project.weight, layer.project.bias)
            for pixel, value in zip(pixels, result, strict=True):
                out[pixel] = value
    return out


def test_windows_are_pieces_of_the_map() -> None:
    x = torch.randn(2, 8, 12, 3)
    windows = to_windows(x, 4)
    assert torch.equal(windows[1 * 6 + 1 * 3 + 2].reshape(4, 4, 3), x[1, 4:8, 8:12])
    assert torch.equal(from_windows(windows, 4, 8, 12), x)


def test_shift_is_the_published_depthwise_convolution() -> None:
    """Each channel's 3x3 kernel has a single 1: right, left, below, above, in the middle, zeros around the map."""
    x = torch.randn(2, 62, 5, 7)
    kernels = torch.zeros(62, 1, 3, 3)
    for channel in range(62):
        row, column = [(1, 2), (1, 0), (2, 1), (0, 1), (1, 1), (1, 1)][channel // 12]
        kernels[channel, 0, row, column] = 1
    assert torch.equal(elan.shift(x), F.conv2d(x, kernels, padding=1, groups=62))


def test_a_pair_of_blocks_shares_the_weights_of_one_attention() -> None:
    """softmax(q q^T) v, window by window, with a third of the channels in windows of each size; then other values."""
    own = _random(elan.WindowAttention(12, shifted=True, own_scores=True))
    shared = _random(elan.WindowAttention(12, shifted=True, own_scores=False))
    x = torch.randn(1, 12, 16, 32, dtype=torch.float64)
    (first, weights), (z, y) = own(x), (own.project_in(x)[0], shared.project_in(x)[0])
    outs = ([], [])
    for index, window in enumerate(elan.WINDOWS):
        part, others = z[8 * index : 8 * index + 8], y[4 * index : 4 * index + 4]
        results = (torch.zeros(4, 16, 32, dtype=torch.float64), torch.zeros(4, 16, 32, dtype=torch.float64))
        for top in range(0, 16, window):
            for left in range(0, 32, window):
                # Shifted by half a window, round the map's borders.
                rows = (torch.arange(top, top + window) + window // 2) % 16
                columns = (torch.arange(left, left + window) + window // 2) % 32
                q, v = part[:, rows][:, :, columns].flatten(1).split(4)
                attention = (q.T @ q).softmax(-1)
                for result, values in zip(results, (v, others[:, rows][:, :, columns].flatten(1)), strict=True):
                    result[:, rows[:, None], columns] = (attention @ values.T).T.reshape(4, window, window)
        for out, result in zip(outs, results, strict=True):
            out.append(result)
    torch.testing.assert_close(first, own.project_out(torch.cat(outs[0])[None]), rtol=1e-10, atol=1e-10)
    second = shared(x, weights)[0]
    torch.testing.assert_close(second, shared.project_out(torch.cat(outs[1])[None]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("scale", [2, 3])
def test_any_size_and_every_scale(name: str, scale: int) -> None:
    network = PEERS[name](scale).eval().requires_grad_(False).fold()
    result = network(torch.rand(1, 3, 19, 21))
    assert result.shape == (1, 3, 19 * scale, 21 * scale)
    assert result.isfinite().all()


def test_the_reach_of_shifted_windows() -> None:
    """Two layers, one shifted: a pixel depends on its window and on those that the shift brings it together with."""
    network = _random(swinir.SwinIR(1, depths=(2,)))
    network.groups[0].conv.weight.zero_()[:, :, 1, 1] = 0.1  # no reach of its own
    for conv in (network.head, network.after_body, network.tail):
        conv.weight[:, :, :, [0, 2]] = conv.weight[:, :, [0, 2]] = 0
    image = torch.rand(1, 3, 24, 24, dtype=torch.float64).requires_grad_()
    network(image)[0, :, 12, 12].sum().backward()
    assert image.grad is not None
    touched = image.grad.abs().sum((0, 1)) > 0
    # (12, 12) lies in the window 8..15 and, shifted, in 12..19, whose pixels come from the windows 8..15 and 16..23.
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[8:, 8:] = True
    assert torch.equal(touched, expected)

# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, recorded and replayed by a stand-in for CUDA (see `recorded_graphs`): when a shape is recorded, what
graphs share, what drops them. What needs a GPU is in test_gpu.py."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small, without_guard
from PIL import Image
from recorded_graphs import Recordings, Stream, install

import ditn
from ditn.commands.cli import main
from ditn.inference import memory
from ditn.inference.memory import FIXED, bytes_per_pixel, predicted_peak
from ditn_kernels import gpu_lock, use_backend

# Bytes of image and result per input pixel of a float32 network at x2: 3 channels in, 3 times 2 x 2 out.
BUFFERS = 4 * (3 + 12)


@pytest.fixture
def recordings(monkeypatch) -> Recordings:
    return install(monkeypatch)


def image(height: int = 8, width: int = 16, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width)


def assert_right(runner: ditn.CudaGraphRunner, model: ditn.DITN, given: torch.Tensor) -> None:
    """To float32 rounding: plain PyTorch may choose another algorithm where somebody records it."""
    with torch.no_grad():
        expected = model(given)
    torch.testing.assert_close(runner(given), expected, rtol=0, atol=2.0**-20 * float(expected.abs().max()))


def test_without_a_cuda_device() -> None:
    with pytest.raises(ValueError, match="a CUDA graph needs a CUDA device, the model is on cpu"):
        ditn.Upscaler(small(), cuda_graph=True)
    with pytest.raises(ValueError, match="a CUDA graph needs a CUDA device, the model is on cpu"):
        ditn.CudaGraphRunner(small())
    for cuda_graph in (None, False):
        assert without_guard(small(), cuda_graph=cuda_graph)(np.zeros((4, 4, 3), np.uint8)).shape == (8, 8, 3)


def test_a_shape_is_recorded_at_its_second_use(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    for shape, recorded, replayed in (
        ((8, 16), 0, 0),
        ((9, 5), 0, 0),
        ((8, 16), 1, 1),
        ((8, 16), 1, 2),
        ((9, 5, 2), 1, 2),  # another batch is another shape
        ((9, 5), 2, 3),
    ):
        assert_right(runner, model, image(*shape))
        assert (len(recordings.graphs), recordings.replays) == (recorded, replayed)


def test_a_result_has_memory_of_its_own(recordings) -> None:
    runner = ditn.CudaGraphRunner(small())
    runner(image())
    first, second = image(), image()
    result = runner(first)
    kept = result.clone()
    assert not torch.equal(runner(second), kept)
    torch.testing.assert_close(result, kept, rtol=0, atol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_inside_and_outside_of_inference_mode(recordings) -> None:
    model = small().requires_grad_()
    runner = ditn.CudaGraphRunner(model)
    with torch.inference_mode():
        runner(image())
        runner(image())
    given = image()
    result = runner(given)
    assert not result.requires_grad
    assert not result.is_inference()
    assert_right(runner, model, given)
    assert recordings.replays == 3


@pytest.mark.parametrize("how", ["in place", "load_state_dict", "exchanged", "refold"])
def test_changed_weights_are_recorded_again(recordings, how: str) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    given = image()
    before = [runner(given) for _ in range(3)][-1]
    if how == "in place":
        with torch.no_grad():
            model.sft.weight.mul_(2)
    elif how == "load_state_dict":
        model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    elif how == "exchanged":
        model.sft.weight = torch.nn.Parameter(2 * model.sft.weight)
    else:
        model.sft.weight.data.mul_(2)
        model.refold()
    for recorded in (1, 2, 2):
        assert_right(runner, model, given)
        assert not torch.equal(runner(given) if recorded == 2 else model(given), before)
        assert len(recordings.graphs) == recorded


def test_a_forced_backend_is_another_recording(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    for recorded in (0, 1, 1):
        assert_right(runner, model, image())
        assert len(recordings.graphs) == recorded
    for recorded in (1, 2, 2):
        with use_backend("torch"):
            assert_right(runner, model, image())
        assert len(recordings.graphs) == recorded


def test_what_somebody_else_has_to_see_runs_as_it_is(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    given = image().requires_grad_()
    for _ in range(3):
        runner(given).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            assert runner(image(8, 8)).dtype == model(image(8, 8)).dtype
        assert runner(image(batch=0)).shape == (0, 3, 16, 32)
    assert given.grad is not None
    with pytest.raises(ValueError, match="expected an image batch"):
        runner(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        runner(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    assert not recordings.graphs


def test_smaller_shapes_share_the_memory_of_the_largest(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    for shape in ((8, 16), (24, 16), (16, 16), (8, 16)):
        for _ in range(2):
            assert_right(runner, model, image(*shape))
    # The second is larger than the first: a pool of its own, whose memory the others use; the first starts anew.
    assert recordings.pools[0] is not recordings.pools[1]
    assert len(set(map(id, recordings.pools[1:]))) == 1
    assert len(recordings.graphs) == 4
    assert runner._pool.bytes == 24 * 16 * (bytes_per_pixel(model) + BUFFERS)
    assert recordings.emptied == 1


def test_a_shape_that_needs_too_much_runs_without_a_graph(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model, max_memory=predicted_peak(model, 16 * 16, graph=True))
    assert predicted_peak(model, 16 * 16, graph=True) == FIXED + 16 * 16 * (bytes_per_pixel(model) + BUFFERS)
    for _ in range(3):
        assert_right(runner, model, image(16, 16))
    assert (len(recordings.graphs), recordings.replays) == (1, 2)
    for _ in range(3):  # 17 rows become 24
        assert_right(runner, model, image(17, 16))
    assert len(recordings.graphs) == 1


def test_graphs_give_way_to_an_image_that_needs_their_memory(recordings) -> None:
    model = small()
    budget = FIXED + 16 * 16 * (bytes_per_pixel(model) + BUFFERS) + 8 * 16 * bytes_per_pixel(model)
    runner = ditn.CudaGraphRunner(model, max_memory=budget)
    for shape, held, recorded in (
        ((16, 16), 0, 0),
        ((16, 16), 16 * 16, 1),
        ((8, 16), 16 * 16, 1),  # beside the graph
        ((8, 24), 0, 1),  # too much beside it
        ((16, 16), 0, 1),  # counts as new
        ((16, 16), 16 * 16, 2),
    ):
        assert_right(runner, model, image(*shape))
        assert runner._pool.bytes == held * (bytes_per_pixel(model) + BUFFERS)
        assert runner._pool.bytes + FIXED <= budget
        assert len(recordings.graphs) == recorded


def test_running_out_of_memory_drops_the_graphs(recordings, monkeypatch) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    for _ in range(2):
        runner(image())
    forward = model.forward

    def scarce(given: torch.Tensor) -> torch.Tensor:
        if runner._pool.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(given)

    monkeypatch.setattr(model, "forward", scarce)
    given = image(24, 24)
    torch.testing.assert_close(runner(given), forward(given), rtol=0, atol=0)
    assert (runner._pool.bytes, recordings.emptied) == (0, 1)
    monkeypatch.setattr(model, "forward", lambda given: scarce(given) if runner._pool.bytes else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner(image(40, 24))


def test_the_shapes_that_were_used_last_are_kept(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    shapes = [(8, 8 + n) for n in range(33)]
    for shape in (*shapes[:32], shapes[0], shapes[32]):  # 32 are remembered: the second is forgotten
        runner(image(*shape))
    assert len(recordings.graphs) == 1
    runner(image(*shapes[1]))
    assert len(recordings.graphs) == 1
    runner(image(*shapes[0]))
    assert recordings.replays == 2


def test_while_one_thread_records_no_other_waits_for_the_gpu(recordings, monkeypatch) -> None:
    """Which would break the recording off: other recordings, and trials of kernels, have their turn before or after."""
    taken = []

    def look() -> None:
        taken.append(not gpu_lock.acquire(blocking=False))
        if not taken[-1]:
            gpu_lock.release()

    class Noting(ditn.DITN_Real):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(look).result()
            return super().forward(given)

    runner = ditn.CudaGraphRunner(small(Noting))
    given = image()
    for _ in range(3):
        runner(given)
    assert taken == [False, True]  # run, recorded, replayed


def test_a_recording_that_fails_is_said_once(recordings, monkeypatch) -> None:
    class Synchronous(ditn.DITN_Real):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if torch._C._len_torch_dispatch_stack():
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            return super().forward(image)

    model = Synchronous(2, dim=12, itls=1, sals=1).eval().requires_grad_(False)
    runner = ditn.CudaGraphRunner(model)
    assert_right(runner, model, image())
    given = image()
    with pytest.warns(RuntimeWarning, match=r"failed: operation not permitted when stream is capturing$") as said:
        result = runner(given)
    torch.testing.assert_close(result, model(given), rtol=0, atol=0)
    assert len(said) == len(recordings.recovered) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert_right(runner, model, image())
    assert (recordings.graphs, runner._pool.bytes) == ([], 0)


def test_another_stream_waits_for_the_one_before(recordings) -> None:
    runner = ditn.CudaGraphRunner(small())
    for _ in range(3):
        runner(image())
    first, recordings.stream = recordings.stream, Stream()
    assert first.waited_for == []
    for _ in range(2):
        runner(image())
    assert recordings.stream.waited_for == [first]


def test_threads_take_turns(recordings) -> None:
    model = small()
    runner = ditn.CudaGraphRunner(model)
    images = [image(8, 8) for _ in range(40)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(runner, images))
    for given, result in zip(images, results, strict=True):
        torch.testing.assert_close(result, model(given), rtol=0, atol=0)
    assert len(recordings.graphs) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda runner: pickle.loads(pickle.dumps(runner))])
def test_a_copy_records_for_itself(recordings, copied) -> None:
    runner = ditn.CudaGraphRunner(small(), max_memory=2**30)
    for _ in range(2):
        runner(image())
    other, given = copied(runner), image()
    torch.testing.assert_close(other(given), runner(given), rtol=0, atol=0)
    assert (other._pool.max_memory, other._pool.bytes) == (2**30, 0)
    other(given)
    assert len(recordings.graphs) == 2


@pytest.mark.parametrize("ensemble", [False, True])
def test_tiles_are_recorded_once_for_all_pictures(recordings, ensemble: bool) -> None:
    model = small(sals=1)
    options = {"tile": 16, "self_ensemble": ensemble}
    upscaler, plain = (without_guard(model, cuda_graph=graph, **options) for graph in (None, False))
    for count in range(3):
        picture = np.random.default_rng(count).random((32, 48, 3), dtype=np.float32)
        np.testing.assert_allclose(upscaler(picture), plain(picture), rtol=0, atol=0)
        found = len(recordings.graphs)
        if count == 1:
            after_two = found
    assert found == after_two > 1
    assert len(upscaler._graphs.shapes) <= 18
    assert plain._graphs is None


def test_pictures_of_different_sizes_never_pay_for_a_recording(recordings) -> None:
    upscaler = without_guard(small(), tile=0)
    for side in range(8, 72, 8):
        upscaler(np.zeros((side, 8, 3), np.uint8))
    assert not recordings.graphs


def test_buffers_are_part_of_the_plan(recordings) -> None:
    model = small()
    per_pixel = bytes_per_pixel(model)
    plan = without_guard(model, tile=0).plan(41, 30)
    assert plan.predicted_peak == FIXED + 48 * 32 * (per_pixel + BUFFERS)
    assert without_guard(model, tile=0, cuda_graph=False).plan(41, 30).predicted_peak == FIXED + 48 * 32 * per_pixel
    budget = FIXED + 104 * 96 * (per_pixel + BUFFERS)
    upscaler = without_guard(model, max_memory=budget)
    plan = upscaler.plan(300, 96)
    assert plan.predicted_peak <= budget
    # Whatever was planned can be recorded: all shapes that come more than once, within the budget.
    assert len(plan.regions) > 2
    picture = np.zeros((300, 96, 3), np.uint8)
    for _ in range(3):
        upscaler(picture)
        assert upscaler._graphs.bytes + FIXED <= budget
    assert all(upscaler._graphs.shapes.values())


def test_models_that_are_chosen_between_share_one_pool(recordings) -> None:
    upscaler = ditn.Upscaler("auto", scale=2, device="cpu", guard="off", max_memory=2**30)
    clean, photo = upscaler._for("own", "own"), upscaler._for("own", "ditn-tiny-x2")  # one model, loaded twice
    assert clean.model is upscaler.model is not photo.model
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(clean(picture), photo(picture))
    assert len(recordings.graphs) == 2
    assert recordings.pools[0] is recordings.pools[1]


def test_free_memory_of_a_gpu_counts_what_pytorch_keeps(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert memory.free_memory(torch.device("cuda", 0)) == 1000 + 300 - 100


def test_a_folder_is_recorded_once(recordings, tmp_path: Path) -> None:
    ditn.save(small(), tmp_path / "small.safetensors")
    (tmp_path / "in").mkdir()
    for name in "abcd":
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    command = ["upscale", str(tmp_path / "in"), "--model", str(tmp_path / "small.safetensors"), "--guard", "off"]
    assert main([*command, "-o", str(tmp_path / "without"), "--no-cuda-graph"]) == 0
    assert not recordings.graphs
    assert main([*command, "-o", str(tmp_path / "with")]) == 0
    assert (len(recordings.graphs), recordings.replays) == (1, 3)
    for name in "abcd":
        expected, result = (np.asarray(Image.open(tmp_path / out / f"{name}.png")) for out in ("without", "with"))
        np.testing.assert_array_equal(result, expected)


def test_the_command_asked_for_graphs_on_a_cpu(tmp_path: Path, capsys) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert (
        main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--cuda-graph", "--device=cpu"]) != 0
    )
    assert "a CUDA graph needs a CUDA device, the model is on cpu" in capsys.readouterr().err

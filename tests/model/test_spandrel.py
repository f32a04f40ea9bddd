# SPDX-License-Identifier: Apache-2.0
"""Spandrel itself, fetched from PyPI, loads all weights once `ditn.spandrel` is registered, and is accelerated."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from networks import small
from torch import Tensor

import ditn
from benchmarks.oracle import published

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

WANTED = ["spandrel==0.4.2", "einops==0.8.*"]
# Of torchvision, which is far larger than spandrel, its other architectures ask for these names when they are imported.
STAND_IN = "class InterpolationMode:\n    NEAREST = BILINEAR = BICUBIC = None\n\n\nrotate = normalize = None\n"


@pytest.fixture(scope="module")
def spandrel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *WANTED]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot fetch {' and '.join(WANTED)}: {installed.stderr.strip().splitlines()[-1]}")
    if find_spec("torchvision") is None:
        transforms = folder / "torchvision" / "transforms"
        transforms.mkdir(parents=True)
        for package in (transforms.parent, transforms):
            (package / "__init__.py").touch()
        (transforms / "functional.py").write_text(STAND_IN)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("spandrel")
    sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("spandrel", "torchvision", "einops") or name == "ditn.spandrel":
            del sys.modules[name]


@pytest.fixture
def loader(spandrel: ModuleType) -> Any:
    """With a registry of its own, lest a test see what another registered."""
    registry = spandrel.MAIN_REGISTRY.copy()
    importlib.import_module("ditn.spandrel").register(registry)
    return spandrel.ModelLoader(registry=registry)


def assert_enlarges(run: Callable[[Tensor], Tensor], model: ditn.DITN, size: tuple[int, int] = (9, 21)) -> None:
    config = model.config
    image = torch.rand(1, config.in_channels, *size)
    state = {key: value.double() for key, value in model.state_dict().items()}
    exact = published.network(state, image.double(), outputs=config.out_channels)
    # A descriptor's call bounds the result. float32: a dozen layers with sums of up to 108 products.
    bound = 1e-5 * float(exact.abs().max())
    torch.testing.assert_close(run(image).double(), exact.clamp(0, 1), rtol=0, atol=bound)


@pytest.mark.filterwarnings("ignore:.*spandrel .chaiNNer")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"ufones": 2, "bias": True, "upscale": 1}, {"upscale": 8}, {"itls": 0}, {"in_channels": 1, "out_channels": 1}],
    ids=str,
)
def test_models_with_layer_norm(spandrel: ModuleType, loader: Any, suffix: str, fields: dict, tmp_path: Path) -> None:
    model, path = small(ditn.DITN_Tiny, **fields), tmp_path / f"a{suffix}"
    ditn.save(model, path)
    with pytest.raises((RuntimeError, spandrel.UnsupportedModelError)):  # spandrel by itself
        spandrel.ModelLoader().load_from_file(path)
    descriptor = loader.load_from_file(path)
    assert isinstance(descriptor.model, ditn.DITN)
    assert descriptor.model.config == model.config
    assert (descriptor.scale, descriptor.input_channels) == (model.config.upscale, model.config.in_channels)
    assert_enlarges(descriptor, model)
    assert descriptor.half().dtype == torch.float16


def test_all_weights_that_ship(loader: Any) -> None:
    for name in ditn.models():
        descriptor = loader.load_from_file(Path(ditn.__file__).parent / "weights" / f"{name}.safetensors")
        model = ditn.load(name)
        assert isinstance(descriptor.model, ditn.DITN) == (model.config.norm == "layernorm")
        image = torch.rand(1, 3, 8, 8)
        torch.testing.assert_close(descriptor(image), model(image).clamp(0, 1), rtol=0, atol=1e-4)


def test_what_is_spandrels_stays(spandrel: ModuleType, loader: Any) -> None:
    ours = importlib.import_module("ditn.spandrel")
    ours.register(loader.registry)  # again
    assert len(loader.registry) == len(spandrel.MAIN_REGISTRY) + 1
    descriptor = loader.load_from_state_dict(dict(small().state_dict()))
    assert type(descriptor.model).__name__ == "DITN_Real"
    assert not isinstance(descriptor.model, ditn.DITN)
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict({"sft.weight": torch.zeros(3)})


@pytest.mark.parametrize(
    "fields", [{}, {"upscale": 1}, {"upscale": 8}, {"in_channels": 1, "out_channels": 3, "upscale": 4}], ids=str
)
def test_its_descriptor_is_accelerated(spandrel: ModuleType, fields: dict) -> None:
    model = small(**fields)
    descriptor = spandrel.ModelLoader().load_from_state_dict(dict(model.state_dict()))
    cls, threads = type(descriptor.model), torch.get_num_threads()
    assert ditn.accelerate(descriptor) is descriptor
    assert torch.get_num_threads() == threads
    assert type(descriptor.model) is cls
    assert isinstance(descriptor.model.forward.__self__, ditn.DITN)
    assert_enlarges(descriptor, model)
    # Its call pads in front of the model, so that only the model itself shows that any size is taken.
    assert_enlarges(lambda image: descriptor.model(image).clamp(0, 1), model, (1, 3))

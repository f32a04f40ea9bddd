# SPDX-License-Identifier: Apache-2.0
"""Modules of other packages, rebuilt here from the published keys, get a fused forward or a refusal that says why."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from networks import small
from torch import Tensor, nn

import ditn
from benchmarks.oracle import published
from ditn.imaging.sample import sample_image
from ditn_kernels.backends import BACKENDS

BOUND = 1e-5  # float32, relative to the largest value: a dozen layers, each with sums of up to 108 products


class DITN_Real(nn.Module):
    """A tree of modules that holds the published keys, and computes the published formula from them."""

    temperature: float | None = None  # neosr's attention knows one alone, 1/8

    def __init__(self, state: dict[str, Tensor], patch_size: int = 8) -> None:
        super().__init__()
        for key, value in state.items():
            *path, name = key.split(".")
            part: nn.Module = self
            for step in path:
                if step not in part._modules:
                    part.add_module(step, nn.Module())
                part = part.get_submodule(step)
            part.register_parameter(name, nn.Parameter(value.clone()))
        self.UFONE.get_submodule("0").patch_size = patch_size
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        state = dict(self.named_parameters())
        if self.temperature is not None:
            state |= {
                key: torch.full_like(state[key], self.temperature) for key in state if key.endswith("temperature")
            }
        return published.network(state, image, patch_size=self.UFONE.get_submodule("0").patch_size)


class Neosr(DITN_Real):
    temperature = 1 / 8


class Cyclic(DITN_Real):
    """Pads as no known implementation does."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        rows, columns = (torch.arange(-(-size // 8) * 8) % size for size in (height, width))
        return super().forward(image[:, :, rows][..., columns])[..., : 2 * height, : 2 * width]


class OnTheGrid(DITN_Real):
    """Takes what it need not pad, as when the caller pads."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] % 8 or image.shape[3] % 8:
            raise RuntimeError("multiples of 8, please")
        return super().forward(image)


def outside(cls: type[DITN_Real] = DITN_Real, **fields) -> DITN_Real:
    return cls(small(**fields).state_dict(), fields.get("patch_size", 8)).eval().requires_grad_(False)


@torch.no_grad()
def assert_right(module: nn.Module, image: Tensor, patch_size: int = 8) -> None:
    """What the module computes is the published formula of its present weights, in float64."""
    state = {key: value.double() for key, value in module.state_dict().items()}
    exact = published.network(state, image.double(), patch_size=patch_size)
    bound = BOUND * float(exact.abs().max())
    torch.testing.assert_close(module(image).double(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("cls", [DITN_Real, OnTheGrid])
@pytest.mark.parametrize(
    "fields", [{}, {"bias": True, "itls": 2, "ufones": 2, "upscale": 3}, {"patch_size": 4}], ids=str
)
def test_same_module_same_keys_other_forward(cls, fields) -> None:
    module = outside(cls, **fields)
    before, generator = {key: value.clone() for key, value in module.state_dict().items()}, torch.get_rng_state()
    assert ditn.accelerate(module) is module
    assert torch.equal(torch.get_rng_state(), generator)
    assert isinstance(module, cls)
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for size in ((1, 1), (5, 23), (16, 8)):
        assert_right(module, torch.rand(2, 3, *size), fields.get("patch_size", 8))
    assert module.calls == 0  # the trial was on a copy


def test_the_default_device_changes_nothing() -> None:
    module = outside()
    with torch.device("meta"):
        ditn.accelerate(module)
    assert_right(module, torch.rand(2, 3, 5, 23))


def test_it_runs_the_fused_operators(monkeypatch) -> None:
    module = ditn.accelerate(outside())
    called = []
    for backend in set(BACKENDS.values()):
        prepared = backend.prepared
        monkeypatch.setattr(
            backend, "prepared", lambda op, given, prepared=prepared: called.append(op.name) or prepared(op, given)
        )
    module(torch.rand(1, 3, 8, 8))
    assert {"image_head", "image_tail"} <= set(called)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles(dynamic: bool) -> None:
    module = ditn.accelerate(outside())
    compiled = torch.compile(module, dynamic=dynamic, backend="eager")
    for shape in ((1, 3, 16, 24), (2, 3, 9, 17), (1, 3, 1, 1)):
        image = torch.rand(shape)
        torch.testing.assert_close(compiled(image), module(image), rtol=0, atol=0)


def test_new_weights_conversions_and_training_are_seen() -> None:
    module, image = ditn.accelerate(outside()), torch.rand(1, 3, 9, 8)
    module(image)
    other = small(norm="tanh").state_dict()
    module.load_state_dict({key: 0.9 * value for key, value in other.items()})
    assert_right(module, image)
    module.load_state_dict({key: 1.1 * value for key, value in other.items()}, assign=True)
    assert_right(module, image)
    assert module.to(torch.bfloat16)(image.bfloat16()).dtype == torch.bfloat16
    module.float().requires_grad_()
    expected = torch.autograd.grad(published.network(dict(module.named_parameters()), image).sum(), module.parameters())
    module(image).sum().backward()
    for (name, parameter), want in zip(module.named_parameters(), expected, strict=True):
        bound = 1e-4 * float(want.abs().max())  # float32 through the network and back
        torch.testing.assert_close(parameter.grad, want, rtol=0, atol=bound, msg=name)


def test_copies_are_independent() -> None:
    module, image = ditn.accelerate(outside()), torch.rand(1, 3, 9, 8)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.sft.weight.mul_(2)
        assert_right(twin, image)
        assert not torch.equal(twin(image), module(image))
    assert_right(module, image)


@pytest.mark.usefixtures("compiler")
def test_compiled_graphs_follow_new_weights() -> None:
    module, image = ditn.accelerate(outside()), torch.rand(1, 3, 8, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    before = compiled(image)
    module.load_state_dict({key: 0.9 * value for key, value in module.state_dict().items()})
    after = compiled(image)
    torch.testing.assert_close(after, module(image))
    assert not torch.allclose(after, before)


def test_what_differs_is_said() -> None:
    with pytest.raises(ValueError, match=r"Neosr has neosr's attention.*flavor=\"neosr\""):
        ditn.accelerate(outside(Neosr))
    with pytest.raises(ValueError, match="Cyclic pads images in another way"):
        ditn.accelerate(outside(Cyclic))
    lying = outside(patch_size=4)
    lying.patch_size = 8
    with pytest.raises(ValueError, match="DITN_Real computes in patches of 4 x 4 pixels, but says 8"):
        ditn.accelerate(lying)
    strange = outside()
    strange.temperature = 3.0
    with pytest.raises(ValueError, match="has the keys of a DITN, but computes something else"):
        ditn.accelerate(strange)
    with pytest.raises(ditn.CheckpointError, match=r"Linear: has no sft\.weight"):
        ditn.accelerate(nn.Linear(3, 3))
    extra = outside()
    extra.UFONE.norm = nn.LayerNorm(4)
    with pytest.raises(ditn.CheckpointError, match=r"DITN_Real has unexpected UFONE\.norm\.bias, UFONE\.norm\.weight"):
        ditn.accelerate(extra)
    poisoned = outside()
    poisoned.sft.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ditn.CheckpointError, match=r"sft\.weight has 1 values of 324 that are not finite"):
        ditn.accelerate(poisoned)
    for module in (lying, strange, extra, poisoned):
        assert "forward" not in vars(module)


class Descriptor:
    """As spandrel's: it has a module and is none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def test_a_descriptor_is_taken_for_its_model() -> None:
    descriptor = Descriptor(outside())
    assert ditn.accelerate(descriptor) is descriptor
    assert_right(descriptor.model, torch.rand(1, 3, 5, 9))
    assert descriptor.model.calls == 0
    for wrong in (Descriptor(None), object(), "ditn-real-x4", descriptor.model.state_dict()):
        with pytest.raises(TypeError, match=f"expected a module, .* got {type(wrong).__name__}"):
            ditn.accelerate(wrong)


def test_from_gray_to_colour() -> None:
    """Spandrel's class gives three channels whatever goes in."""

    class Gray(DITN_Real):
        def forward(self, image: Tensor) -> Tensor:
            return published.network(dict(self.named_parameters()), image, outputs=3)

    module, image = ditn.accelerate(outside(Gray, in_channels=1, upscale=8)), torch.rand(1, 1, 5, 9)
    state = {key: value.double() for key, value in module.state_dict().items()}
    exact = published.network(state, image.double(), outputs=3)
    assert exact.shape == (1, 3, 40, 72)
    torch.testing.assert_close(module(image).double(), exact, rtol=0, atol=BOUND * float(exact.abs().max()))


def test_our_own_model_stays_as_it_is() -> None:
    model = small(ditn.DITN_Tiny)
    assert ditn.accelerate(model) is model
    assert "forward" not in vars(model)


def test_the_trial_takes_one_thread_and_gives_the_others_back() -> None:
    seen = set()

    class Watched(DITN_Real):
        def forward(self, image: Tensor) -> Tensor:
            seen.add(torch.get_num_threads())
            return super().forward(image)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        ditn.accelerate(outside(Watched))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="pads images in another way"):
            ditn.accelerate(outside(Cyclic))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


@pytest.mark.slow
def test_the_official_weights(shared) -> None:
    state = torch.load(shared / "golden" / "DITN_Real_x4.pth", weights_only=True)
    module = ditn.accelerate(DITN_Real(state).requires_grad_(False))
    assert_right(module, sample_image(37, 51))

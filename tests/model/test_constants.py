# SPDX-License-Identifier: Apache-2.0
"""Folded weights that are kept: made of whatever the parameters are, and never used when they no longer hold."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from networks import small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

import ditn
from benchmarks.oracle import published


@torch.no_grad()
def assert_published(model: ditn.DITN, image: Tensor) -> None:
    """Float64: what the model computes is the published formula of its present parameters."""
    expected = published.network(dict(model.named_parameters()), image)
    torch.testing.assert_close(model(image), expected, rtol=1e-8, atol=1e-8)


def copied(model: ditn.DITN) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def image64() -> Tensor:
    return torch.rand(1, 3, 8, 8, dtype=torch.float64)


def test_a_thread_that_comes_while_another_folds_again(monkeypatch) -> None:
    """It uses the old weights or the new ones, and keeps nothing of the old ones beside the new."""
    model, image, fold = small().double(), image64(), ditn.DITN.fold
    model(image)
    model.sft.weight.mul_(1.5)
    folding, other_is_done = threading.Event(), threading.Event()

    def slow(self: ditn.DITN):
        if threading.current_thread() is first:
            folding.set()
            assert other_is_done.wait(60)
        return fold(self)

    monkeypatch.setattr(ditn.DITN, "fold", slow)
    first = threading.Thread(target=lambda: model.requires_grad_(False)(image))
    first.start()
    assert folding.wait(60)
    assert_published(model, image)
    other_is_done.set()
    first.join()
    assert_published(model, image)


def test_refold_while_another_thread_folds(monkeypatch) -> None:
    model, image, fold = small().double(), image64(), ditn.DITN.fold

    def hidden_write(self: ditn.DITN):
        folded = fold(self)
        monkeypatch.undo()
        model.sft.weight.data.mul_(1.5)
        model.refold()
        return folded

    monkeypatch.setattr(ditn.DITN, "fold", hidden_write)
    model(image)
    assert_published(model, image)


@pytest.mark.usefixtures("compiler")
def test_compiled_graphs_follow_what_a_parent_loads() -> None:
    model, image = small().double(), image64()
    parent = nn.Sequential(model)
    compiled = torch.compile(parent, backend="eager")
    compiled(image)
    parent.load_state_dict({key: 0.5 * value for key, value in parent.state_dict().items()})
    expected = published.network(model.state_dict(), image)
    torch.testing.assert_close(compiled(image), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("compiler")
def test_training_compiles_as_one_graph() -> None:
    model, image = small(ditn.DITN_Tiny).double().requires_grad_(), image64()
    parameters = dict(model.named_parameters())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = torch.autograd.grad(compiled(image).sum(), parameters.values())
    expected = torch.autograd.grad(published.network(parameters, image).sum(), parameters.values())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_an_exported_program_has_the_weights_of_its_time() -> None:
    model, image = small().double(), image64()
    model(image)
    model.sft.weight.mul_(1.5)
    program = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(program(image), published.network(model.state_dict(), image), rtol=1e-8, atol=1e-8)


class LoRA(nn.Module):
    """As peft's layers: it shows the weight and bias of the layer inside."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.more = base, nn.Linear(base.in_features, base.out_features)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.more(x)


def wrapped(layer: nn.Module) -> nn.Module:
    return LoRA(layer)


def patched(layer: nn.Module) -> nn.Module:
    """As kohya's LoRA."""
    layer.forward = LoRA(layer).forward
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 2 * x
    return layer


def quantized(layer: nn.Module) -> nn.Module:
    """Its `weight` is a method, as torch.ao's is."""
    layer.__class__ = type("Linear8", (nn.Linear,), {"weight": lambda self: None})
    del layer._parameters["weight"]
    return layer


@pytest.mark.parametrize("change", [wrapped, patched, replaced, quantized], ids=lambda change: change.__name__)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_layer_that_would_be_ignored_is_named(change: Callable[[nn.Module], nn.Module], gradient: bool) -> None:
    model = small().requires_grad_(gradient)
    attention = model.UFONE[0].ITLs[0].attn
    attention.qkv = change(attention.qkv)
    name = type(attention.qkv).__name__
    with pytest.raises(TypeError, match=rf"^UFONE\.0\.ITLs\.0\.attn\.qkv: this {name} computes something else"):
        model(torch.rand(1, 3, 8, 8))


def test_another_layer_of_the_same_kind_is_taken() -> None:
    class Linear(nn.Linear):
        pass

    model, image = small().double(), image64()
    before = model.UFONE[0].ITLs[0].attn.qkv
    model.UFONE[0].ITLs[0].attn.qkv = Linear(before.in_features, before.out_features).double()
    assert_published(model, image)


@pytest.mark.parametrize("fused", [False, True])
def test_the_image_has_a_gradient_after_a_first_call_in_inference_mode(fused: bool) -> None:
    model, image = small(fused=fused).double(), image64()
    with torch.inference_mode():
        model(image)
    gradients = [
        torch.autograd.grad(run(given).square().sum(), given)[0]
        for run in (model, lambda x: published.network(model.state_dict(), x))
        for given in [image.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_weights_that_are_results_of_others() -> None:
    model, image = small().double(), image64()
    with torch.enable_grad():
        others = {key: 1.5 * value.clone().requires_grad_() for key, value in model.named_parameters()}
    after = torch.func.functional_call(model, others, (image,))
    torch.testing.assert_close(after, published.network(others, image), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_pruned_layers_follow_weight_and_mask() -> None:
    model, image = small().double(), image64()
    whole = copied(model)
    prune.l1_unstructured(model.sft, "weight", 0.5)

    def assert_masked(factor: float) -> None:
        weight = factor * whole["sft.weight"] * model.sft.weight_mask
        expected = published.network(whole | {"sft.weight": weight}, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-8, atol=1e-8)

    assert_masked(1)
    model.sft.weight_orig.mul_(1.5)
    assert_masked(1.5)
    prune.l1_unstructured(model.sft, "weight", 0.5)  # half of what was left
    assert int(model.sft.weight_mask.sum()) == model.sft.weight_mask.numel() // 4
    assert_masked(1.5)


def test_pruned_layers_train() -> None:
    model, image = small().double(), image64()
    whole = copied(model)
    prune.l1_unstructured(model.sft, "weight", 0.5)
    original, mask = model.sft.weight_orig.requires_grad_(), model.sft.weight_mask
    for _ in range(2):  # its hook makes the graph behind the weight afresh
        (found,) = torch.autograd.grad(model(image).sum(), original)
    (expected,) = torch.autograd.grad(published.network(whole | {"sft.weight": original * mask}, image).sum(), original)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@torch.no_grad()
def test_older_norms_of_weights() -> None:
    model, image = small().double(), image64()
    whole = copied(model)
    nn.utils.weight_norm(model.sft)
    for factor in (1, 1.5):
        model.sft.weight_g.mul_(factor)
        expected = published.network(whole | {"sft.weight": factor * whole["sft.weight"]}, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-8, atol=1e-8)


def test_hooks_may_hold_anything() -> None:
    model, image = small().double(), image64()
    lock, seen = threading.Lock(), []
    model.register_forward_hook(lambda *_, lock=lock: seen.append(lock.locked()))
    model.sft.lock = lock
    assert_published(model, image)
    assert seen == [False]


@torch.no_grad()
def test_stand_ins_are_not_kept() -> None:
    model, image = small().double(), image64()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(image)).shape == (1, 3, 16, 16)
    assert_published(model, image)
    with torch.device("meta"):
        empty = ditn.DITN(config=model.config).eval()
        assert empty(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)
    with FakeTensorMode():
        assert ditn.DITN(config=model.config).eval()(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)


def replicated(model: ditn.DITN) -> ditn.DITN:
    """What torch.nn.parallel.replicate does, on a CPU: parameters become results of the original's, and attributes."""
    parts = {part: part._replicate_for_data_parallel() for part in model.modules()}
    for part, twin in parts.items():
        for name, child in part._modules.items():
            setattr(twin, name, child and parts[child])
        for name, parameter in part._parameters.items():
            setattr(twin, name, None if parameter is None else 1.5 * parameter)
    return parts[model]


def test_replicas_of_data_parallel() -> None:
    model, image = small().double(), image64()
    assert_published(model, image)
    expected = published.network({key: 1.5 * value for key, value in model.state_dict().items()}, image)
    with torch.no_grad():  # not the weights that the original keeps, perhaps on another device
        torch.testing.assert_close(replicated(model)(image), expected, rtol=1e-8, atol=1e-8)
    model.train().requires_grad_()
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(replicated(model)(image).sum(), parameters.values())
    formula = published.network({key: 1.5 * value for key, value in parameters.items()}, image)
    for ours, theirs in zip(found, torch.autograd.grad(formula.sum(), parameters.values()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

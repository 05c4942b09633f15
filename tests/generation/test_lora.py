"""Adapters: nothing at first, beside weights that never change, and by hand what merged weights would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generation.diffusers_prior import DiffusersPrior, load_prior
from generation.distill import distil, source_loss
from generation.distill_kernel import Prompts
from generation.guidance import PRESETS
from generation.lora import LoraConfig, LoraModel, adapted_layers
from generation.networks import camera_numbers
from generation.priors import Adaptable, Condition, Place, noise_of_velocity, noised
from generation.trained_prior import TrainedPrior
from scene.errors import InputError
from tests.generation import small_pipelines
from tests.generation.prior_toys import lively, toy_cameras, toy_network

ADAPTED = {  # some of the layers of each pipeline
    "stable_diffusion": {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"},
    "multi_view": {"up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"},
    "deepfloyd": {"down_blocks.1.attentions.0.add_k_proj", "mid_block.attentions.0.to_out.0"},
    "stable_diffusion_3": {"transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.attn.to_v"},
    "trained": {"keys", "down.0.attention.qkv"},
}


@pytest.fixture(scope="module")
def prior_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adaptable]:
    """By name: the trained toy, or a pipeline of diffusers with random weights; each made once."""
    made: dict[str, Adaptable] = {}

    def find(name: str) -> Adaptable:
        if name not in made:
            toy = name == "trained"
            made[name] = TrainedPrior(toy_network()) if toy else loaded(name, tmp_path_factory.mktemp(name))
        return made[name]

    return find


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> DiffusersPrior:
    options = ("v_prediction",) if name == "stable_diffusion" else ()
    getattr(small_pipelines, name)(folder, *options)
    return load_prior(str(folder), dtype=dtype)


def asked(prior: Adaptable, seed: int = 0) -> tuple[Tensor, Tensor, list[Condition]]:
    """Four noisy pictures at a time they share, and two conditions seen by cameras."""
    z_t = torch.randn(4, *prior.shape, generator=torch.Generator().manual_seed(seed))
    texts: tuple[str | None, ...] = ("a red chair",) * 4
    return z_t, torch.full((4,), 0.4), [Condition(texts, toy_cameras()), Condition((None,) * 4, toy_cameras())]


def model_of(prior: Adaptable, config: LoraConfig | None = None) -> LoraModel:
    return LoraModel(prior, config or LoraConfig(), torch.Generator().manual_seed(0))


def stirred(model: LoraModel) -> LoraModel:
    """With numbers where it starts with zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters.values():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return model


@pytest.mark.parametrize("name", list(ADAPTED))
@torch.no_grad()
def test_at_first_the_adapted_network_is_the_priors_own(name: str, prior_of: Callable[[str], Adaptable]) -> None:
    prior = prior_of(name)
    model, (z_t, t, conditions) = model_of(prior), asked(prior)
    own = prior.predict(z_t, t, conditions)
    assert torch.equal(model.predict(z_t, t, conditions), own)
    changed = stirred(model).predict(z_t, t, conditions)
    assert all(float((changed - own)[k].abs().max()) > 1e-3 for k in range(2))
    assert torch.equal(prior.predict(z_t, t, conditions), own)  # beside it nothing is left in the network
    assert ADAPTED[name] <= set(model.adapters.layers)


@pytest.mark.parametrize("name", ["trained", "stable_diffusion", "multi_view"])
def test_it_learns_the_renders_and_the_prior_stays_as_it_is(name: str, prior_of: Callable[[str], Adaptable]) -> None:
    prior = prior_of(name)
    network = prior.adaptable().network
    z_t, t, conditions = asked(prior)
    before, own = copy.deepcopy(network.state_dict()), prior.predict(z_t, t, conditions)
    renders = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, *prior.shape)
    # the multi-view network never goes without cameras, so that none may be dropped
    config = LoraConfig(layers="all", rate=1e-2, camera_drop=1.0 if name == "multi_view" else 0.1)
    model = model_of(prior, config)

    def loss() -> float:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            losses = [source_loss(model, prior, renders, conditions[0], generator, 0.0) for _ in range(8)]
        return float(torch.stack(losses).mean())

    first, generator = loss(), torch.Generator().manual_seed(4)
    for _ in range(10):
        model.learn(renders, conditions[0], generator)
    assert loss() < 0.85 * first
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(prior.predict(z_t, t, conditions), own)


def merged(model: LoraModel, network: nn.Module) -> nn.Module:
    """A copy of the network with W + B A for W."""
    network = copy.deepcopy(network)
    layers = dict(network.named_modules())
    with torch.no_grad():
        for name, down in model.adapters.down.items():
            up, layer = model.adapters.up[name], layers[name]
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            layer.weight += (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    return network


def vsd(prior: Adaptable, model: LoraModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """VSD's gradient, and the z, t and noise that it was found with."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    z_t, _, (text, null) = asked(prior)
    source = Condition(("a chair",) * 4, toy_cameras())
    generator = torch.Generator().manual_seed(9)
    found = distil(
        prior, images, Prompts((text,), null, source=source), PRESETS["vsd"], step=0, steps=9, generator=generator,
        source=model,
    )  # fmt: skip
    generator.manual_seed(9)
    torch.rand(4 // prior.views, generator=generator)
    return found.gradient, found.z, found.t, torch.randn(z_t.shape, generator=generator)


@pytest.mark.parametrize("layers", ["attention", "all"])
@torch.no_grad()
def test_vsds_gradient_of_the_trained_prior_is_that_of_merged_weights(layers: Any) -> None:
    prior = TrainedPrior(toy_network())
    model = stirred(model_of(prior, LoraConfig(layers=layers)))
    found, z, t, noise = vsd(prior, model)
    second = TrainedPrior(merged(model, prior.network))  # type: ignore[arg-type]
    a, s = prior.levels(t)
    z_t, conditions = noised(z, noise, a, s), asked(prior)[2]
    text, null = prior.predict(z_t, t, conditions)
    (source,) = second.predict(z_t, t, [Condition(("a chair",) * 4, toy_cameras())])
    wanted = (s * s).view(-1, 1, 1, 1) * (null + 7.5 * (text - null) - source)
    scale = float(wanted.abs().max())
    assert float((source - text).abs().max()) > 1e-2
    torch.testing.assert_close(found / scale, wanted / scale, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vsds_gradient_of_stable_diffusion_is_that_of_its_own_modules(tmp_path: Path) -> None:
    # it predicts v, of which the second model's noise is made as well
    prior = loaded("stable_diffusion", tmp_path, torch.float64)
    model = stirred(model_of(prior))
    found, z, t, noise = vsd(prior, model)
    a, s = prior.levels(t)
    z_t, steps, unet = noised(z, noise, a, s), prior.steps(t), prior.parts.network
    context = {text: prior.parts.words(text or "").context.expand(4, -1, -1) for text in ("a red chair", "a chair", "")}
    second: Any = merged(model, unet)
    assert model.pose is not None
    p = model.pose.parameters
    second.class_embedding = nn.Sequential(
        nn.Linear(16, len(p["in"])), nn.SiLU(), nn.Linear(len(p["out"]), len(p["out"]))
    )
    for layer, weight, bias in ((0, "in", "bias_in"), (2, "out", "bias")):
        second.class_embedding[layer].weight, second.class_embedding[layer].bias = p[weight], p[bias]
    seen = torch.stack([camera_numbers(camera) for camera in toy_cameras()]).double()

    def asks(network: Any, text: str, **labels: Tensor) -> Tensor:
        v = network(z_t.double(), steps, encoder_hidden_states=context[text], **labels).sample
        return noise_of_velocity(z_t, v, a, s, "ddpm")

    text, null = asks(unet, "a red chair"), asks(unet, "")
    wanted = (s * s).view(-1, 1, 1, 1) * (null + 7.5 * (text - null) - asks(second, "a chair", class_labels=seen))
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found / scale, (wanted / scale).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_single_views_are_told_the_camera_or_that_there_is_none(prior_of: Callable[[str], Adaptable]) -> None:
    prior = prior_of("stable_diffusion")
    model, (z_t, t, (seen, _)) = stirred(model_of(prior)), asked(prior)
    around = Condition(seen.texts, toy_cameras()[::-1])
    blind = Condition(seen.texts)
    found = model.predict(z_t, t, [seen, around, blind])
    assert all(float((found[i] - found[j]).abs().max()) > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(found[1], model.predict(z_t, t, [around])[0], rtol=1e-4, atol=1e-5)


def test_half_precision_has_the_gradients_of_single(prior_of: Callable[[str], Adaptable], tmp_path: Path) -> None:
    small_pipelines.stable_diffusion(tmp_path)
    gradients = []
    for dtype in (torch.float32, torch.float16):
        prior = load_prior(str(tmp_path), dtype=dtype)
        model = stirred(model_of(prior))
        z_t, _, (condition, _) = asked(prior)
        model.learn(z_t, condition, torch.Generator().manual_seed(0))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters.values() if p.grad is not None]))
        assert all(bool(p.isfinite().all()) and p.dtype == torch.float32 for p in model.parameters.values())
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.02  # 11 bits through 20 layers


def test_a_network_without_such_layers_is_refused_in_one_line() -> None:
    network = lively(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(InputError, match=r"projections of attention, and Sequential has none") as caught:
        adapted_layers(network, "attention")
    assert "\n" not in str(caught.value) and list(adapted_layers(network, "all")) == ["0"]
    prior = TrainedPrior(toy_network())
    prior.adaptable = lambda: Place(nn.ReLU())  # type: ignore[method-assign]
    with pytest.raises(InputError, match="ReLU has none"):
        model_of(prior, LoraConfig(layers="all"))
    with pytest.raises(InputError, match="rank"):
        LoraConfig(rank=0)

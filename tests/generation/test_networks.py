"""The denoiser: which frames see which, what its inputs do, and its building blocks against known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from generation.captions import PAD, TOKENS
from generation.networks import (
    CPU_LAYOUT,
    GPU_LAYOUT,
    LEAST_TIME,
    TOY_LAYOUT,
    MultiViewUNet,
    TextEncoder,
    attend,
    camera_numbers,
    camera_of_numbers,
    update_average,
    velocity_of,
)
from generation.views import orbit_camera
from tests.generation.prior_toys import toy_given, toy_network


def frames(sets: int, views: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(sets, views, 3, 8, 8, generator=g)
    return z, torch.rand(sets, 1, generator=g).expand(-1, views).contiguous()


def test_views_of_a_set_see_each_other_and_sets_do_not() -> None:
    network, given = toy_network(), toy_given(2, 4)
    z, t = frames(2, 4)
    before = network(z, t, given)
    changed = z.clone()
    changed[0, 0] += 1
    moved = (network(changed, t, given) - before).abs().amax((2, 3, 4))  # [set, view]
    assert float(moved[0].min()) > 1e-3  # every view of the set answers to the change in its first
    assert float(moved[1].max()) == 0


def test_sets_of_one_frame_are_pictures_that_do_not_see_each_other() -> None:
    network, given = toy_network(), toy_given(4, 1)
    z, t = frames(4, 1)
    before = network(z, t, given)
    changed = z.clone()
    changed[0] += 1
    moved = (network(changed, t, given) - before).abs().amax((1, 2, 3, 4))
    assert float(moved[0]) > 1e-3
    assert float(moved[1:].max()) == 0


def test_permuting_views_with_their_cameras_permutes_what_comes_out() -> None:
    network, given = toy_network(), toy_given(3, 4)
    z, t = frames(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = network(z[:, order], t, replace(given, cameras=given.cameras[:, order]))
    # Sums over the tokens come in another order: float32 rounding.
    torch.testing.assert_close(permuted, network(z, t, given)[:, order], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(network(z[:, order], t, given), permuted, atol=1e-3)  # cameras do tell views apart


def test_a_camera_counts_only_where_it_is_known() -> None:
    network, given = toy_network(), toy_given(2, 4)
    z, t = frames(2, 4)
    unknown = replace(given, cameras_known=torch.zeros(2, 4))
    other = {"cameras": torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(9))}
    assert torch.equal(network(z, t, unknown), network(z, t, replace(unknown, **other)))
    assert not torch.allclose(network(z, t, given), network(z, t, replace(given, **other)), atol=1e-3)


def test_a_reference_picture_reaches_every_view_and_is_not_handed_back() -> None:
    network, given = toy_network(), toy_given(2, 4)
    z, t = frames(2, 4)
    pictured = replace(
        given,
        features=torch.randn(2, 5, TOY_LAYOUT.image),
        reference=torch.zeros(2, 3, 8, 8),
        reference_camera=torch.zeros(2, 16),
        reference_known=torch.zeros(2),
    )
    first, second = network(z, t, pictured), network(z, t, replace(pictured, reference=torch.ones(2, 3, 8, 8)))
    assert first.shape == z.shape
    assert float((first - second).abs().amax((2, 3, 4)).min()) > 1e-4
    features = network(z, t, replace(pictured, features=torch.randn(2, 5, TOY_LAYOUT.image)))
    assert float((first - features).abs().amax((2, 3, 4)).min()) > 1e-5
    with pytest.raises(ValueError, match="set of one frame"):
        network(z[:, :1], t[:, :1], replace(pictured, cameras=given.cameras[:, :1], cameras_known=torch.ones(2, 1)))


def test_words_reach_the_output_and_other_sets_words_do_not() -> None:
    network, given = toy_network(), toy_given(2, 4)
    z, t = frames(2, 4)
    words = given.words.clone()
    words[0] = PAD
    moved = (network(z, t, replace(given, words=words)) - network(z, t, given)).abs().amax((1, 2, 3, 4))
    assert float(moved[0]) > 1e-3
    assert float(moved[1]) == 0


def test_attention_is_its_definition() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 32, generator=g, dtype=torch.float64) for n in (7, 5, 5))
    by_head = [x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (q, k, v)]
    weights = (by_head[0] @ by_head[1].transpose(-1, -2) / 8**0.5).softmax(-1)
    wanted = (weights @ by_head[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v, 8), wanted)
    rough = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 8)  # is written out on a CPU
    torch.testing.assert_close(rough.double(), wanted, atol=0.03, rtol=0.03)


def test_pooled_words_leave_padding_out_and_no_caption_pools_to_nothing() -> None:
    encoder = TextEncoder(10, 16, 0, 16)  # no layers: a word's vector is its embedding and its place
    words = torch.full((2, TOKENS), PAD)
    words[0, :2] = torch.tensor([3, 4])
    tokens, pooled = encoder(words)
    torch.testing.assert_close(pooled[0], tokens[0, :2].mean(0))
    assert not pooled[1].any()


def test_the_layouts_have_the_sizes_they_are_meant_to_have() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in MultiViewUNet(layout).parameters()) for layout in (CPU_LAYOUT, GPU_LAYOUT)]
    assert [round(size / 1e6, 1) for size in sizes] == [4.0, 15.5]


def test_the_gpu_layout_also_runs() -> None:
    small = replace(GPU_LAYOUT, size=16, channels=(16, 32, 32), head=16, context=16, image=16)
    network, given = toy_network(small), toy_given(1, 4)
    z = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert network(z, torch.full((1, 4), 0.5), given).shape == z.shape


def test_a_camera_survives_its_numbers_and_distance_alone_shows_in_the_lens() -> None:
    camera = orbit_camera(70.0, 20.0, 42.0, 2.4, 32)
    back = camera_of_numbers(camera_numbers(camera), 32)
    torch.testing.assert_close(back.c2w, camera.c2w)
    torch.testing.assert_close(back.K, camera.K)
    near, far = (camera_numbers(orbit_camera(70.0, 20.0, 42.0, d, 32)) for d in (2.0, 3.0))
    torch.testing.assert_close(near[:13], far[:13])
    assert float(near[13]) != float(far[13])


def test_velocity_is_noise_less_picture_and_bounded_near_the_clean_end() -> None:
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 8, 8, generator=g), torch.randn(2, 4, 3, 8, 8, generator=g)
    t = torch.full((2, 4), 0.3)
    torch.testing.assert_close(velocity_of(clean, 0.7 * clean + 0.3 * noise, t), noise - clean, atol=1e-5, rtol=1e-5)
    small = torch.full((2, 4), 0.001)
    wrong = velocity_of(clean + 1, 0.999 * clean + 0.001 * noise, small) - velocity_of(clean, 0.999 * clean, small)
    assert float(wrong.abs().max()) < 1.2 / LEAST_TIME


def test_the_average_of_weights_follows_its_definition() -> None:
    average, network = toy_network(), toy_network(seed=5)
    name = "conv_in.weight"
    first, second = average.state_dict()[name].clone(), network.state_dict()[name].clone()
    update_average(average, network, 0.9)
    update_average(average, network, 0.9)
    torch.testing.assert_close(average.state_dict()[name], 0.81 * first + 0.19 * second)


def test_bfloat16_products_change_little() -> None:
    network, given = toy_network(), toy_given(2, 4)
    z, t = frames(2, 4)
    wanted = network(z, t, given)
    with torch.autocast("cpu", torch.bfloat16):
        got = network(z, t, given)
    assert got.dtype == torch.float32
    assert float((got - wanted).square().mean().sqrt()) < 0.03 * float(
        wanted.square().mean().sqrt()
    )  # 8 bits, 14 layers

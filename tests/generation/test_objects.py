"""Objects of captions: what is said can be seen, what is held out is never drawn, the same seed is the same object."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from generation import caption_words as words
from generation.captions import Phrase, held_out_triples, parse, sample_caption
from generation.draws import Draw
from generation.object_render import ObjectPictures, render_objects
from generation.objects import RADIUS, make_object, resolve_colors
from generation.shapes import Material, ObjectModel
from generation.views import orbit_camera, orthogonal_cameras


def made(text: str, seed: int = 0) -> ObjectModel:
    return make_object(parse(text), torch.Generator().manual_seed(seed))


def around(text: str, seed: int = 0, size: int = 48) -> ObjectPictures:
    return render_objects([made(text, seed)], [orthogonal_cameras(0.0, 15.0, 40.0, 2.4, size)])


def nearest_color(rgb: Tensor) -> list[str]:
    """Names of the colours that [P, 3] are nearest to."""
    table = torch.tensor(list(words.COLORS.values()))
    names = list(words.COLORS)
    return [names[k] for k in torch.cdist(rgb, table).argmin(1).tolist()]


@pytest.mark.parametrize("noun", words.NOUNS)
def test_every_class_is_a_few_primitives_within_the_radius(noun: str) -> None:
    for seed in range(4):
        model = made(f"a {noun}", seed)
        assert 2 <= len(model) <= 24 and set(model.instance.tolist()) == {0}
        low, high = model.bounds()
        torch.testing.assert_close(low, -high, atol=1e-5, rtol=0)
        assert 0.8 * RADIUS < model.reach() <= 0.89 * RADIUS
        assert set(words.PARTS[noun]) <= {name.split(" ", 1)[1] for name in model.parts} or noun == "house"
        assert bool((model.size[:, :2] > 0).all()) and bool((model.rgb >= 0).all()) and bool((model.rgb <= 1).all())
        axes = model.world_from_primitive[:, :3, :3]
        torch.testing.assert_close(axes @ axes.transpose(1, 2), torch.eye(3).expand_as(axes), atol=1e-5, rtol=0)


def test_the_same_seed_makes_the_same_bytes() -> None:
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    for _ in range(20):
        first, second = (make_object(sample_caption(g), g) for g in generators)
        for one in fields(ObjectModel):
            a, b = getattr(first, one.name), getattr(second, one.name)
            assert a == b if one.name == "parts" else torch.equal(a, b)
    assert not torch.equal(made("a tree", 1).size, made("a tree", 2).size)


@pytest.mark.parametrize("color", words.COLORS)
def test_a_coloured_chair_has_its_colour_all_over(color: str) -> None:
    seen = around(f"a {color} chair")
    albedo = seen.albedo[0].permute(0, 2, 3, 1)[seen.alpha[0, :, 0] > 0]
    assert set(nearest_color(albedo)) == {color}
    rgb = seen.rgb[0].permute(0, 2, 3, 1)[seen.alpha[0, :, 0] > 0]
    ratio = (rgb + 1e-3) / (torch.tensor(words.COLORS[color]) + 1e-3)  # light only darkens: the hue stays
    assert float((ratio.amax(1) / ratio.amin(1) < 1.2).float().mean()) > 0.99
    assert float((ratio.mean(1) > 0.55).float().mean()) > 0.99


@pytest.mark.parametrize("noun", words.NOUNS)
def test_parts_have_the_colours_that_are_said(noun: str) -> None:
    first, second = words.PARTS[noun][:2]
    model = made(f"a {noun} with yellow {first} and purple {second}")
    for part, color in ((first, "yellow"), (second, "purple")):
        rows = model.is_part(f"{noun} {part}")
        assert bool(rows.any()) and set(nearest_color(model.rgb[rows])) == {color}


def test_colours_that_nobody_names_are_never_a_held_out_pair() -> None:
    draw = Draw(torch.Generator().manual_seed(0))
    seen = set()
    for noun in words.CLASSES:
        first, second = words.PARTS[noun][:2]
        for phrase in [Phrase(noun)] * 60 + [Phrase(noun, parts=((first, color),)) for color in words.COLORS] * 4:
            colors = resolve_colors(phrase, draw)
            assert (noun, colors[first], colors[second]) not in held_out_triples()
            seen.add((noun, colors[first], colors[second]))
    assert len(seen) > 300
    noun, first, second = sorted(held_out_triples())[0]
    asked = Phrase(noun, parts=tuple(zip(words.PARTS[noun][:2], (first, second), strict=True)))
    assert tuple(resolve_colors(asked, draw).values())[:2] == (first, second)


def test_sizes_are_in_order_and_proportions_show() -> None:
    reach = [made(f"a {size} mug").reach() for size in ("tiny", "small", "", "large", "huge")]
    assert reach == sorted(reach) and reach[-1] <= RADIUS + 1e-5 and reach[0] < 0.5 * RADIUS

    def slimness(word: str) -> float:
        low, high = made(f"a {word} bottle", 1).bounds()
        return float((high - low)[2] / (high - low)[1])

    plain = slimness("")
    assert slimness("tall") > 1.2 * plain > plain > slimness("wide") * 1.2 and slimness("thin") > plain > slimness(
        "short"
    )


@pytest.mark.parametrize("material", words.MATERIALS)
def test_materials_are_those_of_the_coloured_parts(material: str) -> None:
    model = made(f"a {material} car")
    wheels = model.is_part("wheels")
    assert set(model.material[model.is_part("car body")].tolist()) == {int(Material[material.upper()])}
    assert set(model.material[wheels].tolist()) == {int(Material.MATTE)}
    metal = model.metal_roughness[model.is_part("car body"), 0]
    assert bool((metal == (material == "metallic")).all())


def test_counts_stand_in_a_row_without_touching() -> None:
    for text, count in (("two red chairs", 2), ("three mugs", 3)):
        model = made(text)
        spans = [model.select(model.instance == k).bounds() for k in range(count)]
        assert int(model.instance.max()) == count - 1
        for (_, high), (low, _) in itertools.pairwise(spans):
            assert float(high[1]) < float(low[1])


def test_next_to_is_beside_on_the_same_ground_and_on_top_is_above() -> None:
    model = made("a lamp next to a table")
    (low, high), (other_low, other_high) = (model.select(model.instance == k).bounds() for k in (0, 1))
    assert float(high[1]) < float(other_low[1]) and float(low[2]) == pytest.approx(float(other_low[2]), abs=1e-5)
    model = made("a mug on top of a table")
    (low, _), (_, other_high) = (model.select(model.instance == k).bounds() for k in (0, 1))
    assert float(low[2]) == pytest.approx(float(other_high[2]), abs=1e-4)
    model = made("a mug on top of a chair")
    mug, seat = (model.select(model.is_part(name)).bounds() for name in ("mug body", "seat"))
    assert float(mug[0][2]) == pytest.approx(float(seat[1][2]), abs=1e-4)


def test_asymmetric_parts_are_seen_from_their_side_only() -> None:
    azimuths = [0.0, 40.0, -40.0, 150.0, 180.0, -150.0]
    cameras = [[orbit_camera(azimuth, 10.0, 40.0, 2.4, 64) for azimuth in azimuths]]
    for text, part in (("a snowman", "nose"), ("a car", "lights"), ("a house", "door"), ("a robot", "eyes")):
        for seed in range(3):
            model = made(text, seed)
            seen = render_objects([model], cameras)
            wanted = model.is_part(f"{text[2:]} {part}").nonzero()[:, 0]
            counts = torch.isin(seen.primitive[0, :, 0], wanted).flatten(1).sum(1).tolist()
            assert min(counts[:3]) >= 2 and max(counts[3:]) == 0, (text, counts)


INTERACTIONS = [(verb, thing) for verb, things in words.INTERACTIONS.items() for thing in things]


@pytest.mark.parametrize(("verb", "thing"), INTERACTIONS)
def test_persons_touch_what_they_do_something_with_and_do_not_sink_into_it(verb: str, thing: str) -> None:
    model = made(f"a person {verb} a {thing}", 1)
    human, other = (model.select(model.instance == k) for k in (0, 1))
    assert human.parts[0].startswith("person") and model.reach() <= RADIUS + 1e-5
    generator = torch.Generator().manual_seed(0)
    spots = human.world_from_primitive[:, :3, 3].repeat(400, 1) + 0.0
    spots = spots + human.size[:, :1].repeat(400, 1) * (2 * torch.rand(spots.shape, generator=generator) - 1)
    inside = human.inside(spots)
    both = float((other.inside(spots) & inside).sum() / inside.sum())
    gap = float(other.distance(spots[inside]).min())
    assert gap < 0.05, "they do not touch"
    assert both < (0.12 if verb in ("holding", "riding") else 0.05)
    if verb in ("sitting on", "standing on", "riding"):
        assert float(human.world_from_primitive[0, 2, 3]) > float(other.world_from_primitive[0, 2, 3])

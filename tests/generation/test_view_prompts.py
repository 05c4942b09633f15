"""Which view a prompt names, and Perp-Neg's weights."""

from __future__ import annotations

import pytest

from generation.view_prompts import PerpNeg, ViewRule, perp_neg_weights, prompts_for
from generation.views import orbit_camera


def cameras(*azimuths: float, elevation: float = 15.0):
    return [orbit_camera(azimuth, elevation, 40.0, 2.7, 8) for azimuth in azimuths]


def test_each_picture_is_told_its_view() -> None:
    found = prompts_for("a car", cameras(0, 40, 90, -170), ViewRule(45.0), negative="blurry")
    views = ["front", "front", "side", "back"]
    assert found.texts[0].texts == tuple(f"a car, {view} view" for view in views)
    assert found.null.texts == (None,) * 4 and found.null.cameras == found.texts[0].cameras
    assert found.negative is not None and found.negative.texts == ("blurry",) * 4
    assert prompts_for("a car", cameras(40), ViewRule(30.0)).texts[0].texts == ("a car, side view",)
    assert prompts_for("a car", cameras(0, elevation=70), ViewRule()).texts[0].texts == ("a car, overhead view",)
    assert prompts_for("a car", cameras(0), ViewRule(words=False)).texts[0].texts == ("a car",)
    assert found.source is not None and found.source.texts == ("a car",) * 4


def test_perp_neg_weights_vanish_for_the_view_that_is_wanted() -> None:
    mix, away = perp_neg_weights(0.0, 0.0, PerpNeg())
    assert mix == {"front": 1.0, "side": 0.0} and away["front"] == pytest.approx(0, abs=1e-3)
    mix, away = perp_neg_weights(90.0, 0.0, PerpNeg())
    assert mix["side"] == 1 and away["side"] == pytest.approx(0, abs=1e-3) and away["front"] < -1
    mix, away = perp_neg_weights(180.0, 0.0, PerpNeg())
    assert mix["back"] == 1 and away["front"] < -1.9 and away["side"] < -0.3
    assert perp_neg_weights(0.0, 70.0, PerpNeg()) == ({"overhead": 1.0}, {})


@pytest.mark.parametrize("azimuth", [90.0, -90.0, 180.0, -180.0])
def test_the_mix_of_views_is_continuous_and_the_same_on_both_sides(azimuth: float) -> None:
    near = [perp_neg_weights(azimuth + d, 0.0, PerpNeg())[0] for d in (-1e-4, 0.0, 1e-4)]
    for word in ("front", "side", "back"):
        values = [mix.get(word, 0.0) for mix in near]
        assert max(values) - min(values) < 1e-3
    for mirrored in (30.0, 120.0):
        assert perp_neg_weights(mirrored, 0.0, PerpNeg()) == perp_neg_weights(-mirrored, 0.0, PerpNeg())


def test_prompts_hold_the_weights_of_every_picture() -> None:
    found = prompts_for("a car", cameras(45, 135), ViewRule(perp_neg=PerpNeg()))
    assert [condition.texts for condition in found.texts] == [
        (f"a car, {v} view",) * 2 for v in ("front", "side", "back")
    ]
    assert found.mix is not None and found.repel is not None
    assert found.mix.T.flatten().tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0, 0.5, 0.5], abs=1e-4)
    for n, azimuth in enumerate((45.0, 135.0)):
        away = perp_neg_weights(azimuth, 0.0, PerpNeg())[1]
        wanted = [away.get(word, 0.0) for word in ("front", "side", "back")]
        assert found.repel[:, n].tolist() == pytest.approx(wanted, abs=1e-4)

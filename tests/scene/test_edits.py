"""Edits: replayed alike on splats, meshes, cameras and points; undone by taking them off the list; never trusted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene import edits
from scene.cameras import Camera
from scene.edits import Crop, Edits, Measure, RemoveFloaters, Scale, Up
from scene.errors import InputError, MaquetteError
from scene.mesh import Mesh
from scene.rasterize import RasterSettings, render
from tests.scene.splats import a_camera, random_gaussians

BOX = Crop((-0.5, -0.6, -0.7), (0.8, 0.9, 1.0))
ALL = Edits((RemoveFloaters(300, (3, 7, 299)), BOX, Up((0.3, -0.5, 0.2)), Scale(2.5), Measure((0, 0, 0), (0, 3, 4), 2)))


def picture(gaussians, camera: Camera) -> torch.Tensor:
    return render(gaussians, camera, settings=RasterSettings(near=1e-4)).rgb


@pytest.mark.parametrize("kind", [Up((0.3, -0.5, 0.2)), Up((0, 0, -1)), Scale(7.5), Measure((1, 0, 0), (0, 1, 0), 0.2)])
def test_the_edited_camera_sees_the_edited_scene_as_before(kind):
    scene, camera, done = random_gaussians(300, dtype=torch.float64), a_camera(dtype=torch.float64), Edits((kind,))
    before, after = picture(scene, camera), picture(done.of_gaussians(scene), done.of_camera(camera))
    assert (before - after).abs().max() < 1e-4  # spherical harmonics turn with the scene: degree 3 is in the picture
    assert before.std() > 0.05


def test_the_camera_before_undoes_the_edited_one():
    camera = a_camera(dtype=torch.float64)
    assert (ALL.camera_before(ALL.of_camera(camera)).c2w - camera.c2w).abs().max() < 1e-12
    assert (ALL.of_camera(camera).c2w - camera.c2w).abs().max() > 0.1


def test_meshes_points_and_splats_end_in_the_same_places():
    scene = random_gaussians(300)
    faces = np.arange(300, dtype=np.int32).reshape(-1, 3)
    moves = Edits((Up((1, 2, -0.5)), Scale(3.0), Measure((0, 0, 1), (0, 0, 3), 5.0), Up((0, 1, 0))))
    mesh = moves.of_mesh(Mesh(scene.means.double().numpy(), faces))
    means = moves.of_gaussians(scene).means.numpy()
    points = moves.of_points(torch.cat([scene.means, torch.ones(300, 3)], dim=1))
    assert np.abs(mesh.vertices - means).max() < 1e-5 and np.abs(points[:, :3].numpy() - means).max() < 1e-5
    assert (points[:, 3:] == 1).all()
    cropped = Edits((BOX,))
    left = cropped.of_gaussians(scene).means
    assert 20 < len(left) < 280 and torch.equal(left, cropped.of_points(scene.means))
    assert (left >= torch.tensor(BOX.low)).all() and (left <= torch.tensor(BOX.high)).all()


def test_up_becomes_z_and_a_scale_makes_metres():
    assert torch.allclose(Edits((Up((0, -2, 0)),)).of_points(torch.tensor([[0.0, -2, 0]])), torch.tensor([[0.0, 0, 2]]))
    up = torch.tensor([0.0, 1, 0])
    assert Edits((Scale(2.0),)).of_up(up) is up and Edits().of_up(None) is None
    turned = Edits((Up((0, 1, 0)),)).of_up(up)
    assert turned is not None and turned.tolist() == [0, 0, 1]
    assert Edits((Scale(2.0),)).metric(False) and not Edits((Up((0, 1, 0)),)).metric(False) and Edits().metric(True)


def test_a_measure_makes_two_points_as_far_apart_as_told():
    done = Edits((Scale(10.0), Measure((1, 1, 1), (1, 4, 5), 0.3)))
    points = done.of_points(torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.4, 0.5]]))
    assert float((points[0] - points[1]).norm()) == pytest.approx(0.3)
    sizes = done.of_gaussians(random_gaussians(5)).scales / random_gaussians(5).scales
    assert torch.allclose(sizes, torch.full_like(sizes, 10 * 0.06), rtol=1e-5)


def test_edits_come_back_from_the_file_as_they_were(tmp_path):
    assert edits.load(tmp_path) == Edits()
    edits.save(tmp_path, ALL)
    assert edits.load(tmp_path) == ALL and len(ALL.sentences()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["edits.json"]
    scene = random_gaussians(300)
    again = edits.load(tmp_path).of_gaussians(scene)
    for name, tensor in ALL.of_gaussians(scene).parameters().items():
        assert torch.equal(tensor, again.parameters()[name])


def test_the_trained_scene_is_not_touched():
    scene = random_gaussians(300)
    before = scene.clone()
    ALL.of_gaussians(scene)
    assert all(
        torch.equal(a, b) for a, b in zip(scene.parameters().values(), before.parameters().values(), strict=True)
    )


def test_floaters_of_another_scene_are_not_removed_from_this_one():
    with pytest.raises(InputError, match="trained anew"):
        ALL.of_gaussians(random_gaussians(301))


def test_an_edit_that_leaves_nothing_is_an_error():
    nothing = Edits((Crop((50, 50, 50), (51, 51, 51)),))
    with pytest.raises(InputError, match="away"):
        nothing.of_gaussians(random_gaussians(10))
    with pytest.raises(InputError, match="away"):
        nothing.of_mesh(Mesh(np.eye(3), np.array([[0, 1, 2]], np.int32)))


BAD = [
    '{"op": "paint"}', '{"op": 3}', "7", "null", '{"op": ["up"]}', "{}",
    '{"op": "scale"}', '{"op": "scale", "factor": NaN}', '{"op": "scale", "factor": 0}',
    '{"op": "scale", "factor": -1}', '{"op": "scale", "factor": 1e-300}',
    '{"op": "scale", "factor": "2"}', '{"op": "scale", "factor": true}', '{"op": "scale", "factor": 1e300}',
    '{"op": "scale", "factor": 2, "more": 1}', '{"op": "scale", "factor": Infinity}', '{"op": "scale", "factor": [2]}',
    '{"op": "up", "direction": [0, 0]}', '{"op": "up", "direction": [0, 0, 0]}', '{"op": "up", "direction": "z"}',
    '{"op": "up", "direction": [0, NaN, 1]}', '{"op": "up", "direction": [0, [1], 1]}', '{"op": "up", "direction": {}}',
    '{"op": "crop", "low": [0, 0, 0], "high": [1, 1, 0]}', '{"op": "crop", "low": [0, 0, 0]}',
    '{"op": "crop", "low": [0, 0, 0, 0], "high": [1, 1, 1]}', '{"op": "crop", "low": [0, 0, null], "high": [1, 1, 1]}',
    '{"op": "measure", "a": [1, 1, 1], "b": [1, 1, 1], "length": 1}',
    '{"op": "measure", "a": [0, 0, 1], "b": [1, 1, 1], "length": -1}',
    '{"op": "measure", "a": [0, 0, 0], "b": [1e-11, 0, 0], "length": 1e8}',
    '{"op": "remove_floaters", "splats": 5, "ids": [5]}', '{"op": "remove_floaters", "splats": 5, "ids": [2, 1]}',
    '{"op": "remove_floaters", "splats": 5, "ids": [-1]}', '{"op": "remove_floaters", "splats": 5, "ids": [1, 1]}',
    '{"op": "remove_floaters", "splats": 5, "ids": [1.5]}', '{"op": "remove_floaters", "splats": 5, "ids": 3}',
    '{"op": "remove_floaters", "splats": 1e99, "ids": []}', '{"op": "remove_floaters", "splats": -1, "ids": []}',
]  # fmt: skip


@pytest.mark.parametrize("entry", BAD)
def test_a_list_with_a_bad_edit_is_refused_with_its_file(tmp_path, entry):
    (tmp_path / "edits.json").write_text(f'{{"format": 1, "edits": [{entry}]}}')
    with pytest.raises(InputError, match=r"edits\.json"):
        edits.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "{}", '{"format": 2, "edits": []}', '{"format": 1, "edits": {}}', "[" * 100_000, "\xff", "null",
     '{"format": 1, "edits": [' + ",".join(['{"op": "scale", "factor": 2}'] * 1001) + "]}"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "edits.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"edits\.json"):
        edits.load(tmp_path)


def test_a_folder_or_a_dangling_link_in_its_place_is_refused(tmp_path):
    (tmp_path / "edits.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"edits\.json"):
        edits.load(tmp_path)
    (tmp_path / "edits.json").unlink()
    (tmp_path / "edits.json").mkdir()
    with pytest.raises(InputError, match=r"edits\.json"):
        edits.load(tmp_path)


def test_scales_that_add_up_to_the_absurd_are_refused(tmp_path):
    edits.save(tmp_path, Edits((Scale(1e8),) * 2))
    with pytest.raises(InputError, match="in all"):
        edits.load(tmp_path)
    with pytest.raises(InputError, match="in all"):
        Edits().then(Scale(1e-6)).then(Measure((0, 0, 0), (1e4, 0, 0), 1.0))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {"op": st.sampled_from(list(edits.OPS)) | VALUES},
    optional=dict.fromkeys(("factor", "direction", "low", "high", "a", "b", "length", "splats", "ids"), VALUES),
)


@given(st.lists(ENTRIES | VALUES, max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_list_of_edits_or_one_clear_error(tmp_path_factory, entries):
    folder = tmp_path_factory.getbasetemp()
    (folder / "edits.json").write_text(json.dumps({"format": 1, "edits": entries}))
    try:
        done = edits.load(folder)
    except MaquetteError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    finally:
        (folder / "edits.json").unlink()
    for value in done.of_points(torch.rand(4, 3)).flatten().tolist():
        assert math.isfinite(value)

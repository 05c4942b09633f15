"""Every reader of strangers' files as a target of the fuzzing: good seeds by our own writers, and what reads them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import torch
from PIL import Image

from tests.data.pictures import noise, poses, save
from tests.hostile.grid_readers import octree_seeds, read_octree, read_voxel_grid, voxel_grid_seeds
from tests.hostile.mutations import Form
from tests.scene.splats import random_gaussians

LENS = {"fl_x": 30.0, "fl_y": 31.0, "cx": 12.0, "cy": 8.0, "w": 24, "h": 16}


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: files of a folder, in turn made bad, and what reads them.

    seeds: makes the good files in an empty folder, and tells how each of them may be changed.  share: of the
    executions that the tests run; below 1 for readers that are slow by nature, with the reason.
    """

    name: str
    seeds: Callable[[Path], Mapping[str, list[Form]]]
    call: Callable[[Path], object]
    share: float = 1.0
    why: str = ""


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x0132] = 6, "Maker", "2024:05:06 07:08:09"
    photo, place = tags.get_ifd(0x8769), tags.get_ifd(0x8825)
    photo[0x920A], photo[0xA405], photo[0xA20E] = 4.2, 26, 4000.0
    place[1], place[2], place[3], place[4], place[6] = "N", (47.0, 8.0, 1.5), "E", (8.0, 2.0, 3.0), 400.0
    return tags


def picture_seeds(folder: Path) -> dict[str, list[Form]]:
    rgb, rgba, grey = noise(24, 16), noise(24, 16, channels=4), noise(24, 16, channels=1)[..., 0]
    deep = grey.astype(np.uint16) * 257
    palette = io.BytesIO()
    Image.fromarray(rgb).quantize(16).save(palette, "PNG", transparency=3)
    files = [
        encoded(rgb, "JPEG", exif=exif()),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb, "PNG"),
        encoded(rgba, "PNG", exif=exif().tobytes()),
        encoded(deep, "PNG"),
        palette.getvalue(),
        *(encoded(rgb, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        encoded(deep, "TIFF"),
        encoded(rgb, "WEBP"),
        encoded(rgba, "WEBP", lossless=True),
        encoded(rgb, "BMP"),
        encoded(rgb, "PPM"),
    ]
    return {"photo.jpg": [Form(file) for file in files] + [png_scanlines(files[2])]}


def png_scanlines(file: bytes) -> Form:
    """Inside the deflate data of a PNG, and its header with a checksum that fits."""
    header, at = file[16:29], file.index(b"IDAT")
    (length,) = struct.unpack(">I", file[at - 4 : at])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def pack(content: bytes) -> bytes:
        body = zlib.compress(content[13:], 1)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", content[:13]) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    return Form(header + zlib.decompress(file[at + 4 : at + 4 + length]), pack=pack)


def modern_picture_seeds(folder: Path) -> dict[str, list[Form]]:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(noise(32, 16))).save(buffer, quality=80)
    return {"photo.jpg": [Form(buffer.getvalue()), Form(encoded(noise(32, 16), "AVIF"))]}


def read_picture(folder: Path) -> None:
    from data.images import decode_image, inspect_image

    facts = inspect_image(folder / "photo.jpg")
    decode_image(folder / "photo.jpg", facts.exif.orientation)


def exif_seeds(folder: Path) -> dict[str, list[Form]]:
    file, block = encoded(noise(16, 8), "JPEG", exif=exif()), exif().tobytes()

    def pack(content: bytes) -> bytes:
        content = content[:65000]
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(content) + 2) + content + file[2:]

    return {"photo.jpg": [Form(block, pack=pack)]}


def inspect(folder: Path) -> None:
    from data.images import inspect_image

    inspect_image(folder / "photo.jpg")


def archive_seeds(folder: Path) -> dict[str, list[Form]]:
    seeds = []
    for packing in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packing) as file:
            file.writestr("photos/a.jpg", encoded(noise(16, 12), "JPEG"))
            file.writestr("transforms.json", "{}")
        seeds.append(Form(buffer.getvalue()))
    return {"a.zip": seeds}


def read_archive(folder: Path) -> None:
    from data.archive import unpack

    try:
        unpack(folder / "a.zip", folder / "work")
    finally:
        shutil.rmtree(folder / "work", ignore_errors=True)


def transforms_seeds(folder: Path) -> dict[str, list[Form]]:
    frames = []
    for i, pose in enumerate(poses(3)):
        save(folder / "images" / f"{i}.png", noise(24, 16, seed=i))
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
    (folder / "points.ply").write_bytes(point_ply())
    lens = {**LENS, "k1": 0.01, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    nerfstudio = {"camera_model": "OPENCV", "ply_file_path": "points.ply", "applied_transform": np.eye(4)[:3].tolist()}
    nerfstudio["test_filenames"] = ["images/1.png"]  # type: ignore[assignment]
    contents = [
        {"camera_angle_x": 0.7, "frames": frames},
        {**lens, "aabb_scale": 4, "frames": frames},
        {**nerfstudio, "frames": [{**frame, **lens} for frame in frames]},
    ]
    texts = [json.dumps(content).encode() for content in contents]
    return {"transforms.json": [Form(text, kind) for text in texts for kind in ("json", "text")]}  # type: ignore[arg-type]


def read_cameras_of_folder(folder: Path) -> None:
    from data.detect import read_source

    read_source(folder, folder / "work").close()


def colmap_model(folder: Path, *, binary: bool) -> Path:
    made = pycolmap.Reconstruction()
    made.add_camera_with_trivial_rig(
        pycolmap.Camera(model="OPENCV", width=24, height=16, params=[30, 31, 12, 8, 0.01, 0, 0, 0], camera_id=1)
    )
    for i, c2w in enumerate(poses(3), start=1):
        image = pycolmap.Image(name=f"{i - 1}.png", camera_id=1, image_id=i)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([3.0, 4.0]))])
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.linalg.inv(c2w)[:3, :4]))
        save(folder / "images" / f"{i - 1}.png", noise(24, 16, seed=i))
    track = pycolmap.Track()
    for i in (1, 2, 3):
        track.add_element(i, 0)
    made.add_point3D(np.array([0.1, 0.2, 0.3]), track, np.array([1, 2, 3], dtype=np.uint8))
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (made.write_binary if binary else made.write_text)(model)
    return model


def colmap_binary_seeds(folder: Path) -> dict[str, list[Form]]:
    model = colmap_model(folder, binary=True)
    return {f"sparse/0/{n}.bin": [Form((model / f"{n}.bin").read_bytes())] for n in ("cameras", "images", "points3D")}


def colmap_text_seeds(folder: Path) -> dict[str, list[Form]]:
    model = colmap_model(folder, binary=False)
    names = ("cameras", "images", "points3D")
    return {f"sparse/0/{n}.txt": [Form((model / f"{n}.txt").read_bytes(), "text")] for n in names}


def read_colmap_model(folder: Path) -> None:
    from data.colmap import read_model, read_tracks

    read_model(folder / "sparse" / "0")
    if (folder / "sparse/0/points3D.bin").is_file():
        read_tracks(folder / "sparse/0/points3D.bin")


def llff_seeds(folder: Path) -> dict[str, list[Form]]:
    rows = []
    for i, c2w in enumerate(poses(3)):
        save(folder / "images" / f"{i}.png", noise(24, 16, seed=i))
        axes = np.stack([c2w[:3, 1], c2w[:3, 0], -c2w[:3, 2], c2w[:3, 3], (16, 24, 30.0)], axis=1)
        rows.append([*axes.reshape(-1), 1.0, 9.0])
    files = []
    for table in (np.array(rows), np.array(rows, dtype=">f4"), np.asfortranarray(rows)):
        buffer = io.BytesIO()
        np.save(buffer, table)
        files.append(Form(buffer.getvalue()))
    return {"poses_bounds.npy": files}


def middlebury_seeds(folder: Path) -> dict[str, list[Form]]:
    lines = ["3"]
    for i, c2w in enumerate(poses(3)):
        save(folder / f"t{i}.png", noise(24, 16, seed=i))
        w2c = np.linalg.inv(c2w)
        numbers = [30, 0, 12, 0, 30, 8, 0, 0, 1, *w2c[:3, :3].reshape(-1), *w2c[:3, 3]]
        lines.append(f"t{i}.png " + " ".join(map(str, numbers)))
    return {"t_par.txt": [Form("\n".join(lines).encode(), "text")]}


def kitti_seeds(folder: Path) -> dict[str, list[Form]]:
    for i in range(3):
        save(folder / "image_2" / f"{i:06}.png", noise(24, 16, seed=i))
    calibration = "".join(f"P{i}: 30 0 12 {-i} 0 30 8 0 0 0 1 0\n" for i in range(4)) + "Tr: " + "0 " * 12
    rows = "\n".join(" ".join(map(str, c2w[:3].reshape(-1))) for c2w in poses(3))
    return {"calib.txt": [Form(calibration.encode(), "text")], "poses.txt": [Form(rows.encode(), "text")]}


def point_ply(order: str = "binary_little_endian") -> bytes:
    head = f"ply\nformat {order} 1.0\ncomment made here\nelement vertex 3\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue"))
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if order == "ascii":
        return (head + "0 0 0 1 2 3\n1 0 0 4 5 6\n0 1 0 7 8 9\n3 0 1 2\n").encode()
    rows = np.zeros(3, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    rows["xyz"] = np.eye(3)
    body = rows.tobytes() + b"\x03" + np.arange(3, dtype="<i4").tobytes()
    return head.encode() + (body if order.endswith("little_endian") else body[::-1])


def ply_forms(*files: bytes) -> list[Form]:
    """As bytes, and with the words of the header changed."""
    forms = []
    for file in files:
        end = file.index(b"end_header\n") + 11
        forms += [Form(file), Form(file[:end], "text", lambda head, body=file[end:]: head + body)]
        if b"format ascii" in file[:end]:
            forms.append(Form(file, "text"))
    return forms


def point_ply_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.ply": ply_forms(*(point_ply(f"binary_{end}_endian") for end in ("little", "big")), point_ply("ascii"))}


def read_points(folder: Path) -> None:
    from data.ply import read_point_ply

    read_point_ply(folder / "a.ply")


def splat_file(folder: Path, ending: str, degree: int = 1) -> bytes:
    from scene.formats import save_splats

    save_splats(folder / f"a{ending}", random_gaussians(5, sh_degree=degree))
    return (folder / f"a{ending}").read_bytes()


def splat_ply_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.ply": ply_forms(splat_file(folder, ".ply"), splat_file(folder, ".ply", 0))}


def compressed_ply_seeds(folder: Path) -> dict[str, list[Form]]:
    """As SuperSplat writes it: bounds of each 256 splats, four packed words for each splat, bytes for the harmonics."""
    head = "ply\nformat binary_little_endian 1.0\nelement chunk 1\n"
    bounds = [f"{end}_{name}" for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z") for end in ("min", "max")]
    head += "".join(f"property float {name}\n" for name in bounds) + "element vertex 5\n"
    head += "".join(f"property uint packed_{name}\n" for name in ("position", "rotation", "scale", "color"))
    head += "element sh 5\n" + "".join(f"property uchar f_rest_{i}\n" for i in range(9)) + "end_header\n"
    words = np.random.default_rng(0).integers(0, 2**32, (5, 4), dtype=np.uint32)
    body = np.tile(np.array([-1, 1], dtype="<f4"), 6).tobytes() + words.astype("<u4").tobytes() + bytes(range(45))
    return {"a.ply": ply_forms(head.encode() + body)}


def raw_splat_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.splat": [Form(splat_file(folder, ".splat", 0))]}


def spz_seeds(folder: Path) -> dict[str, list[Form]]:
    file = splat_file(folder, ".spz")
    return {"a.spz": [Form(file), Form(gzip.decompress(file), pack=lambda inner: gzip.compress(inner, 1))]}


def sog_seeds(folder: Path) -> dict[str, list[Form]]:
    file = splat_file(folder, ".sog")
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def replacing(name: str) -> Callable[[bytes], bytes]:
        def pack(content: bytes) -> bytes:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as made:
                for entry, old in entries.items():
                    made.writestr(entry, content if entry == name else old)
            return buffer.getvalue()

        return pack

    meta = [Form(entries["meta.json"], "json", replacing("meta.json"))] * 4
    pictures = [Form(content, pack=replacing(name)) for name, content in entries.items() if name.endswith(".webp")]
    return {"a.sog": [Form(file), *meta, *pictures]}


def glb_forms(file: bytes) -> list[Form]:
    """As bytes, with another JSON chunk, and with another binary chunk."""
    (length,) = struct.unpack_from("<I", file, 12)
    text, binary = file[20 : 20 + length], file[28 + length :]

    def pack(text: bytes, binary: bytes) -> bytes:
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I", len(text)) + b"JSON" + text + struct.pack("<I", len(binary)) + b"BIN\0" + binary
        return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body

    inside = Form(text, "json", lambda changed: pack(changed, binary))
    return [Form(file), inside, inside, inside, Form(binary, pack=lambda changed: pack(text, changed))]


def glb_splat_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.glb": glb_forms(splat_file(folder, ".glb"))}


def read_splats(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from scene.formats import load_splats

        return load_splats(folder / name)

    return read


def small_mesh(*, textured: bool):
    from scene.mesh import Material, Mesh

    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32)
    if not textured:
        return Mesh(vertices, faces, np.arange(12, dtype=np.uint8).reshape(4, 3))
    corners = np.array([[[0, 0], [1, 0], [0, 1]]] * 4, dtype=np.float32)
    return Mesh(vertices, faces, uvs=corners, material=Material(noise(8, 8)))


def mesh_files(folder: Path, ending: str) -> list[bytes]:
    from scene.formats import save_mesh

    files = []
    for textured in (False, True):
        save_mesh(folder / f"a{ending}", small_mesh(textured=textured))
        files.append((folder / f"a{ending}").read_bytes())
    return files


def glb_mesh_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.glb": [form for file in mesh_files(folder, ".glb") for form in glb_forms(file)]}


def gltf_seeds(folder: Path) -> dict[str, list[Form]]:
    """The same with its buffer beside it, where names and links can lie."""
    file = mesh_files(folder, ".glb")[1]
    (length,) = struct.unpack_from("<I", file, 12)
    document = json.loads(file[20 : 20 + length])
    document["buffers"][0]["uri"] = "a.bin"
    (folder / "a.bin").write_bytes(file[28 + length :])
    return {"a.gltf": [Form(json.dumps(document).encode(), "json")]}


def obj_seeds(folder: Path) -> dict[str, list[Form]]:
    forms = [Form(file, "text") for file in mesh_files(folder, ".obj")]
    beside = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".mtl"}
    return {"a.obj": forms, **{name: [Form(content, "text")] for name, content in beside.items()}}


def stl_seeds(folder: Path) -> dict[str, list[Form]]:
    text = (
        b"solid a\n" + b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    )
    return {"a.stl": [Form(mesh_files(folder, ".stl")[0]), Form(text + b"endsolid\n", "text")]}


def mesh_ply_seeds(folder: Path) -> dict[str, list[Form]]:
    return {"a.ply": ply_forms(*mesh_files(folder, ".ply"), point_ply("ascii"), point_ply("binary_big_endian"))}


def usd_seeds(folder: Path) -> dict[str, list[Form]]:
    text, packed = mesh_files(folder, ".usda"), mesh_files(folder, ".usdc")
    return {"a.usda": [Form(file, "text") for file in text], "a.usdc": [Form(file) for file in packed]}


def read_mesh(*names: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from scene.formats import load_mesh

        for name in names:
            load_mesh(folder / name)

    return read


def checkpoint_seeds(folder: Path) -> dict[str, list[Form]]:
    from scene.checkpoints import write_checkpoint

    tensors = {"means": torch.arange(12.0).reshape(4, 3), "ids": torch.arange(3), "none": torch.zeros(0, 3)}
    write_checkpoint(folder / "latest.safetensors", tensors, {"step": 3}, 2)
    file = (folder / "latest.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", file[:8])

    def pack(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text + file[8 + length :]

    return {"latest.safetensors": [Form(file), Form(file[8 : 8 + length], "json", pack)]}


def read_a_checkpoint(folder: Path) -> None:
    from scene.checkpoints import read_checkpoint

    read_checkpoint(folder / "latest.safetensors")


def run_seeds(folder: Path) -> dict[str, list[Form]]:
    from apps.options import Recon, ReconJob
    from recon.gaussians import Config
    from scene.runs import Run

    job = ReconJob(Recon(folder), "gaussians", Config(), folder / "run", resumes=False)
    with Run.create(folder / "run", "gaussians", job.as_json()) as run:
        run.finish("cameras", registered=3, total=3, reprojection_px=0.5, seconds=1.0)
        run.decide("A folder of 3 photos.")
        run.add_metrics(psnr=30.0, seed=0)
        views = [
            {
                "name": f"{i}.jpg",
                "split": "train",
                "width": 24,
                "height": 16,
                "K": np.eye(3).tolist(),
                "c2w": c.tolist(),
            }
            for i, c in enumerate(poses(2))
        ]
        facts = {"up": [0, 0, 1], "ordered": False, "metric": False, "background": [0, 0, 0]}
        run.write_json("cameras.json", {**facts, "views": views, "points": [[0.0, 1.0, 2.0, 3, 4, 5]]})
        frames = [{"c2w": c.tolist(), "fov_y": 40} for c in poses(2)]
        run.write_json("path.json", {"width": 24, "height": 16, "frames": frames})
    names = ("config.json", "cameras.json", "progress.json", "metrics.json", "path.json")
    forms = {f"run/{name}": [Form((folder / "run" / name).read_bytes(), "json")] for name in names}
    return {**forms, "run/events.jsonl": [Form((folder / "run/events.jsonl").read_bytes(), "text")]}


def read_run(folder: Path) -> None:
    from apps.options import job_of_run
    from apps.run_cameras import read_cameras
    from scene.camera_paths import from_file
    from scene.runs import Run, last_event_time, read_events

    from_file(folder / "run/path.json")
    with Run.open(folder / "run", writing=False) as run:
        _ = run.stages, run.decisions, run.metrics, run.finished("cameras")
        read_events(run.folder / "events.jsonl")
        last_event_time(run.folder / "events.jsonl")
        read_cameras(run)
    job_of_run(folder / "run")


READERS = (
    Reader("pictures", picture_seeds, read_picture),
    Reader("heif_avif", modern_picture_seeds, read_picture, 0.3, "the codecs take milliseconds to start"),
    Reader("exif", exif_seeds, inspect),
    Reader("zip", archive_seeds, read_archive),
    Reader("transforms", transforms_seeds, read_cameras_of_folder),
    Reader("colmap_bin", colmap_binary_seeds, read_colmap_model),
    Reader("colmap_txt", colmap_text_seeds, read_colmap_model),
    Reader("llff", llff_seeds, read_cameras_of_folder),
    Reader("middlebury", middlebury_seeds, read_cameras_of_folder),
    Reader("kitti", kitti_seeds, read_cameras_of_folder),
    Reader("point_ply", point_ply_seeds, read_points),
    Reader("splat_ply", splat_ply_seeds, read_splats("a.ply")),
    Reader("compressed_ply", compressed_ply_seeds, read_splats("a.ply")),
    Reader("splat", raw_splat_seeds, read_splats("a.splat")),
    Reader("spz", spz_seeds, read_splats("a.spz")),
    Reader("sog", sog_seeds, read_splats("a.sog"), 0.3, "six pictures are decoded for each file"),
    Reader("glb_splats", glb_splat_seeds, read_splats("a.glb")),
    Reader("glb_mesh", glb_mesh_seeds, read_mesh("a.glb")),
    Reader("gltf", gltf_seeds, read_mesh("a.gltf")),
    Reader("obj", obj_seeds, read_mesh("a.obj")),
    Reader("stl", stl_seeds, read_mesh("a.stl")),
    Reader("mesh_ply", mesh_ply_seeds, read_mesh("a.ply")),
    Reader(
        "usd",
        usd_seeds,
        read_mesh("a.usda", "a.usdc"),
        0.002,
        "each is read in a process of its own, for half a second",
    ),
    Reader("checkpoint", checkpoint_seeds, read_a_checkpoint),
    Reader("voxel_grid", voxel_grid_seeds, read_voxel_grid),
    Reader("octree", octree_seeds, read_octree),
    Reader("run_json", run_seeds, read_run, 0.5, "six files are read each time"),
)

"""`maquette export`: a run, or any splat or mesh file, in the formats of the field; the files' endings say which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from apps.console import Watcher
from apps.film import up_of
from apps.judge import reopened
from apps.meshing import Budget, budget, fine_mesh_file, finish, photo_views, rendered_views
from apps.methods import Trained, method_of, words_of
from apps.options import AXES, Export, parse
from apps.run_cameras import RunCameras, edited_cameras, read_cameras
from apps.run_page import page_of_run
from apps.run_scene import about_splats, edited_mesh, edited_splats, splats_picture, trained_scene
from apps.run_splats import likeness
from apps.scene_page import scene_page
from apps.signals import StopSignal
from scene import edits
from scene.cameras import Camera
from scene.conversions import cameras_around, mesh_to_gaussians
from scene.edits import Edits
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats import FILE_UP, UP, kind_of, load_mesh, load_splats, mesh_files, save_mesh, save_splats, splat_files
from scene.gaussians import Gaussians
from scene.grid_octree import octree_of_grid
from scene.mesh import Mesh
from scene.mesh_extraction import MeshConfig, gaussians_to_mesh
from scene.runs import Run
from scene.texture import PhotoView
from scene.untrusted import real

Kind = Literal["splats", "mesh", "page", "field"]
Direction = tuple[float, float, float]

FIELDS = (".npz", ".safetensors")  # an octree in the layout of PlenOctrees, a voxel grid

COLMAP_UP = (0.0, -1.0, 0.0)  # splats that others trained in COLMAP's frame, whose first cameras mostly stand upright


def main(arguments: Sequence[str]) -> None:
    """The `maquette export` command."""
    request = parse(Export, "export", arguments)
    kinds: dict[Path, Kind] = {target: kind_for(target, request.what) for target in request.to}
    with StopSignal() as stop, Watcher() as watcher, Source(request, watcher, stop) as source:
        for target in request.to:
            if real(target) == real(request.source):
                raise InputError(f"{target} is the source itself; give the export another name")
        for target, kind in kinds.items():
            source.write(target, kind)
            watcher.say(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def kind_for(target: Path, what: str = "auto") -> Kind:
    """What a file of this name holds. Raises InputError for an ending that is not written."""
    ending = target.suffix.lower()
    if ending == ".html":
        return "page"
    if ending in FIELDS:
        return "field"
    splats, mesh = ending in splat_files.WRITERS, ending in mesh_files.WRITERS
    if not (splats or mesh):
        raise InputError(
            f"{target}: expected a name that ends in {', '.join(sorted({*splat_files.WRITERS, *mesh_files.WRITERS}))} "
            f".html, .npz or .safetensors; {ending or 'no ending'} is not written"
        )
    if splats and mesh:
        name = target.stem.lower()
        said = what if what != "auto" else "mesh" if "mesh" in name else "splats" if "splat" in name else None
        return said or ("splats" if ending == ".ply" else "mesh")  # type: ignore[return-value]
    return "splats" if splats else "mesh"


class Source:
    """What is exported: a run or one file. Each part is read or made when a target first asks for it."""

    def __init__(self, request: Export, watcher: Watcher, stop: StopSignal) -> None:
        self.request, self.watcher, self.stop = request, watcher, stop
        self.path = request.source
        if not self.path.exists():
            raise InputError(f"there is no run or file {self.path}; expected a run folder, or a splat or mesh file")
        self.run = Run.open(self.path, writing=False) if self.path.is_dir() else None
        self.kind = None if self.run else kind_of(self.path)
        self.label: dict[str, Any] | None = None  # of a mesh that is made or was made by a run

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self.run is not None:
            self.run.close()

    def write(self, target: Path, kind: Kind) -> None:
        """Write one file. Raises InputError when the source does not hold what it should contain."""
        with write_errors(target, "export"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "page":
                self._write_page(target)
            elif kind == "splats":
                save_splats(target, self.splats, up=self.up)
            elif kind == "field":
                self._write_field(target)
            else:
                mesh = self.mesh  # first: making it gives the label
                save_mesh(target, mesh, up=self.up, cameras=self._named_cameras(), label=self.label)

    def _write_page(self, target: Path) -> None:
        if self.run is not None:
            page = page_of_run(self.run, real(self.path).name)
        else:
            splats, mesh = (None, self.mesh) if self.kind == "mesh" else (self.splats, None)
            page = scene_page(splats=splats, mesh=mesh, up=self.up, cameras=(), title=self.path.stem)
        with write_errors(target, "write the page"), replacing(target) as file:
            file.write(page.encode())

    def _write_field(self, target: Path) -> None:
        """The scene itself, as its method keeps it. Raises InputError where that is something else."""
        if self.run is None:
            raise InputError(f"{target}: grids and octrees come from runs of their methods; {self.path} is a file")
        trained, words = trained_scene(self.run), words_of(self.run.config.get("method"))
        own, ending = Path(trained.module.SCENE_FILE).suffix, target.suffix.lower()
        if ending == own:
            trained.module.save_scene(target, trained.scene)
        elif ending == ".npz" and trained.method == "dvgo":
            self._write_octree(target, trained)
        else:
            raise InputError(f"{target}: a run of {words.name} holds {words.file}, which is written as {own}")
        if edits.load(self.path):
            self.watcher.say(f"Note: {target.name} holds the {words.scene} as it was trained, without the run's edits")

    def _write_octree(self, target: Path, trained: Trained) -> None:
        """A voxel grid as an octree; what that costs is said."""
        assert self.run is not None
        cameras, octrees = read_cameras(self.run).train, method_of("dot")
        octree = octree_of_grid(trained.scene, cameras, progress=self._progress)
        alike = likeness(lambda camera, back: octrees.picture(octree, camera, back, None), trained, cameras)
        self.watcher.say(f"Made an octree of {len(octree):,} leaves of the grid: {alike:.1f} dB from its pictures")
        octrees.save_scene(target, octree)

    @cached_property
    def up(self) -> Direction:
        """Which direction of `splats` and `mesh` is up."""
        if self.request.up is not None:
            return AXES[self.request.up.lower().lstrip("+")]
        if self.run is not None:
            return up_of(self.seen)
        return COLMAP_UP if self.kind == "splats" and not self._own_up else UP

    @cached_property
    def splats(self) -> Gaussians:
        """The scene as Gaussians, in the source's own coordinates."""
        if self.run is not None:
            if note := about_splats(self.run):
                self.watcher.say(note)
            return edited_splats(self.run)
        if self.kind == "splats":
            return load_splats(self.path, up=self._read_up)
        self.watcher.say("The source is a mesh: its surface is covered with splats")
        return mesh_to_gaussians(self.mesh)

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh, in the source's own coordinates; made where there is none, or where another size is asked."""
        anew = self.request.mesh is not None or self.request.faces is not None
        if self.kind == "mesh":
            if anew:
                raise InputError("--mesh and --faces make a mesh from a run or from splats; the source is a mesh")
            return load_mesh(self.path, up=self._read_up)
        if self.run is not None and not anew:
            self.label = None if edits.load(self.path) else (self.run.finished("mesh") or {}).get("label")
            return edited_mesh(self.run)
        return self._made_mesh(budget(self.request.mesh or "game", self.request.faces))

    def _made_mesh(self, wanted: Budget) -> Mesh:
        if self.run is None:
            cameras = cameras_around(self.splats)
            fine = gaussians_to_mesh(self.splats, cameras, MeshConfig(faces=0), progress=self._progress, stop=self.stop)
            draw = partial(splats_picture, self.splats, antialias=False)
            return self._finished(fine, rendered_views(draw, cameras), wanted)
        fine_file = fine_mesh_file(self.path)
        if not fine_file.is_file():
            raise InputError(f"{self.path} has no {fine_file.name}; let it go on with --resume first")
        done = edits.load(self.path)
        fine = done.of_mesh(load_mesh(fine_file))
        try:
            capture = reopened(self.run)
        except InputError as error:
            trained = trained_scene(self.run)
            scene = words_of(trained.method).scene
            self.watcher.say(f"The photos are not at hand ({error}): the texture comes from the {scene}")
            views = rendered_views(trained.picture, read_cameras(self.run).train)
            return self._finished(fine, _moved(views, done), wanted)
        with capture:
            return self._finished(fine, _moved(photo_views(capture), done), wanted)

    def _finished(self, fine: Mesh, views: Sequence[PhotoView], wanted: Budget) -> Mesh:
        """The mesh for the budget; what is wrong with it is said."""
        made = finish(fine, views, wanted, progress=self._progress, stop=self.stop)
        self.label = made.label.as_json()
        for fault in made.label.faults:
            self.watcher.say(f"Note: {fault.sentence}")
        return made.mesh

    @cached_property
    def seen(self) -> RunCameras:
        """The cameras of the run, in the frame of its edited scene."""
        assert self.run is not None
        return edited_cameras(self.run)

    def _named_cameras(self) -> dict[str, Camera]:
        """The photos' cameras where they are asked for; a file has none."""
        if self.run is None or not self.request.cameras:
            return {}
        return dict(zip(self.seen.names, self.seen.cameras, strict=True))

    @property
    def _own_up(self) -> Direction | None:
        """What is up in the coordinates of a single file, where its format says so."""
        return FILE_UP.get(self.path.suffix.lower())

    @property
    def _read_up(self) -> Direction:
        """The up of the frame that a file is read into: +Z, or its own frame where the user knows better what is up."""
        return self._own_up if self._own_up and self.request.up is not None else UP

    def _progress(self, done: int, total: int, message: str) -> None:
        self.stop.check()
        self.watcher.progress(message.capitalize(), done, total)


def _moved(views: Sequence[PhotoView], done: Edits) -> list[PhotoView]:
    """The views as they see the edited scene."""
    return [replace(view, camera=done.of_camera(view.camera)) for view in views]

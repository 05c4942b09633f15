"""Files of the field, in and out: splats and meshes, by the ending of the name. Files read are not trusted.

Each file follows its own format's convention and the scene keeps ours: what is handed over and what comes back stands
in the scene's frame, whose up is +Z unless `up` says otherwise; `FILE_UP` says how files stand. Vertex colours are
linear in glTF and USD and sRGB elsewhere. All writes are atomic.
"""

from scene.formats.axes import FILE_UP, UP
from scene.formats.mesh_files import load_mesh, save_mesh
from scene.formats.splat_files import kind_of, load_splats, save_splats

__all__ = ["FILE_UP", "UP", "kind_of", "load_mesh", "load_splats", "save_mesh", "save_splats"]

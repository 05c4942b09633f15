"""Runs inside Blender: imports mesh files and tells what it sees, in Blender's own frame (+Z up).

Arguments after `--`: where to write the answer, then the files; "--no-pictures" among them leaves pictures out. The
answer is a JSON object by file name: triangles [F, 3, 3] in the world, uvs [F, 3, 2] or null, cameras by name, picture
(width, height and pixels as bytes, rows from the bottom) or null.
"""

import json
import sys
from pathlib import Path

import bpy


def import_file(path: Path) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    ending = path.suffix
    if ending == ".glb":
        bpy.ops.import_scene.gltf(filepath=str(path))
    elif ending == ".obj":
        bpy.ops.wm.obj_import(filepath=str(path))
    elif ending == ".ply":
        bpy.ops.import_mesh.ply(filepath=str(path))
    elif ending == ".stl":
        bpy.ops.import_mesh.stl(filepath=str(path))
    else:
        bpy.ops.wm.usd_import(filepath=str(path))


def seen() -> dict:
    triangles, uvs, cameras, faces_have_uvs = [], [], {}, True
    for thing in bpy.data.objects:
        if thing.type == "CAMERA":
            cameras[thing.name] = {
                "matrix": [list(row) for row in thing.matrix_world],
                "angle_x": thing.data.angle_x,
                "angle_y": thing.data.angle_y,
            }
        if thing.type != "MESH":
            continue
        mesh = thing.data
        mesh.calc_loop_triangles()
        layer = mesh.uv_layers.active
        faces_have_uvs = faces_have_uvs and layer is not None
        for triangle in mesh.loop_triangles:
            triangles.append([list(thing.matrix_world @ mesh.vertices[i].co) for i in triangle.vertices])
            if layer is not None:
                uvs.append([list(layer.data[i].uv) for i in triangle.loops])
    return {"triangles": triangles, "uvs": uvs if faces_have_uvs else None, "cameras": cameras}


def base_picture() -> dict | None:
    """The picture behind the base colour of the only material, rows from the bottom, 0 to 1, as stored."""
    for material in bpy.data.materials:
        if not material.use_nodes:
            continue
        for link in material.node_tree.links:
            node = link.from_node
            if link.to_socket.name == "Base Color" and node.type == "TEX_IMAGE" and node.image:
                width, height = node.image.size
                return {"width": width, "height": height, "pixels": [round(255 * p) for p in node.image.pixels]}
    return None


def main() -> None:
    out, *files = sys.argv[sys.argv.index("--") + 1 :]
    answers = {}
    pictures = "--no-pictures" not in files
    for name in files:
        if name.startswith("--"):
            continue
        path = Path(name)
        try:
            import_file(path)
            answers[path.name] = seen() | {"picture": base_picture() if pictures else None}
        except (RuntimeError, AttributeError) as error:
            answers[path.name] = {"error": str(error)}
    Path(out).write_text(json.dumps(answers), encoding="utf-8")


main()

"""Reads every import of the packages: none may point up, and heavy libraries wait until they are needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("apps", "recon", "generation", "data", "scene")

# Modules of plain state and errors: they know nothing but each other, so every layer may speak in their terms.
VOCABULARY = ("scene.errors", "scene.cameras", "scene.files", "scene.sh", "scene.gaussians", "scene.untrusted")

# `data` may also use the one PLY parser: a second one for point clouds would be one more door to guard.
# The longest matching prefix of a module decides what it may import of ours.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "apps": ("apps", "recon", "generation", "data", "scene"),
    "generation": ("generation", "data", "scene"),
    "recon": ("recon", "data", "scene"),
    "data": ("data", "scene.cameras", "scene.errors", "scene.files", "scene.untrusted", "scene.formats.ply"),
    "scene": ("scene",),
    "scene.ops": ("scene.ops", *VOCABULARY),
    **dict.fromkeys(VOCABULARY, VOCABULARY),
}

# Imported inside the function that needs them: each costs a second or more, or may be missing on a small installation.
HEAVY = {
    "open3d",
    "pycolmap",
    "cv2",
    "av",
    "matplotlib",
    "trimesh",
    "scipy",
    "pillow_heif",
    "fast_simplification",
    "mitsuba",
    "gsplat",
    "gradio",
    "viser",
    "xatlas",
    "pxr",
    "diffusers",
    "transformers",
    "accelerate",
}


@dataclass(frozen=True)
class Import:
    """One import statement: where, of what, and whether it runs when the file is loaded."""

    file: Path
    line: int
    module: str  # who imports
    target: str  # what, dotted
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module} imports {self.target}"


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> Iterator[Import]:
    """All imports of a file; those for type checking only count as well, for an arrow is an arrow."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the layer"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(file, node.lineno, module_name(file), target, id(node) not in inside)


def all_imports() -> list[Import]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    # A script beside an asset renders or bakes it; it is not part of the installed program's layers.
    return [found for file in files if "assets" not in file.parts for found in imports_of(file)]


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def allowed_for(module: str) -> tuple[str, ...]:
    return MAY_IMPORT[max((prefix for prefix in MAY_IMPORT if covers(prefix, module)), key=len)]


def breaks_layers(found: Import) -> bool:
    """Whether an import points to one of our packages that its layer may not know."""
    if found.target.split(".")[0] not in PACKAGES:
        return False
    return not any(covers(prefix, found.target) for prefix in allowed_for(found.module))


def test_every_import_points_down() -> None:
    imports = all_imports()
    assert len(imports) > 100
    assert not [str(found) for found in imports if breaks_layers(found)]


def test_methods_do_not_import_each_other() -> None:
    from apps.options import METHODS

    methods = set(METHODS.values())
    crossed = [
        str(found)
        for found in all_imports()
        if found.module in methods and any(covers(other, found.target) for other in methods - {found.module})
    ]
    assert not crossed


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    assert not [str(found) for found in all_imports() if found.at_top and found.target.split(".")[0] in HEAVY]


def test_native_sources_are_no_python_package() -> None:
    assert not list((ROOT / "cuda").rglob("*.py"))


@pytest.mark.parametrize(
    ("module", "target", "broken"),
    [
        ("scene.mesh", "data.captures.Capture", True),
        ("scene.ops.adam", "scene.rasterize.render", True),
        ("scene.ops.adam", "scene.gaussians.Gaussians", False),
        ("scene.gaussians", "scene.rasterize.render", True),
        ("data.captures", "scene.runs.Run", True),
        ("data.captures", "scene.cameras.Camera", False),
        ("data.captures", "scene.cameras_of_another_kind.Camera", True),
        ("recon.gaussians", "apps.cli.main", True),
        ("apps.cli", "recon.gaussians.train", False),
        ("scene.mesh", "numpy.linalg", False),
    ],
)
def test_the_rule_itself_tells_up_from_down(module: str, target: str, broken: bool) -> None:
    assert breaks_layers(Import(ROOT / "x.py", 1, module, target, at_top=True)) is broken

"""House rules that a machine can read: documented commands exist, nothing is left half-done, no dangerous shortcuts."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from apps import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = [
    path
    for folder in ("apps", "recon", "generation", "data", "scene", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]
NATIVE = [path for path in (ROOT / "cuda").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]


def tracked() -> list[Path]:
    """Files that belong to the project: those git knows, or all where this is no checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [*DOCUMENTS, *SOURCES, *NATIVE, ROOT / "Makefile"]
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def documented_lines() -> list[tuple[Path, str]]:
    """Lines inside code fences of the documents, and commands quoted in their text."""
    lines = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            lines += [(path, line.strip().removeprefix("$ ")) for line in block.splitlines()]
        lines += [(path, quoted) for quoted in re.findall(r"`((?:maquette|make) [^`\n]+)`", text)]
    return [(path, part.strip()) for path, line in lines for part in re.split(r"&&|\||;", line.partition(" #")[0])]


def test_documented_maquette_commands_exist() -> None:
    for path, line in documented_lines():
        if line.startswith("maquette "):
            word = line.split()[1]
            assert word in cli.COMMANDS or word.startswith("-") or word.isupper(), f"{path.name}: {line}"


def test_documented_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, set[str]] = {}
    for path, line in documented_lines():
        words = shlex.split(line, comments=True) if line.startswith("maquette ") else []
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        if len(words) < 2 or words[1] not in cli.COMMANDS or not flags:
            continue
        if words[1] not in known:
            assert cli.run([words[1], "--help"]) == 0
            known[words[1]] = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
        assert set(flags) <= known[words[1]], f"{path.name}: {line}"


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for path, line in documented_lines():
        if line.startswith("make "):
            for word in shlex.split(line, comments=True)[1:]:
                assert word in targets or "=" in word or word.startswith("-"), f"{path.name}: {line}"


def test_ci_runs_make_test() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target.split()[0]).exists(), f"{path.name} links to {target}"


def test_nothing_is_left_half_done() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    for path in tracked():
        if path.suffix in (".py", ".cpp", ".h", ".cu", ".md", ".toml") or path.name == "Makefile":
            found = marks.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_no_path_of_one_machine_is_in_the_project() -> None:
    private = re.compile(r"/(work|root|home)/[a-z]")
    for path in tracked():
        if path.suffix in (".py", ".cpp", ".h", ".cu", ".md", ".toml", ".txt") or path.name == "Makefile":
            found = private.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_no_pickles_no_shells_no_silent_excepts() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = str(path.relative_to(ROOT))
        for call in calls(tree):
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert words.get("shell") != "True", f"{where}:{call.lineno}: shell=True"
            assert words.get("allow_pickle") != "True", f"{where}:{call.lineno}: allow_pickle"
            assert name_of(call) not in ("torch.load", "eval", "exec", "os.system"), f"{where}:{call.lineno}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{where}:{node.lineno}: bare except"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert "pickle" not in names, f"{where}:{node.lineno}: pickle"


def test_public_functions_say_what_they_do() -> None:
    silent = []
    for path in SOURCES:
        if path.parts[-2] in ("benchmarks", "assets") or "assets" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{path.relative_to(ROOT)} has no docstring"
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                silent.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not silent


def test_files_stay_readable() -> None:
    """A file over 400 lines is a sign to look twice; over 500 it is split."""
    long = {
        str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long

"""The web door's own addresses below /maquette: a job's page, its state, its files, and what buttons do.

Pages that hold a stranger's words or scene (the viewer, the report) are sandboxed: their scripts belong to no site, so
they can read nothing of this one, even if a reader or a writer of ours were fooled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from apps.web.limits import Busy
from apps.web.service import Service
from scene.errors import InputError, ResourceError

PREFIX = "/maquette"
STATIC = Path(__file__).parent / "static"
PAGES = ("job", "jobs", "compare")
ASSETS = {
    "web.css": "text/css",
    "job.js": "text/javascript",
    "jobs.js": "text/javascript",
    "compare.js": "text/javascript",
}
_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_SANDBOX = "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mp4": "video/mp4",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".glb": "model/gltf-binary",
    ".usdz": "model/vnd.usdz+zip",
    ".stl": "model/stl",
    ".zip": "application/zip",
}
SHOWN = {"view", "sheet", "picture", "report.html", "turntable.mp4"}
"""Files that are looked at in place; the others, and these with ?download, are saved."""


def add_routes(app: FastAPI, service: Service) -> None:
    """Add them to an application."""

    def answered(work: Callable[[], Any]) -> Response:
        try:
            return JSONResponse(work(), headers={"Cache-Control": "no-store"})
        except InputError as error:
            status = 503 if isinstance(error, Busy) else 404 if "no such job" in str(error) else 400
            return JSONResponse({"error": str(error)}, status, headers={"Cache-Control": "no-store"})
        except ResourceError as error:
            return JSONResponse({"error": str(error)}, 507)

    def page(name: str) -> Response:
        if name not in PAGES:
            return Response("there is nothing here\n", 404)
        return Response(_static(f"{name}.html"), media_type="text/html", headers={"Content-Security-Policy": _STRICT})

    def asset(name: str) -> Response:
        if name not in ASSETS:
            return Response("there is nothing here\n", 404)
        return Response(_static(name), media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

    def file(request: Request, key: str, name: str, download: bool = False) -> Response:
        try:
            path = service.file(request.scope["visitor"], key, name)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 404)
        shown = name in SHOWN and not download
        kind = TYPES.get(path.suffix, "application/octet-stream")
        headers = {"Cache-Control": "private, no-cache", "Content-Security-Policy": _SANDBOX}
        disposition = "inline" if shown else "attachment"
        return FileResponse(path, media_type=kind, filename=name, content_disposition_type=disposition, headers=headers)

    def act(request: Request, key: str, action: str, file: str = "") -> Response:
        visitor = request.scope["visitor"]
        actions: dict[str, Callable[[], Any]] = {
            "cancel": lambda: service.cancel(visitor, key),
            "resume": lambda: service.resume(visitor, key),
            "delete": lambda: service.delete(visitor, key),
            "export": lambda: service.export(visitor, key, file),
        }
        if action not in actions:
            return JSONResponse({"error": "there is nothing here"}, 404)
        return answered(actions[action])

    def status(request: Request, key: str) -> Response:
        return answered(lambda: service.status(request.scope["visitor"], key))

    def jobs(request: Request) -> Response:
        return answered(lambda: service.jobs(request.scope["visitor"]))

    app.add_api_route(f"{PREFIX}/page/{{name}}", page, methods=["GET"])
    app.add_api_route(f"{PREFIX}/static/{{name}}", asset, methods=["GET"])
    app.add_api_route(f"{PREFIX}/jobs", jobs, methods=["GET"])
    app.add_api_route(f"{PREFIX}/job/{{key}}", status, methods=["GET"])
    app.add_api_route(f"{PREFIX}/job/{{key}}/file/{{name}}", file, methods=["GET", "HEAD"])
    app.add_api_route(f"{PREFIX}/job/{{key}}/{{action}}", act, methods=["POST"])


@cache
def _static(name: str) -> bytes:
    return (STATIC / name).read_bytes()

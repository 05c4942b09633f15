"""The page, our own addresses and the wall in front of them as one application, and what serves it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apps.web.guard import Guard
from apps.web.payload import check_payload
from apps.web.service import Service

SHUTDOWN_SECONDS = 3
SESSIONS = 64  # of gradio that are kept; each holds a copy of the page's description, 200 KiB, and nothing of a visitor


def prepare(empty: Path) -> Path:
    """Work in an empty folder, so that nothing lies about that gradio might serve; where it keeps uploads.

    Call it before gradio is imported.
    """
    uploads, here = empty / "files", empty / "here"
    uploads.mkdir(mode=0o700)
    here.mkdir()
    os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.chdir(here)
    return uploads


def application(service: Service, *, names: Iterable[str] = (), users: Mapping[str, str] | None = None) -> Guard:
    """An ASGI application. names: by which it may be asked, empty for any.  users: password by name, None for all."""
    import gradio as gr
    from fastapi import FastAPI

    from apps.web.page import HEAD, STYLE, blocks, theme
    from apps.web.routes import add_routes

    app, page = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks(service)
    add_routes(app, service)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        ssr_mode=False,
        show_error=False,
        max_file_size=service.limits.upload_bytes,
        allowed_paths=[],
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        theme=theme(),
        css=STYLE,
        head=HEAD,
    )
    page.state_holder.capacity = SESSIONS
    page.has_launched = True  # gradio looks at paths only then, and mounting does not say so (6.31)
    functions = frozenset(page.fns)
    endpoints = frozenset(str(function.api_name) for function in page.fns.values() if function.api_name)

    def check(path: str, body: bytes) -> None:
        check_payload(path, body, service.uploads, endpoints, functions)

    def room() -> bool:
        return shutil.disk_usage(service.uploads).free > service.limits.free_bytes + service.limits.upload_bytes

    return Guard(
        app,
        upload_bytes=service.limits.upload_bytes,
        hosts=frozenset(names),
        users=users,
        check=check,
        room=room,
    )


def run(app: Any, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # Else uvicorn ends the process before workers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run()

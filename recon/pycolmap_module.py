"""pycolmap, imported when it is first needed, without what its logging does to the process."""

from __future__ import annotations

import signal
import threading
from types import ModuleType


def load_pycolmap() -> ModuleType:
    """The module. SIGTERM stays with whoever had it.

    Its glog takes SIGTERM over at import: a stack trace and the end, where a run would have saved.
    """
    handler = signal.getsignal(signal.SIGTERM)
    import pycolmap

    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return pycolmap

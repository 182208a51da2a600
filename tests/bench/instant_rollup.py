"""The roll-up as the controller's thread does it: ``python -m tests.bench.instant_rollup``."""

from __future__ import annotations

import gc
import os
import threading

import django


def main() -> None:
    """Until the process is ended."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")
    django.setup()
    from inference.usage_thread import UsageThread

    leading = threading.Event()
    leading.set()
    thread = UsageThread(leading, threading.Event())
    gc.collect()
    gc.freeze()
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()

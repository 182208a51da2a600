"""mmserve's settings for tests: they touch neither this checkout's data nor its secrets.

pytest-django reads the settings before any conftest.py is loaded, so the environment is set here.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

SESSION_DIR = Path(tempfile.mkdtemp(prefix="mms-"))
# What the tests start as programs of their own runs on mmserve's settings as they are.
os.environ["DJANGO_SETTINGS_MODULE"] = "mmserve.settings"
os.environ["MMSERVE_DATA_DIR"] = str(SESSION_DIR / "data")
# A compiler beside every engine would keep the processors from the tests; test_forms.py has its own.
os.environ["MMSERVE_COMPILED_DIR"] = ""
os.environ["DJANGO_SECRET_KEY"] = secrets.token_urlsafe(64)
os.environ.setdefault("REDIS_URL", f"unix://{SESSION_DIR / 'redis.sock'}")
(SESSION_DIR / "data" / "static").mkdir(parents=True)

from mmserve.settings import *  # noqa: E402, F403

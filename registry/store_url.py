"""``MMSERVE_STORAGE_URL`` as an entry of Django's STORAGES. Read by the settings: imports no Django."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

FOLDER = "django.core.files.storage.FileSystemStorage"
S3 = "storages.backends.s3.S3Storage"


def storage_params(url: str, s3_endpoint: str = "") -> dict[str, Any]:
    """``file:///folder`` or ``s3://bucket/prefix``; anything else is a folder that `manage.py check` refuses."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        options = {
            "bucket_name": parts.netloc,
            "location": unquote(parts.path).strip("/"),
            "endpoint_url": s3_endpoint or None,
            "default_acl": None,
            "file_overwrite": True,
            "querystring_auth": True,
        }
        return {"BACKEND": S3, "OPTIONS": options}
    return {"BACKEND": FOLDER, "OPTIONS": {"location": unquote(parts.path)}}

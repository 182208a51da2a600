"""What the first start makes: a secret, an administrator, a key. Nothing has a default password."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TypedDict

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction

from mmserve.key_actions import create_key
from mmserve.models import SCOPES


class Credentials(TypedDict):
    """What `credentials.json` holds."""

    url: str
    username: str
    password: str
    api_key: str


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def ensure_secret_key() -> None:
    """Generate the secret key that settings found neither in the environment nor in the data directory."""
    path = settings.DATA_DIR / "secret_key"
    if os.environ.get("DJANGO_SECRET_KEY") or path.exists():
        return
    write_private(path, secrets.token_urlsafe(64))
    settings.SECRET_KEY = path.read_text()


def ensure_credentials() -> Credentials:
    """The first administrator and key: made once, kept in `credentials.json` with mode 0600."""
    path = settings.DATA_DIR / "credentials.json"
    url = f"http://{'127.0.0.1' if settings.HOST in ('0.0.0.0', '::') else settings.HOST}:{settings.PORT}"  # noqa: S104
    if path.exists():
        kept: Credentials = json.loads(path.read_text())
        if kept["url"] != url:
            kept["url"] = url
            write_private(path, json.dumps(kept, indent=2) + "\n")
        return kept
    users = get_user_model()
    password = secrets.token_urlsafe(15)
    with transaction.atomic():
        user = users.objects.filter(username="admin").first() or users(username="admin")
        user.is_staff = user.is_superuser = True
        user.set_password(password)
        user.save()
        _, api_key = create_key(
            name="first start", user=user, actor="first start", scopes=list(SCOPES), priority="high"
        )
    made = Credentials(url=url, username="admin", password=password, api_key=api_key)
    write_private(path, json.dumps(made, indent=2) + "\n")
    return made

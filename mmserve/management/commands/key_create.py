"""`manage.py key_create NAME`"""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser
from django.utils import timezone

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest, NotFound
from mmserve.key_actions import create_key
from mmserve.models import PRIORITIES, SCOPES
from routing.models import Team

MAX_DAYS = 36500


class Command(DataCommand):
    help = "Create an access key and print it, once. Exit codes: 0 done, 3 no such user or team, 5 a wrong value."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--user", help="whose key it is; the first superuser, if left out")
        parser.add_argument(
            "--scope", action="append", choices=SCOPES, dest="scopes", help="infer, if left out"
        )
        parser.add_argument("--team", help="who pays for what it uses")
        parser.add_argument("--days", type=float, help="until it expires; never, if left out")
        parser.add_argument("--requests-per-minute", type=int)
        parser.add_argument("--tokens-per-minute", type=int)
        parser.add_argument("--max-concurrency", type=int, default=1000)
        parser.add_argument(
            "--priority", choices=PRIORITIES, default="normal", help="the best class that it may ask for"
        )
        parser.add_argument(
            "--allow",
            action="append",
            default=[],
            dest="allowed_models",
            help="a pattern of the models that it may use, * and ? as in file names; all, if left out",
        )
        add_reason(parser)

    def run(self, *, name: str, scopes: list[str] | None, reason: str, **options: Any) -> dict[str, Any]:
        limits = {
            field: options[field]
            for field in (
                "requests_per_minute",
                "tokens_per_minute",
                "max_concurrency",
                "priority",
                "allowed_models",
            )
        }
        key, raw = create_key(
            name=name,
            user=_user(options["user"]),
            actor=actor(),
            reason=reason,
            scopes=scopes,
            expiry=_expiry(options["days"]),
            team=_team(options["team"]),
            **limits,
        )
        return {"key": raw, "id": str(key.id), "name": key.name, "scopes": key.scopes, "expiry": key.expiry}


def _user(username: str | None) -> Any:
    users = get_user_model().objects.filter(is_active=True)
    if username is None:
        user = users.filter(is_superuser=True).order_by("pk").first()
    else:
        user = users.filter(username=username).first()
    if user is None:
        raise NotFound(
            f"There is no user {username!r}." if username else "There is no superuser yet: name a user."
        )
    return user


def _team(name: str | None) -> Team | None:
    team = None if name is None else Team.objects.filter(name=name).first()
    if name is not None and team is None:
        raise NotFound(f"There is no team {name!r}.")
    return team


def _expiry(days: float | None) -> datetime.datetime | None:
    if days is None:
        return None
    if not 0 < days <= MAX_DAYS:
        raise InvalidRequest(f"days is {days}, not from 0 to {MAX_DAYS}", param="days")
    return timezone.now() + datetime.timedelta(days=days)

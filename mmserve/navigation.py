"""The admin's sidebar."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect width="16" height="16" rx="3" fill="#9810fa"/>'
    '<path d="M3 12V4l5 5 5-5v8" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)
SECTIONS: tuple[tuple[str, tuple[tuple[str, str, str, str | None], ...]], ...] = (
    ("", (("Dashboard", "space_dashboard", "admin:index", None),)),
    (
        "Registry",
        (
            ("Models", "deployed_code", "admin:registry_model_changelist", "registry.view_model"),
            (
                "Versions",
                "inventory_2",
                "admin:registry_modelversion_changelist",
                "registry.view_modelversion",
            ),
            ("Aliases", "label", "admin:registry_alias_changelist", "registry.view_alias"),
            ("Events", "history", "admin:registry_event_changelist", "registry.view_event"),
        ),
    ),
    (
        "Routing",
        (
            ("Routes", "alt_route", "admin:routing_route_changelist", "routing.view_route"),
            ("Scorers", "score", "admin:routing_trainedscorer_changelist", "routing.view_trainedscorer"),
            ("Experiments", "science", "admin:routing_experiment_changelist", "routing.view_experiment"),
            (
                "Exclusion groups",
                "splitscreen",
                "admin:routing_exclusiongroup_changelist",
                "routing.view_exclusiongroup",
            ),
        ),
    ),
    (
        "Inference",
        (
            (
                "Deployments",
                "rocket_launch",
                "admin:inference_deployment_changelist",
                "inference.view_deployment",
            ),
            ("Replicas", "memory", "admin:inference_replica_changelist", "inference.view_replica"),
            (
                "Memory",
                "memory_alt",
                "admin:inference_loadobservation_changelist",
                "inference.view_loadobservation",
            ),
            ("Nodes", "dns", "admin:inference_node_changelist", "inference.view_node"),
            ("Jobs", "work_history", "django_rq:home", "django_rq.view_dashboard"),
        ),
    ),
    (
        "Spending",
        (
            ("Usage", "monitoring", "admin:routing_usagehour_changelist", "routing.view_usagehour"),
            ("Budgets", "savings", "admin:routing_budget_changelist", "routing.view_budget"),
            ("Teams", "groups", "admin:routing_team_changelist", "routing.view_team"),
            ("Decisions", "alt_route", "decisions-page", "routing.view_decisions"),
        ),
    ),
    (
        "Access",
        (
            ("Access keys", "key", "admin:mmserve_accesskey_changelist", "mmserve.view_accesskey"),
            ("Users", "person", "admin:auth_user_changelist", "auth.view_user"),
            ("Groups", "group", "admin:auth_group_changelist", "auth.view_group"),
        ),
    ),
)


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """unfold's SIDEBAR navigation: what this user may see."""
    return [
        {
            "title": title,
            "separator": bool(title),
            "items": [
                {"title": name, "icon": icon, "link": reverse(view)}
                for name, icon, view, permission in entries
                if permission is None or request.user.has_perm(permission)
            ],
        }
        for title, entries in SECTIONS
    ]


def favicon(request: HttpRequest) -> str:
    """The site's icon, as an address that needs no request."""
    return "data:image/svg+xml," + quote(ICON)


def job_styles(request: HttpRequest) -> str:
    """The style sheet for django-rq's pages."""
    return static("mmserve/jobs.css")

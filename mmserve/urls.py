"""What Django itself answers; the hot path is mounted beside it in mmserve.asgi."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView
from rest_framework.routers import SimpleRouter

from inference import api as inference
from mmserve import api as access
from registry import api as registry
from routing.admin.decisions import decision_page, decisions_page
from routing.api import decisions, experiments, routes, usage

router = SimpleRouter(trailing_slash=False)
router.register("models", registry.ModelViewSet, basename="registry-model")
router.register("versions", registry.VersionViewSet, basename="registry-version")
router.register("aliases", registry.AliasViewSet, basename="registry-alias")
router.register("deployments", inference.DeploymentViewSet, basename="deployment")
router.register("events", registry.EventViewSet, basename="event")
router.register("keys", access.KeyViewSet, basename="key")

routing_router = SimpleRouter(trailing_slash=False)
routing_router.register("routes", routes.RouteViewSet, basename="route")
routing_router.register("experiments", experiments.ExperimentViewSet, basename="experiment")
routing_router.register("exclusion-groups", experiments.GroupViewSet, basename="exclusion-group")
routing_router.register("teams", usage.TeamViewSet, basename="team")
routing_router.register("budgets", usage.BudgetViewSet, basename="budget")

v1: list[URLPattern | URLResolver] = [
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path("models", inference.Models.as_view(), name="models"),
    # A model's name may hold "/": the verbs come first.
    path("models/<path:model_id>/load", inference.Load.as_view(), name="load"),
    path("models/<path:model_id>/unload", inference.Unload.as_view(), name="unload"),
    path("models/<path:model_id>/plan", inference.Plan.as_view(), name="plan"),
    path("models/<path:model_id>/history", registry.History.as_view(), name="history"),
    path("models/<path:model_id>", inference.OneModel.as_view(), name="model"),
    path("registry/", include(router.urls)),
    path("feedback", experiments.FeedbackView.as_view(), name="feedback"),
    path("usage", usage.Usage.as_view(), name="usage"),
    path("routing/decisions", decisions.Decisions.as_view(), name="decisions"),
    path("routing/decisions/<str:decision_id>", decisions.Decision.as_view(), name="decision"),
    path("routing/stats", decisions.Stats.as_view(), name="routing-stats"),
    path("routing/", include(routing_router.urls)),
]

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/routing/decisions/", admin.site.admin_view(decisions_page), name="decisions-page"),
    path(
        "admin/routing/decisions/<slug:decision_id>/",
        admin.site.admin_view(decision_page),
        name="decision-page",
    ),
    path("admin/django-rq/", include("django_rq.urls")),
    path("admin/", admin.site.urls),
    path("v1/", include(v1)),
    path("", include("django_prometheus.urls")),
]

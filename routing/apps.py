"""WHO serves this request."""

from django.apps import AppConfig


class RoutingConfig(AppConfig):
    name = "routing"
    verbose_name = "Routing"

    def ready(self) -> None:
        """A version of an open experiment is not retired."""
        from registry.actions import version_retiring
        from routing.actions.experiments import refuse_to_retire

        version_retiring.connect(refuse_to_retire)

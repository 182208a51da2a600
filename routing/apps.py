"""WHO serves this request."""

from django.apps import AppConfig


class RoutingConfig(AppConfig):
    name = "routing"
    verbose_name = "Routing"

    def ready(self) -> None:
        """A version of an open experiment or of a route is not retired, nor an alias; and a route's name stays its own.

        The registry's document has the routes in it.
        """
        from registry.actions import alias_retiring, model_name_proposed, version_retiring
        from registry.portable.sections import provide
        from routing.actions.experiments import refuse_to_retire
        from routing.actions.routes import on_alias_retiring, on_model_name_proposed, on_version_retiring
        from routing.portable import Routes

        provide(Routes())
        version_retiring.connect(refuse_to_retire)
        version_retiring.connect(on_version_retiring, dispatch_uid="routing.routes")
        alias_retiring.connect(on_alias_retiring, dispatch_uid="routing.routes")
        model_name_proposed.connect(on_model_name_proposed, dispatch_uid="routing.routes")

"""DOING it."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
    verbose_name = "Inference"

    def ready(self) -> None:
        from inference.actions import on_engine_options_proposed, on_version_retiring
        from inference.notify import on_configuration_changed
        from inference.observation_metrics import register
        from inference.situation import Present
        from registry.actions.versions import engine_options_proposed, version_retiring
        from registry.revision import configuration_changed
        from routing.situation import provide

        register()
        configuration_changed.connect(on_configuration_changed, dispatch_uid="inference.notify")
        engine_options_proposed.connect(on_engine_options_proposed, dispatch_uid="inference.actions")
        version_retiring.connect(on_version_retiring, dispatch_uid="inference.actions")
        provide(Present())

"""DOING it."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
    verbose_name = "Inference"

    def ready(self) -> None:
        from inference.actions import on_version_retiring
        from inference.notify import on_configuration_changed
        from registry.actions.versions import version_retiring
        from registry.revision import configuration_changed

        configuration_changed.connect(on_configuration_changed, dispatch_uid="inference.notify")
        version_retiring.connect(on_version_retiring, dispatch_uid="inference.actions")

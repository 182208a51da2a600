"""The composition."""

from django.apps import AppConfig


class MmserveConfig(AppConfig):
    name = "mmserve"
    verbose_name = "Access"

    def ready(self) -> None:
        from mmserve import checks, schema  # noqa: F401

"""The registry as one YAML document, so that it can live in git: export, difference, apply."""

from registry.portable.document import Document, read_document, write_document
from registry.portable.plan import apply, plan
from registry.portable.sections import Change

__all__ = ["Change", "Document", "apply", "plan", "read_document", "write_document"]

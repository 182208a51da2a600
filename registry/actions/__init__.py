"""What may be done to the registry. Admin, REST and commands call these functions and nothing else.

Each one is a transaction that checks, changes by compare-and-set, writes an append-only event with actor and
reason, bumps the configuration's revision, and tells every process once it is committed.
"""

from registry.actions.aliases import alias_retiring, delete_alias, promote, rollback, set_default_alias
from registry.actions.models import delete_model, model_name_proposed, register_model, update_model
from registry.actions.versions import (
    TRANSITIONS,
    archive_version,
    cancel_import,
    delete_version,
    duplicate_version,
    engine_options_proposed,
    import_version,
    register_version,
    repair_version,
    restore_version,
    update_version,
    verify_version,
    version_retiring,
)

__all__ = [
    "TRANSITIONS",
    "alias_retiring",
    "archive_version",
    "cancel_import",
    "delete_alias",
    "delete_model",
    "delete_version",
    "duplicate_version",
    "engine_options_proposed",
    "import_version",
    "model_name_proposed",
    "promote",
    "register_model",
    "register_version",
    "repair_version",
    "restore_version",
    "rollback",
    "set_default_alias",
    "update_model",
    "update_version",
    "verify_version",
    "version_retiring",
]

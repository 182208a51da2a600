"""Save a row, or say in the API's words which field is wrong."""

from __future__ import annotations

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import IntegrityError, models, transaction

from mmserve.errors import Conflict, InvalidRequest


def check(row: models.Model) -> None:
    """Validate, but for what is unique."""
    try:
        row.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        param = None if field == NON_FIELD_ERRORS else field
        raise InvalidRequest(f"{field}: {messages[0]}" if param else messages[0], param=param) from error


def save_checked(row: models.Model, *, unique: str) -> None:
    """Validate and save; ``unique`` is what to say when the name is taken."""
    check(row)
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError as error:
        raise Conflict(unique) from error

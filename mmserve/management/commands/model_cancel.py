"""`manage.py model_cancel ID`"""

from mmserve.version_command import VersionCommand
from registry.actions import cancel_import


class Command(VersionCommand):
    help = "Stop bringing a version's files. Exit codes: 0 done, 3 no such model, 4 refused."
    verb = staticmethod(cancel_import)

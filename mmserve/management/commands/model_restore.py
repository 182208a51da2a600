"""`manage.py model_restore ID`"""

from mmserve.version_command import VersionCommand
from registry.actions import restore_version


class Command(VersionCommand):
    help = "Bring an archived version back. Exit codes: 0 done, 3 no such model, 4 refused."
    verb = staticmethod(restore_version)

"""`manage.py model_archive ID`"""

from mmserve.version_command import VersionCommand
from registry.actions import archive_version


class Command(VersionCommand):
    help = "Keep a version for the record and refuse to serve it. Exit codes: 0 done, 3 no such model, 4 refused."
    verb = staticmethod(archive_version)

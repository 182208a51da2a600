"""`manage.py model_fetch ID`"""

from mmserve.management.commands.model_import import Command as Import


class Command(Import):
    help = f"The same as model_import. {Import.help}"

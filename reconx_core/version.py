"""The version, apart from all else: no stage may reach this module, or every release would compute everything anew."""

__version__ = "0.1.0"

"""The error that a user can mend. Imports nothing, so that a command's ``--help`` costs nothing."""


class ConfigError(ValueError):
    """Something in a config is wrong; the message says where, what, and the nearest right thing."""

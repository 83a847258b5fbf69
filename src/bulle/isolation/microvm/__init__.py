"""The level ``vm``: a guest kernel of its own under QEMU."""

NAME_SERVER = "169.254.53.1"
"""Where a guest asks for names: the host's end of its cable, an address that no network routes."""

"""The level ``chroot``: a private root, and nothing else of its own."""

from bulle.isolation.chroot.driver import ChrootDriver

__all__ = ["ChrootDriver"]

"""The level ``container``: Linux namespaces, control groups, capabilities and a system call filter."""

from bulle.isolation.namespaces.driver import NamespaceDriver

__all__ = ["NamespaceDriver"]

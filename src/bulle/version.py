"""The version of Bulle, in one place: the package's metadata is made from it, and no command has to look for metadata."""

VERSION = "0.2.0"

"""The labels by which the parts of an app are found again: those of docker compose, so that its users' scripts and tools find them too."""

from __future__ import annotations

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
ONE_OFF = "com.docker.compose.oneoff"
"""``True`` for what ``compose run`` made, else ``False``."""
CONFIG_HASH = "com.docker.compose.config-hash"
CONFIG_FILES = "com.docker.compose.project.config_files"
WORKING_DIRECTORY = "com.docker.compose.project.working_dir"
ENVIRONMENT_FILE = "com.docker.compose.project.environment_file"
IMAGE = "com.docker.compose.image"
DEPENDS_ON = "com.docker.compose.depends_on"
NETWORK = "com.docker.compose.network"
VOLUME = "com.docker.compose.volume"
VERSION = "com.docker.compose.version"
REPLACE = "com.docker.compose.replace"
SLUG = "com.docker.compose.slug"


def container_name(project: str, service: str, number: int) -> str:
    """The name of one replica."""
    return f"{project}-{service}-{number}"

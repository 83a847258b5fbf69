"""Apps as Kubernetes documents: a corpus of Compose files whose comments say what becomes of them, held to Kubernetes' own strict schemas.

``# gives: KIND NAME: PATH = VALUE`` is a value in a document (a ``*`` in NAME stands for a hash), ``# lacks:`` one that is not there, ``# noted:`` and
``# refused:`` are the keys that are, all of them; ``# order:`` says which document stands before which, ``# newest`` that older versions lack something.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from kubernetes_validate import utils

from bulle.compose.loading import load
from bulle.compose.model import FileObject, Network, Project, Service, Volume
from bulle.errors import InvalidInput
from bulle.kube import keys
from bulle.kube.manifests import Manifests, manifests
from bulle.kube.translation import Translation
from bulle.kube.writing import write_yaml
from bulle_testing import places

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.yaml"))
EXAMPLES = sorted((places.SOURCE / "examples").glob("*/compose.yaml"))
OLDEST, NEWEST = "1.25", "1.37"

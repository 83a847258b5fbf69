"""What is called how on a machine where several homes may have networks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def table_name(home: Path) -> str:
    """The name of the home's nftables tables."""
    return "bulle_" + hashlib.sha256(os.fsencode(home)).hexdigest()[:8]

"""The engine: everything that Bulle can do on one home, as a library.

The command line, and later the HTTP socket, are thin layers over this class. It prints nothing, never exits, and may be used from threads; it is
cheap to open, since everything it knows is in the database and the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulle.engine.artifacts import Artifacts
from bulle.engine.containers import Containers
from bulle.engine.home import default_home, prepare_home
from bulle.engine.images import Images
from bulle.engine.indexes import Indexes
from bulle.engine.networks import Networks
from bulle.engine.registries import Registries
from bulle.engine.volumes import Volumes
from bulle.records.database import Database
from bulle.store import Store

if TYPE_CHECKING:
    from bulle.engine.booting import Outcome
    from bulle.engine.events import Events, Filters
    from bulle.engine.pruning import Pruned
    from bulle.engine.usage import Usage
    from bulle.model.comparison import Comparison


class Engine:
    """One home (a host path; by default BULLE_HOME or the user's own place) and what can be done with it.

    ``store`` and ``database`` are for the rooms above the engine, which build on it.
    """

    def __init__(self, home: Path | str | None = None) -> None:
        self.home = Path(home).absolute() if home is not None else default_home()
        prepare_home(self.home)
        self.database = Database(self.home)
        self.store = Store(self.home, self.database)
        self.images = Images(self.database, self.store)
        self.indexes = Indexes(self.database, self.store, self.images)
        self.artifacts = Artifacts(self.store, self.images)
        self.registries = Registries()
        self.networks = Networks(self.home, self.database)
        self.volumes = Volumes(self.home, self.database, self.store)
        self.containers = Containers(self.home, self.database, self.store, self.images, self.volumes)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this thread's connection to the database; containers go on."""
        self.store.close()
        self.database.close()

    def gc(self) -> int:
        """Remove what nothing needs any more and what killed processes left; returns the bytes that the disk got back."""
        from bulle.engine import rebasing, removal

        rebasing.collect(self)
        freed = self.store.gc()
        removal.collect_steps(self.home, self.database)
        removal.collect(self.home, self.database)
        return freed + self.volumes.collect()

    def layer_backend(self) -> str:
        """How layers are shown on this machine: ``erofs``, ``loop`` or ``directory``."""
        return self.store.layers.backend().kind

    def usage(self) -> Usage:
        """What the home takes on the disk, and how much of it could be had back."""
        from bulle.engine.usage import usage_of

        return usage_of(self)

    def events(self, *, since_ns: int = 0, until_ns: int = 0, follow: bool = True, filters: Filters | None = None) -> Events:
        """What happened and happens to containers and images, oldest first; without times and with ``follow`` what happens from now on.

        Times are nanoseconds since the epoch (0: none). ``filters`` are Docker's, such as ``{"type": ["container"], "event": ["die"]}``. To be
        closed, or used with ``with``. Raises InvalidInput.
        """
        from bulle.engine.events import Events

        return Events(self.home, since_ns=since_ns, until_ns=until_ns, follow=follow, filters=filters)

    def boot(self) -> tuple[Outcome, ...]:
        """After a reboot: start what restart policies want to run, and clean up; says what was started, and what could not be."""
        from bulle.engine.booting import boot

        return boot(self)

    def shutdown(self, timeout_s: int | None = None) -> tuple[Outcome, ...]:
        """Stop all containers that run, at once, for :meth:`boot` to start again; each has its own time to end, or ``timeout_s`` (-1: for ever)."""
        from bulle.engine.booting import shutdown

        return shutdown(self, timeout_s)

    def compare(self, image: str, command: Sequence[str] = (), **options: Any) -> Comparison:
        """The same work at each isolation level and on the bare host: see :func:`bulle.engine.comparing.compare` for the options."""
        from bulle.engine.comparing import compare

        return compare(self, image, command, **options)

    def prune_build_cache(self, *, every: bool = False, until_ns: int = 0) -> Pruned:
        """Forget steps of builds that no image needs, or with ``every`` all; with ``until_ns`` only those not used since."""
        from bulle.engine.pruning import prune_build_cache

        self.gc()  # what builds left that were killed
        return prune_build_cache(self.store, every=every, until_ns=until_ns)

    def version(self) -> dict[str, Any]:
        """Versions of Bulle, Python and the kernel."""
        from bulle.engine.system import version_document

        return version_document()

    def info(self) -> dict[str, Any]:
        """This home and this machine in numbers, in the form of ``docker info``."""
        from bulle.engine.system import info_document

        return info_document(self)

    def doctor(self) -> list[Any]:
        """What this machine offers and what would mend the rest: a list of :class:`bulle.engine.doctor.Finding`."""
        from bulle.engine.doctor import examine

        return examine(self.home)

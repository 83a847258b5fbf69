"""What the engine knows of registries in general: how they are spoken to, and the user's logins.

``images`` and ``indexes`` take their configuration from here, so that mirrors, certificates and credentials mean the same to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bulle.registry.progress import ProgressCallback
    from bulle.registry.transport import Credentials, SourceConfiguration

    FindCredentials = Callable[[str], Credentials | None]


@dataclass(frozen=True, slots=True)
class Login:
    """A login that a registry took: ``file`` (a host path) has it, in plain text unless a credential helper keeps the secret."""

    server: str
    file: Path
    in_plain_text: bool


def local_configuration(temporary: Path | None, progress: ProgressCallback | None) -> SourceConfiguration:
    """How sources are opened that are no registry."""
    from bulle.registry.progress import silent
    from bulle.registry.transport import SourceConfiguration

    return SourceConfiguration(temporary=temporary, progress=progress or silent)


def network_configuration(
    temporary: Path | None, progress: ProgressCallback | None, find: FindCredentials | None = None
) -> SourceConfiguration:
    """How registries are spoken to, as the user configured it, with the user's logins or those that ``find`` finds.

    Raises InvalidInput where a file of settings is wrong.
    """
    from bulle.registry import credentials, settings

    found = settings.read_settings()
    return replace(
        local_configuration(temporary, progress),
        insecure_registries=found.insecure,
        mirrors=found.mirrors,
        credentials=find or credentials.find,
        trust=found.trust,
    )


def login_for(server: str, username: str, password: str) -> FindCredentials:
    """A login that somebody gives along, for one registry alone (``""`` is Docker's own). Raises InvalidInput."""
    return logins_for({server: (username, password)})


def logins_for(logins: Mapping[str, tuple[str, str]]) -> FindCredentials:
    """Logins that somebody gives along: user name and password by registry. Raises InvalidInput."""
    from bulle.registry import credentials
    from bulle.registry.transport import Credentials

    given = {credentials.server_name(server): Credentials(*login) for server, login in logins.items()}
    return given.get


class Registries:
    """The user's logins."""

    def check(self, server: str, username: str, password: str) -> None:
        """Ask a registry whether it takes a login, which is kept nowhere. Raises AuthenticationFailed, RegistryFailure, InvalidInput."""
        from bulle.registry import credentials
        from bulle.registry.destination import check_login

        if not username or not password or ":" in username or any(not character.isprintable() for character in username + password):
            raise InvalidInput("a login needs a user name and a password", "one is empty, or has characters that cannot be")
        check_login(credentials.server_name(server), network_configuration(None, None, login_for(server, username, password)))

    def login(self, server: str, username: str, password: str) -> Login:
        """Keep a login for a registry (``""`` is Docker's own), once the registry took it. Raises as :meth:`check`; then nothing is kept."""
        from bulle.registry import credentials
        from bulle.registry.transport import Credentials

        self.check(server, username, password)
        host = credentials.server_name(server)
        path = credentials.store(host, Credentials(username, password))
        return Login(host, path, not credentials.is_kept_by_helper(host))

    def known_user(self, server: str) -> str:
        """The user name that is kept for a registry, "" for none."""
        from bulle.registry import credentials

        found = credentials.find(credentials.server_name(server))
        return found.username if found is not None else ""

    def logout(self, server: str) -> bool:
        """Forget the login for a registry; False where there was none. Raises InvalidInput, AuthenticationFailed (a failed helper)."""
        from bulle.registry import credentials

        return credentials.erase(credentials.server_name(server))

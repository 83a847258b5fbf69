"""Health checks as probes, hooks as handlers of a container's life."""

from __future__ import annotations

from bulle.compose.model import Service
from bulle.compose.service_parts import Healthcheck, Hook
from bulle.kube.names import Document, seconds
from bulle.kube.report import Path
from bulle.kube.translation import Translation

LIVENESS = "x-kubernetes-liveness"
_INTERVAL = _TIMEOUT = 30_000_000_000
_START_INTERVAL = 5_000_000_000
_RETRIES = 3


def probes(translation: Translation, service: Service) -> Document:
    """The probes of a service's container; without a check of its own the image's is taken, where it is known."""
    path = ("services", service.name, "healthcheck")
    check = service.healthcheck
    if check is None or not (check.test or check.disable):
        of_image = translation.health_of_image(service.image)
        check = _over(of_image, check) if of_image is not None else None
    if check is None or check.disable or check.test[:1] == ("NONE",):
        if service.healthcheck is not None and not (service.healthcheck.disable or service.healthcheck.test):
            translation.report.refuse("says no `test`, and none of the image is known here", *path)
        return {}
    handler: Document = {"exec": {"command": _command(check.test)}, "timeoutSeconds": _whole(translation, check.timeout or _TIMEOUT, path)}
    retries = check.retries if check.retries else _RETRIES
    steady = {**handler, "periodSeconds": _whole(translation, check.interval or _INTERVAL, path), "failureThreshold": retries}
    found: Document = {}
    if check.start_period or check.start_interval:
        every = _whole(translation, check.start_interval or _START_INTERVAL, path)
        found["startupProbe"] = {**handler, "periodSeconds": every, "failureThreshold": -(-seconds(check.start_period) // every) + retries}
    found["readinessProbe"] = steady
    if service.extensions.get(LIVENESS) is True:
        found["livenessProbe"] = steady
    return found


def _over(image: Healthcheck, file: Healthcheck | None) -> Healthcheck:
    """The image's check with what the file says over it."""
    if file is None:
        return image
    return Healthcheck(
        test=image.test,
        interval=file.interval or image.interval,
        timeout=file.timeout or image.timeout,
        retries=file.retries if file.retries is not None else image.retries,
        start_period=file.start_period or image.start_period,
        start_interval=file.start_interval or image.start_interval,
    )


def _command(test: tuple[str, ...]) -> list[str]:
    if test[0] == "CMD":
        return list(test[1:])
    return ["/bin/sh", "-c", " ".join(test[1:] if test[0] == "CMD-SHELL" else test)]


def _whole(translation: Translation, nanoseconds: int, path: Path) -> int:
    if nanoseconds % 1_000_000_000:
        translation.report.note("Kubernetes counts whole seconds: parts are rounded up", *path)
    return seconds(nanoseconds)


def lifecycle(translation: Translation, service: Service) -> Document:
    """Hooks, the time to drain, and the signal that ends the container."""
    report = translation.report
    found: Document = {}
    for key, said, hooks in (("postStart", "post_start", service.post_start), ("preStop", "pre_stop", service.pre_stop)):
        if hooks:
            found[key] = _hook(translation, hooks, ("services", service.name, said))
    if service.drain:
        if "preStop" in found:
            report.refuse("Kubernetes does one thing before the stop: let the command of `pre_stop` wait", "services", service.name, "x-bulle-drain")
        else:
            report.note("needs Kubernetes 1.30 or newer", "services", service.name, "x-bulle-drain")
            found["preStop"] = {"sleep": {"seconds": seconds(service.drain)}}
    if (signal := stop_signal(service)) != "SIGTERM":
        report.note("needs Kubernetes 1.33 or newer", "services", service.name, "stop_signal")
        found["stopSignal"] = signal
    return {"lifecycle": found} if found else {}


def stop_signal(service: Service) -> str:
    """The name of the signal that ends the service, as Kubernetes writes it."""
    import signal

    said = service.stop_signal.upper()
    if said.isdigit():
        try:
            return signal.Signals(int(said)).name
        except ValueError:
            return said
    return (said if said.startswith("SIG") else f"SIG{said}") if said else "SIGTERM"


def _hook(translation: Translation, hooks: tuple[Hook, ...], path: Path) -> Document:
    if len(hooks) > 1:
        translation.report.refuse("Kubernetes runs one command here: join them in a script", *path)
    return {"exec": {"command": list(hooks[0].command)}}

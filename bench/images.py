"""The parts of the benchmark about images: building one in thirty steps, and pulling one of 400 MB from a registry on this machine.

As in figures.py, each takes the field of contestants and gives rows and sentences of detail.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from contestants import Buildah, docker_command
from figures import LARGE_PACKAGES, Field, Rows, compare
from measuring import Contestant, Failed, Result, interleaved, program, timer

from bulle_testing import peers, places

STEPS = 30
FILES = 9
_BUILDKIT = {"DOCKER_BUILDKIT": "1"}
_CLASSIC = {"DOCKER_BUILDKIT": "0"}


def containerfile(base: str) -> str:
    """Thirty steps as people write them: settings, files of the context, commands; the last COPY is near the end."""
    lines = [f"FROM {base}", "ENV ONE=1 TWO=2", "LABEL maker=bench", "WORKDIR /srv/app"]
    for number in range(FILES):
        lines += [f"COPY file{number} ./data{number}/", f"RUN cat data{number}/file{number} > out{number} && mkdir -p /var/lib/step{number}"]
    lines += ["USER 0", "EXPOSE 8080", "VOLUME /data", "COPY late ./", "RUN wc -c late > count", "STOPSIGNAL SIGTERM"]
    lines += ['ENTRYPOINT ["cat"]', 'CMD ["count"]']
    assert len(lines) == STEPS, len(lines)
    return "\n".join(lines) + "\n"


def context(directory: Path) -> Path:
    """A context with nine files of 100 KB and the one that changes."""
    path = directory / "context"
    path.mkdir()
    for number in range(FILES):
        (path / f"file{number}").write_bytes(os.urandom(50_000).hex().encode())
    (path / "late").write_text("0\n")
    (path / "Dockerfile").write_text(containerfile("busybox:latest"))
    return path


def build(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """``build`` of thirty steps: without a cache, with everything cached, and with one file changed near the end."""
    path = context(field.directory)
    rows: Rows = []
    details: list[str] = []
    counter = itertools.count(1)
    with ExitStack() as stack:
        plain = stack.enter_context(timer())
        words = ["build", "--network", "none", "-q", "-t", "built"]
        commands: dict[str, tuple[list[str], dict[str, str]]] = {"bulle": (field.bulle.command(*words), field.bulle.environment)}
        if docker := field.docker:
            home = {"HOME": str(field.directory)}
            # Debian's own client has BuildKit inside; newer ones want another program for it.
            client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else str(program("docker"))
            for name, kind in (("docker", _CLASSIC), ("docker, BuildKit", _BUILDKIT)):
                commands[name] = ([client, *docker_command(docker, *words)[1:]], home | kind)
        if program("buildah") and program("runc"):
            buildah = Buildah(field.directory / "buildah")
            buildah("pull", f"docker-archive:{field.directory}/busybox.tar")
            commands["buildah"] = (buildah.command("build", "--layers", *words[1:]), buildah.environment)

        def cold(name: str) -> float:
            command, environment = commands[name]
            os.sync()
            return plain.run([*command, "--no-cache", str(path)], environment)

        def cached(name: str) -> float:
            command, environment = commands[name]
            return plain.run([*command, str(path)], environment)

        def changed(name: str) -> float:
            (path / "late").write_text(f"{next(counter)}\n")
            return cached(name)

        for what, act, at_most in (("cold", cold, 1.0), ("all cached", cached, 1 / 5), ("one late change", changed, None)):
            runs: dict[str, Contestant] = {name: (lambda name=name, act=act: act(name)) for name in commands}  # type: ignore[misc]
            results = interleaved(runs, options.build_rounds, warm_up=1)
            peer = fastest(results)
            rows.append(compare(f"build of {STEPS} steps, {what}", results, peer, at_most))
            details += [f"build, {what}, {name}: {result}" for name, result in results.items()]
    return rows, details


def fastest(results: dict[str, Result]) -> str:
    """The quickest peer."""
    medians = {name: result.median for name, result in results.items() if name != "bulle" and result.median is not None}
    if not medians:
        raise Failed("no peer could be measured")
    return min(medians, key=lambda name: medians[name] or 0.0)


def pull(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """``pull`` of a Debian image of some 400 MB from a registry on this machine, and the same work by a pipe of small programs."""
    if not program("docker-registry") or not program("skopeo"):
        raise Failed("docker-registry and skopeo are not installed")
    tar = peers.debian_root("bookworm", (*LARGE_PACKAGES, "gcc"))
    archive = places.cache_directory() / f"{tar.stem}-image.tar"
    if not archive.exists():
        part = archive.with_suffix(".part")
        peers.docker_archive(part, [tar.read_bytes()], tags=["large:latest"])
        part.rename(archive)
    with ExitStack() as stack:
        registry = stack.enter_context(peers.private_registry(field.directory / "registry"))
        registry.push(f"docker-archive:{archive}", "large:latest")
        reference = f"{registry.address}/large:latest"
        plain = stack.enter_context(timer())
        runs: dict[str, Contestant] = {}

        def contestant(name: str, command: list[str], environment: dict[str, str] | None, remove: list[str]) -> None:
            def once() -> float:
                os.sync()
                took = plain.run(command, environment)
                subprocess.run(remove, env={**os.environ, **(environment or {})}, check=True, capture_output=True)
                return took

            runs[name] = once

        bulle = field.bulle
        contestant("bulle", bulle.command("pull", reference), bulle.environment, bulle.command("rmi", reference))
        if docker := field.docker:
            contestant("docker", docker_command(docker, "pull", reference), None, docker_command(docker, "rmi", reference))
        if podman := field.podman:
            command = podman.command("pull", "--tls-verify=false", reference)
            contestant("podman", command, podman.environment, podman.command("rmi", reference))
        blob = largest_blob(registry)
        if program("igzip") and program("curl"):
            target = field.directory / "pipe"
            pipe = f"set -o pipefail; curl -sf {blob} | tee >(sha256sum >{target}.1) | igzip -dc | tee >(sha256sum >{target}.2) >{target}; wait"
            contestant("pipe", ["/bin/bash", "-c", pipe], None, ["rm", "-f", str(target)])
        results = interleaved(runs, options.load_rounds, warm_up=1)
    what = f"pull of a Debian image, {tar.stat().st_size >> 20} MiB, from a registry on this machine"
    rows: Rows = [compare(what, results, "docker", 1 / 3), compare(what, results, "podman", 1 / 3)]
    rows.append(compare("the same against curl, sha256sum, igzip and sha256sum in a pipe", results, "pipe", 1 / 0.7))
    return rows, [f"pull, {name}: {result}" for name, result in results.items()]


def largest_blob(registry: peers.Registry) -> str:
    """The address of the image's layer."""
    import json
    import urllib.request

    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://{registry.address}/v2/large/manifests/latest", headers=accept)) as answer:
        manifest = json.load(answer)
    layer = max(manifest["layers"], key=lambda one: int(one["size"]))
    return f"http://{registry.address}/v2/large/blobs/{layer['digest']}"

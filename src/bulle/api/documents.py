"""What Docker's documents have besides: fields that mean nothing here and that programs look for all the same, as empty as Docker leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HOST_CONFIG: Mapping[str, Any] = {
    "ContainerIDFile": "", "VolumeDriver": "", "GroupAdd": None, "Cgroup": "", "Links": None, "Runtime": "", "ConsoleSize": [0, 0],
    "CgroupParent": "",
    "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "Devices": None, "DeviceCgroupRules": None, "DeviceRequests": None, "CpuCount": 0,
    "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "Sysctls": None,
}  # fmt: skip
_CONFIG: Mapping[str, Any] = {
    "AttachStdin": False, "AttachStdout": True, "AttachStderr": True, "StdinOnce": False, "ExposedPorts": None, "Volumes": None, "OnBuild": None,
}  # fmt: skip
_NETWORK_SETTINGS: Mapping[str, Any] = {
    "SandboxID": "", "HairpinMode": False, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": None,
    "SecondaryIPv6Addresses": None,
}  # fmt: skip
_ENDPOINT: Mapping[str, Any] = {
    "IPAMConfig": None, "Links": None, "Aliases": None, "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0,
    "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "", "DriverOpts": None, "DNSNames": None,
}  # fmt: skip
_GRAPH_DRIVER = {"Name": "overlay", "Data": {}}


def container(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of the engine's document of a container all that Docker's has."""
    exposed = document["HostConfig"]["PortBindings"] | document["NetworkSettings"]["Ports"]
    volumes = [mount["Destination"] for mount in document["Mounts"] if mount["Type"] == "volume"]
    config: dict[str, Any] = {"ExposedPorts": {port: {} for port in exposed} or None, "Volumes": {path: {} for path in volumes} or None}
    return {
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "GraphDriver": _GRAPH_DRIVER,
        **document,
        "HostConfig": {**_HOST_CONFIG, **document["HostConfig"]},
        "Config": {**_CONFIG, **config, **document["Config"]},
        "NetworkSettings": {**_NETWORK_SETTINGS, **with_endpoints(document["NetworkSettings"])},
    }


def with_endpoints(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of networks, with whole endpoints also where a network is none of ours."""
    return {**settings, "Networks": {name: {**_ENDPOINT, **endpoint} for name, endpoint in settings["Networks"].items()}}


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same for one of a list of containers."""
    return {**document, "NetworkSettings": with_endpoints(document["NetworkSettings"])}


def image(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of the engine's document of an image all that Docker's has, and what docker-compose still looks into: ContainerConfig ended with 1.44."""
    gone = {"VirtualSize": document["Size"], "ContainerConfig": document["Config"]}
    return {"Parent": "", "DockerVersion": "", "GraphDriver": _GRAPH_DRIVER, **gone, **document}


def network(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a network."""
    return {"ConfigFrom": {"Network": ""}, "ConfigOnly": False, **document}

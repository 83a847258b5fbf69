"""What becomes of every key of a service: in exactly one class, done as options of the engine, or refused with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bulle.compose import service_parts as parts
from bulle.compose.model import FileObject, Network, Place, Project, Service, Volume
from bulle.compose.options import container_options
from bulle.compose.ordering import chosen, dependencies, in_order
from bulle.compose.rollout import START_FIRST
from bulle.compose.verdicts import VERDICTS, judge, table
from bulle.errors import InvalidInput, NotFound
from bulle.model.network import NetworkOption, PortMapping
from bulle.model.run_plan import DeviceLimit, ResourceLimit

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


def project(*services: Service, **fields: Any) -> Project:
    places = {("services", one.name): Place("/f.yaml", number + 2) for number, one in enumerate(services)}
    return Project(
        name="shop", working_directory="/srv", files=("/f.yaml",), services={one.name: one for one in services},
        networks={"default": Network(name="shop_default"), "back": Network(name="backbone")}, places=places, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("kind", VERDICTS, ids=lambda kind: kind.__name__)
def test_every_key_is_in_one_class(kind: type[msgspec.Struct]) -> None:
    fields = {one.name for one in msgspec.structs.fields(kind)}
    assert set(VERDICTS[kind]) == fields
    for name, verdict in VERDICTS[kind].items():
        assert verdict.kind in ("done", "note", "refused"), name
        assert bool(verdict.text) == (verdict.kind != "done"), name


def test_every_mapping_of_a_service_is_judged() -> None:
    known = {one for one in vars(parts).values() if isinstance(one, type) and issubclass(one, parts.Strict) and one is not parts.Strict}
    assert known - VERDICTS.keys() == {parts.Build, parts.BuildSecret, parts.Develop, parts.WatchRule}


def test_documentation_says_what_becomes_of_them() -> None:
    text = (DOCUMENTS / "compose.md").read_text()
    for mapping, key, what in table():
        assert f"| {mapping} | `{key}` | {what} |" in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ipc": "host"}, "/f.yaml:2: services.web.ipc: host cannot be done"),
        ({"devices": ({"source": "/dev/kvm"},)}, "services.web.devices cannot be done"),
        ({"deploy": parts.Deploy(mode="replicated-job")}, "services.web.deploy.mode: replicated-job cannot be done"),
        ({"volumes": (parts.ServiceVolume(type="npipe", target="/x"),)}, "services.web.volumes.type: npipe cannot be done"),
        ({"networks": {"back": parts.ServiceNetwork(interface_name="lan")}}, "services.web.networks.back.interface_name: lan cannot be done"),
    ],
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    made = project(Service(name="web", image="x", **fields))
    with pytest.raises(InvalidInput) as refusal:
        judge(made, made.services)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("/f.yaml:2: ")


def test_noted() -> None:
    made = project(Service(name="web", image="x", domainname="example", deploy=parts.Deploy(endpoint_mode="vip")))
    assert [one.key for one in judge(made, made.services)] == ["domainname", "endpoint_mode"]


def test_a_whole_service() -> None:
    web = Service(
        name="web", image="busybox", command=("a", "b"), entrypoint=("e",), environment={"A": "1", "B": None}, working_dir="/w", user="7",
        hostname="h", domainname="example", isolation="vm", platform="linux/arm64", labels={"l": "1"}, annotations={"n": "2"},
        init=True, tty=True, stdin_open=True,
        read_only=True, cap_add=("NET_ADMIN",), cap_drop=("ALL",), stop_signal="INT", stop_grace_period=parts.Nanoseconds(1_500_000_000),
        dns=("192.0.2.1",), extra_hosts=("a=192.0.2.2",), tmpfs=("/t:size=1m",), cpu_shares=5, mem_limit=parts.Bytes(64 << 20), pids_limit=9,
        ulimits={"nofile": parts.Ulimit(soft=1, hard=2)}, blkio_config={"weight": 300, "device_read_bps": [{"path": "/dev/x", "rate": "1m"}]},
        logging=parts.Logging(driver="json-file", options={"max-size": "1m"}),
        healthcheck=parts.Healthcheck(test=("CMD", "true"), interval=parts.Nanoseconds(5), retries=4),
        networks={"default": parts.ServiceNetwork(aliases=("www",)), "back": parts.ServiceNetwork(ipv4_address="192.0.2.9", priority=9)},
        ports=(parts.Port(target=80, published="8000-8002", host_ip="127.0.0.1"), parts.Port(target=53, protocol="udp")),
        volumes=(parts.ServiceVolume(type="volume", source="data", target="/d"), parts.ServiceVolume(type="bind", source="/s", target="/b")),
        deploy=parts.Deploy(
            resources=parts.Resources(limits=parts.ResourceAmounts(cpus=1.5, memory=parts.Bytes(32 << 20))),
            restart_policy=parts.DeployRestartPolicy(condition="on-failure", max_attempts=3),
        ),
    )  # fmt: skip
    made = container_options(project(web, volumes={"data": Volume(name="shop_data")}), web, 2)
    wanted = {
        "name": "shop-web-2", "image": "busybox", "command": ("a", "b"), "entrypoint": ("e",), "environment": ("A=1",), "working_directory": "/w",
        "user": "7", "hostname": "h.example", "isolation": "vm", "platform": "linux/arm64", "init": True, "terminal": True, "interactive": True,
        "read_only": True, "cap_add": ("NET_ADMIN",), "cap_drop": ("ALL",), "stop_signal": "INT", "stop_timeout_s": 2, "dns": ("192.0.2.1",),
        "extra_hosts": (("a", "192.0.2.2"),), "tmpfs": (("/t", "size=1m"),), "cpu_shares": 5, "memory_bytes": 32 << 20, "nano_cpus": 1_500_000_000,
        "pids_limit": 9, "limits": (ResourceLimit("nofile", 1, 2),), "blkio_weight": 300,
        "log_driver": "json-file", "log_options": (("max-size", "1m"),),
        "health_test": ("CMD", "true"), "health_interval_ns": 5, "health_retries": 4,
        "restart_policy": "on-failure:3", "device_limits": (DeviceLimit("read_bps", "/dev/x", 1 << 20),),
        "networks": (NetworkOption("backbone", "192.0.2.9", "", "", ("web",)), NetworkOption("shop_default", aliases=("web", "www"))),
        "ports": (PortMapping(80, "tcp", ("127.0.0.1",), 8000, 8002), PortMapping(53, "udp")),
    }  # fmt: skip
    assert {name: getattr(made, name) for name in wanted} == wanted
    assert {"l": "1", "n": "2", "com.docker.compose.container-number": "2"}.items() <= made.labels.items()
    assert [(one.host_path, one.container_path) for one in made.volumes] == [("/s", "/b")]
    assert [(one.source, one.target) for one in made.mounts] == [("shop_data", "/d")]


def test_shared_networks_and_links() -> None:
    main = Service(name="main", image="x", networks={"default": parts.ServiceNetwork()})
    beside = Service(name="beside", image="x", network_mode="service:main")
    other = Service(name="other", image="x", links=("main:known-as",), networks={"default": parts.ServiceNetwork()})
    made = project(main, beside, other)
    assert container_options(made, beside, 1, container_of=lambda name: f"id-of-{name}").network == "container:id-of-main"
    assert container_options(made, main, 1).networks[0].aliases == ("main", "known-as")
    assert container_options(made, Service(name="alone", image="x", isolation="chroot"), 1).network == "host"


def test_order() -> None:
    said = {"a": "b", "b": "c", "c": "", "d": ""}
    needs = {name: Service(name=name, depends_on=dict.fromkeys(others, parts.Dependency())) for name, others in said.items()}
    assert in_order(dependencies(needs.values())) == ["c", "b", "a", "d"]
    assert list(chosen(needs, ["b"])) == ["c", "b"]
    assert list(chosen(needs, ["b"], with_dependencies=False)) == ["b"]
    with pytest.raises(NotFound):
        chosen(needs, ["z"])
    with pytest.raises(InvalidInput, match="circle: a -> b -> a"):
        in_order({"a": {"b"}, "b": {"a"}})


def test_the_defaults_of_an_update() -> None:
    assert (START_FIRST.order, START_FIRST.parallelism, START_FIRST.failure_action) == ("start-first", 1, "pause")
    assert FileObject().content is None

"""What is in deploy/: linters and schemas take it, what is in the image runs, and pods' files are exchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.cli.vocabulary import vocabulary
from gateway.config import load
from gateway.web.tokens import load_tokens
from tests.tools.patience import HANG_SECONDS

from .images import USER, said_by
from .roots import TOP, Root

pytestmark = pytest.mark.real

DEPLOY = TOP / "deploy"
GATEWAY = (sys.executable, "-m", "gateway")
PARTS = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
"""What a listener wants of a directory with certificates."""


# ---- what is written ----


def objects(folder: str) -> dict[str, Any]:
    """What kustomize makes of a folder, by kind."""
    made = said_by("kubectl", "kustomize", DEPLOY / "kubernetes" / folder)
    return {each["kind"]: each for each in yaml.safe_load_all(made)}


FOLDERS = {"gateway": "Deployment", "sidecar": "Pod"}
PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def pod_of(folder: str) -> dict[str, Any]:
    made = objects(folder)[FOLDERS[folder]]
    spec = made["spec"]["template"]["spec"] if folder == "gateway" else made["spec"]
    assert isinstance(spec, dict)
    return spec


def gateway_of(spec: dict[str, Any]) -> dict[str, Any]:
    containers = [*spec["containers"], *spec.get("initContainers", ())]
    [found] = [each for each in containers if each["name"] == "nbd-gateway"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_kubernetes_would_take_it(folder: str) -> None:
    for made in objects(folder).values():
        kubernetes_validate.validate(made, "1.29", strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_pod_is_closed(folder: str) -> None:
    """As the "restricted" pod security standard has it, and with a root that nobody writes to."""
    spec = pod_of(folder)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == USER
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for mount in container["volumeMounts"]:
            assert "subPath" not in mount, "what is mounted so is never exchanged"
        paths = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        assert not [a for a in paths for b in paths if b in a.parents], (
            "no directory is made for it"
        )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_pod_ends_in_good_order(folder: str) -> None:
    spec = pod_of(folder)
    config = configuration(folder)
    gateway = gateway_of(spec)
    assert "drain" in " ".join(gateway["lifecycle"]["preStop"]["exec"]["command"])
    assert spec["terminationGracePeriodSeconds"] > config["drain-seconds"] + 10
    assert config["control"]["socket"] in " ".join(
        gateway["lifecycle"]["preStop"]["exec"]["command"]
    )
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    assert config["admin"]["uri"] == f"http://0.0.0.0:{ports['admin']}"
    for probe, path in PROBES.items():
        if probe in gateway:
            assert gateway[probe]["httpGet"] == {"path": path, "port": "admin"}


def configuration(folder: str) -> dict[str, Any]:
    import tomllib

    text = objects(folder)["ConfigMap"]["data"]["gateway.toml"]
    return tomllib.loads(text)


def test_one_pod_stays_and_the_service_finds_it() -> None:
    made = objects("gateway")
    template = made["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    selectors = [
        made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        made["Deployment"]["spec"]["selector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert (
        made["PodDisruptionBudget"]["spec"]["minAvailable"] < made["Deployment"]["spec"]["replicas"]
    )


def test_prometheus_finds_it() -> None:
    """The operator's schema is nowhere to be had, so this is what it asks for."""
    made = objects("monitoring")
    monitor, service = made["ServiceMonitor"]["spec"], made["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    [tokens] = [v for v in pod_of("gateway")["volumes"] if v["name"] == "tokens"]
    assert endpoint["authorization"]["credentials"]["name"] == tokens["secret"]["secretName"]


KUBECTL = """#!/bin/sh
real=/usr/bin/kubectl
case $1 in
create) exec $real "$@" --dry-run=client --output=json >"$4.json" ;;
*) exec $real kustomize "$3" >/dev/null ;;
esac
"""
"""kubectl without a cluster: what it would send of a Secret stands in a file of the Secret's name."""


def test_the_page_makes_the_secrets_that_pods_mount(tmp_path: Path) -> None:
    page = (TOP / "docs/howto/kubernetes.md").read_text()
    [typed] = re.findall(r"^```\n(kubectl create .*?)^```", page, re.MULTILINE | re.DOTALL)
    kubectl = tmp_path / "bin/kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    said_by(*GATEWAY, "pki", "init", tmp_path / "pki")
    (tmp_path / "pki/deploy").symlink_to(DEPLOY)
    path = f"{kubectl.parent}:{os.environ['PATH']}"
    said_by("bash", "-ec", f"cd {tmp_path}/pki\n{typed}", PATH=path)
    made = {
        secret["metadata"]["name"]: {key: b64decode(value) for key, value in secret["data"].items()}
        for file in (tmp_path / "pki").glob("*.json")
        if (secret := json.loads(file.read_text()))["kind"] == "Secret"
    }
    mounted = [v["secret"] for v in pod_of("gateway")["volumes"] if "secret" in v]
    assert {each["secretName"] for each in mounted} == made.keys()
    for each in mounted:
        assert {item["key"] for item in each.get("items", ())} <= made[each["secretName"]].keys()
    assert set(PARTS) <= made["nbd-gateway-tls"].keys()
    [endpoint] = objects("monitoring")["ServiceMonitor"]["spec"]["endpoints"]
    token = endpoint["authorization"]["credentials"]
    (tmp_path / "tokens").write_bytes(made[token["name"]]["tokens"])
    (tmp_path / "tokens").chmod(0o400)
    allowed = load_tokens(tmp_path / "tokens")
    assert allowed.find(made[token["name"]][token["key"]].decode()) is not None


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.toml")), ids=lambda path: path.stem)
def test_a_configuration_is_one(file: Path) -> None:
    load(file, vocabulary())


def test_compose_would_take_it() -> None:
    said_by("docker-compose", "--file", DEPLOY / "container/compose.yaml", "config", "--quiet")


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert not said_by(hadolint, DEPLOY / "container/Dockerfile")


# ---- files of a pod ----


class Volume:
    """A ConfigMap or a Secret as the kubelet mounts it: links into a directory that is exchanged as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = 0
        path.mkdir()

    def put(self, files: dict[str, bytes]) -> None:
        """Have it hold these."""
        self.made += 1
        new = self.path / f"..{self.made}"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        link = self.path / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self.path / "..data")
        old = self.path / f"..{self.made - 1}"
        shutil.rmtree(old, ignore_errors=True)


def test_what_the_kubelet_exchanges_is_taken_up(workdir: Path) -> None:
    """As on every rotation by cert-manager, and on every change of a ConfigMap."""
    tls, etc = Volume(workdir / "tls"), Volume(workdir / "etc")
    for name in ("old", "new"):
        said_by(*GATEWAY, "pki", "init", workdir / name)
    tls.put({part: (workdir / "old" / part).read_bytes() for part in PARTS})
    config = f"""
        listen = [ {{ uri = "nbds://127.0.0.1:0", certificates = "{tls.path}" }} ]
        upstream.disks.uri = "memory:1M"
        log.format = "json"
        control = {{ socket = "{workdir}/control", reload-on-change = true }}
    """
    etc.put({"gateway.toml": config.encode()})
    command = [*GATEWAY, "serve", "--config", str(etc.path / "gateway.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = until(process, "listening")["uri"].rpartition(":")[2]
            tls.put({part: (workdir / "new" / part).read_bytes() for part in PARTS})
            until(process, "credentials exchanged")
            uri = f"nbds://localhost:{port}?tls-certificates={workdir / 'new'}"
            assert said_by("nbdinfo", "--size", uri) == f"{1 << 20}\n"
            etc.put({"gateway.toml": config.replace("memory:1M", "memory:2M").encode()})
            until(process, "configuration reloaded")
            assert said_by("nbdinfo", "--size", uri) == f"{2 << 20}\n"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=HANG_SECONDS)
            assert process.returncode == 0
        finally:
            if process.poll() is None:
                process.kill()


def until(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Wait for a line of the log; pytest's time limit ends what waits for ever."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"no {event!r} in {''.join(said)}")


# ---- the image ----

ENTER_IMAGE = """
root=$1; shift
ip link set lo up
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 tmpfs "$root/run/nbd-gateway"
exec /usr/sbin/chroot --userspec=65532:65532 "$root" "$@"
"""


class Image(Root):
    """What runs of it has a root that cannot be written, and /run/nbd-gateway, as pods have it."""

    def inside(self, command: tuple[str, ...]) -> list[str]:
        enter = ["unshare", "--mount", "--net", "sh", "-ec", ENTER_IMAGE, "sh", str(self.path)]
        return [*enter, *command]


@pytest.fixture(scope="module")
def image(built: str) -> Iterator[Image]:
    container = said_by("buildah", "from", built).strip()
    try:
        yield Image(Path(said_by("buildah", "mount", container).strip()))
    finally:
        said_by("buildah", "rm", container)


PATH = "/opt/nbd-gateway/bin:/usr/bin:/bin"
SERVED = """
nbd-gateway serve --config /etc/nbd-gateway/gateway.toml 2>/run/nbd-gateway/log &
until {healthy} >/run/nbd-gateway/said; do kill -0 $! || exit 9; done
kill $!
wait $!
echo "ended $?"
"""


def test_the_image_serves_with_a_read_only_root_and_is_healthy(image: Image, built: str) -> None:
    inspected = json.loads(said_by("buildah", "inspect", "--type", "image", built))
    config = inspected["Docker"]["config"]
    assert config["User"] == f"{USER}:{USER}"
    healthy = " ".join(config["Healthcheck"]["Test"][1:])
    assert healthy.startswith("nbd-gateway status ")
    served = image.run("bash", "-c", SERVED.format(healthy=healthy), PATH=PATH)
    assert served.endswith("ended 0\n")
    assert "with the compiled pump" in image.run("nbd-gateway", "--version", PATH=PATH)
    for program in ("gcc", "pip"):
        image.run("sh", "-c", f"command -v {program}", PATH=PATH, status=127)


def test_nothing_in_the_image_is_its_users(image: Image) -> None:
    # What it may not even look into is nobody's concern here.
    owned = f"find / -xdev -user {USER} -not -path '/run/nbd-gateway*' 2>/dev/null || true"
    assert not image.run("sh", "-c", owned, PATH=PATH)

"""What clients are told about an export: through the gateway as direct, but for what it must change."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .clients import nbdinfo
from .gateways import Gateways
from .processes import attempt, run
from .servers import Servers, Upstream

BLOCK_SIZES = {"block_size_minimum": 1, "block_size_preferred": 4096, "block_size_maximum": 1 << 25}
WRITES = ("can_trim", "can_zero", "can_fast_zero")


def expected(direct: dict[str, Any], size: int, upstream: Upstream) -> dict[str, Any]:
    """What `nbdinfo --json` says of one export through the gateway, from what it says direct."""
    export = dict(direct)
    del export["uri"]
    # The gateway acknowledges structured replies before it can know the export, and then wraps.
    export["can_df"] = True
    # So it does with extended headers, which libnbd has asked for since 1.18.
    if "can_block_status_payload" in export:
        export["can_block_status_payload"] = True
    if not upstream.structured:
        export.pop("contexts", None)  # nbdkit 1.42 lists one that nobody can have
    if not upstream.block_sizes:
        export |= BLOCK_SIZES
    if not upstream.newstyle:
        export["block_size_minimum"] = 512  # the quirk qemu-sectors
    if export["is_read_only"]:
        export |= dict.fromkeys(WRITES, False)
    if not export["can_zero"]:
        export["can_fast_zero"] = False
    if not upstream.info_size:
        export["export-size"] = size
    # The next two follow from the size, which nbd-server does not tell in time.
    export.pop("export-size-str", None)
    export.pop("content", None)
    return export


def compare(direct: dict[str, Any], through: dict[str, Any], size: int, upstream: Upstream) -> None:
    assert [e["export-name"] for e in through["exports"]] == [
        e["export-name"] for e in direct["exports"]
    ]
    for ours, theirs in zip(through["exports"], direct["exports"], strict=True):
        want = expected(theirs, size, upstream)
        for key in ("export-size-str", "content", "uri"):
            ours.pop(key, None)
        # Emulated with WRITE and FLUSH (allowed, not required).
        if ours["can_fua"] and theirs["can_flush"]:
            want["can_fua"] = True
        assert ours == want
    assert {**through, "exports": 0} == {
        **direct,
        "exports": 0,
        "protocol": "newstyle-fixed",
        "structured": True,
        **({"extended": True} if "extended" in direct else {}),
    }


def test_nbdinfo_json_differs_only_in_what_the_gateway_must_change(
    upstream: Upstream, via: Gateways
) -> None:
    uri = via(upstream)
    direct, through = nbdinfo(upstream.uri), nbdinfo(uri)
    if via.repairs:
        compare(direct, through, 64 << 20, upstream)
    else:
        assert direct["exports"][0]["can_df"] == upstream.structured
        assert ("block_size_minimum" in direct["exports"][0]) == upstream.block_sizes
        assert direct["structured"] == upstream.structured
        assert (direct["exports"][0]["export-size"] != 0) == upstream.info_size


def test_nbdinfo_in_text(upstream: Upstream, via: Gateways) -> None:
    out = run("nbdinfo", via(upstream))
    assert "protocol: " in out
    if via.repairs or upstream.info_size:
        assert "export-size: 67108864 (64M)" in out


def test_nbdinfo_size(upstream: Upstream, via: Gateways) -> None:
    if via.repairs or upstream.info_size:
        assert run("nbdinfo", "--size", via(upstream)).strip() == str(64 << 20)


def test_nbdinfo_map_is_the_direct_one(upstream: Upstream, via: Gateways) -> None:
    uri = via(upstream)
    direct, through = attempt("nbdinfo", "--map", upstream.uri), attempt("nbdinfo", "--map", uri)
    assert (through.status, through.out) == (direct.status, direct.out)
    # A server without block status: no context is offered, and nothing is made up.
    assert (direct.status == 0) == upstream.structured, str(direct)
    if direct.status:
        assert through.err == direct.err


def test_nbdinfo_list(upstream: Upstream, via: Gateways) -> None:
    uri = via.before(upstream).uri()
    if not upstream.newstyle:
        # Oldstyle has no LIST. The gateway may say so, or show the one export that there is.
        listed = attempt("nbdinfo", "--list", uri)
        assert listed.status != 0 or 'export="":' in listed.out, str(listed)
        return
    direct, through = nbdinfo(upstream.named(""), "--list"), nbdinfo(uri, "--list")
    if via.repairs:
        compare(direct, through, 64 << 20, upstream)
    names = [export["export-name"] for export in through["exports"]]
    assert names == {
        "nbd-server": ["disk", "archive", "log"],
        "storage-daemon": ["disk", "second"],
    }.get(upstream.kind, [""])


def test_nbd_client_list(upstream: Upstream, via: Gateways) -> None:
    gateway = via.before(upstream, tcp=True)
    if not via.repairs and (not gateway.base.startswith("nbd://") or not upstream.newstyle):
        return  # nbd-client asks over TCP only, and in the newer style only
    _, _, host = gateway.base.partition("://")
    listed = attempt("nbd-client", "-l", *host.strip("/").split(":"))
    if not upstream.newstyle and listed.status != 0:
        assert "cannot list" in listed.err, str(listed)
        return
    assert listed.status == 0, str(listed)
    names = listed.out.splitlines()[1:]
    assert [name for name in names if name] == {
        "nbd-server": ["disk", "archive", "log"],
        "storage-daemon": ["disk", "second: spare"],
    }.get(upstream.kind, [])


def test_descriptions_pass(servers: Servers, via: Gateways) -> None:
    upstream = servers.nbdkit(
        *("--filter=exportname", "memory", "1M"),
        *("exportname=a", "exportname=b", "exportname-list=explicit"),
        *("exportdesc=fixed:what a user wrote",),
    )
    listed = nbdinfo(via.before(upstream).uri(), "--list")["exports"]
    assert [(e["export-name"], e["description"]) for e in listed] == [
        ("a", "what a user wrote"),
        ("b", "what a user wrote"),
    ]


@pytest.mark.parametrize(
    "command", [("qemu-nbd", "-L"), ("nbdinfo", "--list", "--no-content")], ids=["qemu", "libnbd"]
)
def test_a_list_of_many_exports(
    command: tuple[str, ...], servers: Servers, via: Gateways, workdir: Path
) -> None:
    disks = workdir / "disks"
    disks.mkdir()
    names = [f"disk{number:02}" for number in range(60)]
    for name in names:
        (disks / name).write_bytes(bytes(512))
    uri = via.before(servers.nbdkit("file", f"dir={disks}")).uri()
    path = urlsplit(uri).query.removeprefix("socket=")
    said = run(*command, *(("-k", path) if command[0] == "qemu-nbd" else (uri,)))
    assert all(name in said for name in names)
    assert said.count("base:allocation") == len(names), said


def test_an_unknown_export_is_refused_and_the_next_client_served(
    servers: Servers, via: Gateways
) -> None:
    strict = servers.nbdkit(
        *("--filter=exportname", "memory", "1M", "exportname=known", "exportname-strict=true")
    )
    gateway = via.before(strict)
    refused = attempt("nbdinfo", gateway.uri("unknown"))
    assert refused.status != 0
    assert "Traceback" not in refused.err
    assert nbdinfo(gateway.uri("known"))["exports"][0]["export-size"] == 1 << 20


def test_a_plugin_is_opened_once_for_a_client(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    """Some log in somewhere for that. Of a server of which nothing is known an INFO is asked first, once."""
    opened = workdir / "opened"
    upstream = servers.nbdkit(
        "eval",
        f"open=echo opened >> {opened}; echo handle",
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
    )
    uri, counts = via(upstream), []
    for _ in range(3):
        opened.write_text("")
        run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", uri)
        counts.append(len(opened.read_text().splitlines()))
    assert counts == [2, 1, 1]

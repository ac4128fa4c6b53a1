"""Requests that the server by itself would refuse, or get wrong: served through the gateway."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .clients import nbdinfo, nbdsh, qemu_io
from .gateways import MODE, Gateways
from .processes import Process, listening, run
from .servers import Servers, Upstream, unix_uri

pytestmark = pytest.mark.skipif(MODE != "gateway", reason="nobody else makes these repairs")

MIB = 1 << 20


def strict(servers: Servers, minimum: int, maximum: int) -> Upstream:
    """nbdkit with blocks, which insists."""
    return servers.nbdkit(
        *("memory", "256M", "--filter=blocksize-policy", "blocksize-error-policy=error"),
        *(f"blocksize-minimum={minimum}", f"blocksize-preferred={max(minimum, 4096)}"),
        f"blocksize-maximum={maximum}",
    )


def test_requests_of_512_bytes_before_blocks_of_4096(servers: Servers, via: Gateways) -> None:
    uri = via(strict(servers, 4096, 32 * MIB))
    qemu_io(uri, "write -P 1 0 64k", "write -P 7 512 512", "flush")
    said = nbdsh(
        "h.set_request_block_size(False); h.set_strict_mode(0)\n"
        f"h.connect_uri({uri!r})\n"
        "h.pwrite(b'\\x09' * 100, 5000)\n"
        "h.zero(10, 70)\n"
        "h.trim(100, 9000)\n"
        "d = h.pread(8192, 0)\n"
        "e = bytearray(b'\\x01' * 8192)\n"
        "e[512:1024] = b'\\x07' * 512\n"
        "e[5000:5100] = b'\\x09' * 100\n"
        "e[70:80] = bytes(10)\n"
        "assert d == e\n"
        "print('right')"
    )
    assert said == "right\n"


def test_eight_connections_write_parts_of_the_same_blocks(servers: Servers, via: Gateways) -> None:
    uri = via(strict(servers, 4096, 32 * MIB))
    writers = []
    for sector in range(8):
        commands = []
        for block in range(40):
            commands += ["-c", f"write -P {sector + 1} {block * 4096 + sector * 512} 512"]
        # qemu-io would align by itself if it were told of blocks; libnbd is not told.
        program = (
            "import nbd\nh = nbd.NBD()\n"
            "h.set_request_block_size(False); h.set_strict_mode(0)\n"
            f"h.connect_uri({uri!r})\n"
            f"for block in range(400): h.pwrite(bytes([{sector + 1}]) * 512, block * 4096 + {sector} * 512)\n"
            "h.flush(); h.shutdown()\n"
        )
        writers.append(subprocess.Popen(["/usr/bin/python3", "-c", program]))
    assert [writer.wait() for writer in writers] == [0] * 8
    checks = [
        f"read -P {s + 1} {b * 4096 + s * 512} 512" for b in (0, 1, 200, 399) for s in range(8)
    ]
    qemu_io(uri, *checks)


@pytest.mark.parametrize("mode", ["per-client", "shared"])
def test_so_do_those_that_know_the_disk_by_other_names(
    servers: Servers, workdir: Path, mode: str
) -> None:
    """nbdkit has one disk under all names. Two of ours lead there by an upstream of their own."""
    upstream = servers.nbdkit(
        *("--filter=blocksize-policy", "--filter=delay", "memory", "1M", "rdelay=1ms"),
        *("blocksize-error-policy=error", "blocksize-minimum=4096", "blocksize-preferred=4096"),
        "blocksize-maximum=1M",
    )
    listen = f"nbd+unix:///?socket={workdir / 'gateway'}"
    config = workdir / "gateway.toml"
    there = f'uri = "{upstream.named("")}"\nconnections = "{mode}"\n'
    config.write_text(
        f'[[listen]]\nuri = "{listen}"\n[upstream.one]\n{there}[upstream.other]\n{there}'
        + "".join(
            f'[[export]]\nname = "{name}"\nupstream = "{of}"\nupstream-name = "{theirs}"\n'
            for name, of, theirs in (
                *(("0", "one", "x"), ("1", "one", "y")),
                *(("2", "other", "x"), ("3", "other", "z")),
            )
        )
    )
    gateway = Process(sys.executable, "-m", "gateway", "serve", "--config", str(config))
    gateway.ready_when(lambda: listening(listen), "the gateway listens")
    try:
        writers = []
        for sector in range(4):
            program = (
                "import nbd\nh = nbd.NBD()\n"
                "h.set_request_block_size(False); h.set_strict_mode(0)\n"
                f"h.connect_uri({unix_uri(workdir / 'gateway', str(sector))!r})\n"
                "for block in range(100):\n"
                f"    mine = block * 4096 + {sector} * 512, bytes([{sector + 1}]) * 512\n"
                "    h.pwrite(mine[1], mine[0])\n"
                "    assert h.pread(512, mine[0]) == mine[1]\n"
                "h.shutdown()\n"
            )
            writers.append(subprocess.Popen(["/usr/bin/python3", "-c", program]))
        assert [writer.wait() for writer in writers] == [0] * 4
        checks = [f"read -P {s + 1} {b * 4096 + s * 512} 512" for b in range(100) for s in range(4)]
        qemu_io(upstream.uri, *checks)
    finally:
        gateway.stop()


def test_32_and_64_mib_before_a_maximum_of_1_mib(servers: Servers, via: Gateways) -> None:
    upstream = strict(servers, 1, MIB)
    uri = via(upstream)
    sizes = nbdinfo(uri)["exports"][0]
    assert sizes["block_size_maximum"] == MIB
    for structured in (True, False):
        said = nbdsh(
            "import hashlib, os\n"
            "h.set_strict_mode(0)\n"
            f"h.set_request_structured_replies({structured})\n"
            f"h.connect_uri({uri!r})\n"
            "for size in (32 << 20, 64 << 20):\n"
            "    data = os.urandom(1 << 20) * (size >> 20)\n"
            "    h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)\n"
            "    assert h.pread(size, 12345) == data\n"
            "print('right')"
        )
        assert said == "right\n"


def test_128_mib_are_zeroed_by_a_server_that_stops_at_64(
    servers: Servers, via: Gateways, workdir: Path
) -> None:
    disk = workdir / "ones.img"
    with disk.open("wb") as file:
        for _ in range(160):
            file.write(b"\xff" * MIB)
    uri = via(servers.nbd_server(disk))
    nbdsh(f"h.set_strict_mode(0)\nh.connect_uri({uri!r})\nh.zero(128 << 20, 0)\nh.flush()")
    with disk.open("rb") as file:
        assert not any(file.read(128 * MIB))
        assert file.read(1) == b"\xff"


def test_zeroes_before_a_server_that_has_none(servers: Servers, via: Gateways) -> None:
    upstream = servers.nbdkit("memory", "64M", "--filter=nozero", "zeromode=none")
    uri = via(upstream)
    told = nbdinfo(uri)["exports"][0]
    direct = nbdinfo(upstream.uri)["exports"][0]
    assert (told["can_zero"], direct["can_zero"]) == (True, False)
    qemu_io(
        uri, "write -f -P 5 0 1M", "write -z 4096 64k", "read -P 0 4096 64k", "read -P 5 0 4096"
    )


def test_explain_says_what_is_done(servers: Servers, workdir: Path) -> None:
    upstream = strict(servers, 4096, MIB)
    config = workdir / "explain.toml"
    config.write_text(
        f'[[listen]]\nuri = "nbd://127.0.0.1:0"\n[upstream.a]\nuri = "{upstream.uri}"\n'
    )
    said = run(sys.executable, "-m", "gateway", "explain", config)
    assert "block sizes 4096, 4096, 1048576" in said
    assert "blocks of 4096 bytes are read, changed and written" in said


def test_many_parts_of_the_same_blocks_in_flight(servers: Servers, via: Gateways) -> None:
    """Each of them waits for another, and is granted its block while replies are being scanned."""
    uri = via(strict(servers, 4096, 32 * MIB))
    said = nbdsh(
        "import random\n"
        "h.set_request_block_size(False); h.set_strict_mode(0)\n"
        f"h.connect_uri({uri!r})\n"
        "for seed in range(10):\n"
        "    rng = random.Random(seed)\n"
        "    model = bytearray(h.pread(65536, 0))\n"
        "    order = range(16) if seed % 2 == 0 else rng.sample(range(128), 60)\n"
        "    buffers = [nbd.Buffer.from_bytearray(bytearray([rng.randrange(256)]) * 512) for _ in order]\n"
        "    cookies = [h.aio_pwrite(b, at * 512) for at, b in zip(order, buffers)]\n"
        "    while h.aio_in_flight(): h.poll(10000)\n"
        "    assert all(h.aio_command_completed(c) for c in cookies)\n"
        "    for at, b in zip(order, buffers): model[at * 512:at * 512 + 512] = b.to_bytearray()\n"
        "    assert h.pread(65536, 0) == model, seed\n"
        "print('right')"
    )
    assert said == "right\n"

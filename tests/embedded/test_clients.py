"""The real clients, over a Unix socket."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import trio

from gateway.embedded import PERSONALITIES, FileDisk, MemoryDisk, ServedDisk, Server
from gateway.wire.limits import MIB
from tests.embedded.peers import listening
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

SIZE = 48 * MIB
PERSONAL = ["plain", "qemu-3.0"]


async def run(*command: str | Path, status: int = 0) -> str:
    words = [str(word) for word in command]
    with trio.fail_after(HANG_SECONDS):
        done = await trio.run_process(words, capture_stdout=True, stderr=STDOUT, check=False)
    said: str = done.stdout.decode()
    assert done.returncode == status, f"{words}: {done.returncode}\n{said}"
    return said


async def libnbd(script: str, uri: str) -> str:
    """Run a script with a handle `h`; the module belongs to the system's interpreter."""
    return await run(
        "/usr/bin/python3",
        "-c",
        f"import nbd, sys\nh = nbd.NBD()\nuri = sys.argv[1]\n{script}",
        uri,
    )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with data and holes, of a size that is no multiple of anything but 512."""
    path = tmp_path_factory.mktemp("content") / "disk.img"
    rng = random.Random(1)
    with path.open("wb") as file:
        for _ in range(40):
            file.seek(rng.randrange(SIZE - MIB) & ~511)
            file.write(rng.randbytes(rng.randrange(1, MIB)))
        file.truncate(SIZE + 512)
    return path


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def disk_of(kind: str, size: int, workdir: Path) -> ServedDisk:
    if kind == "memory":
        return MemoryDisk(size)
    path = workdir / "export.img"
    # Dirty, so that what is zero has to be made so.
    path.write_bytes(b"\xa5" * size)
    return FileDisk(path)


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("personality", PERSONAL)
async def test_nbdcopy_both_ways(personality: str, kind: str, content: Path, workdir: Path) -> None:
    disk = disk_of(kind, SIZE + 512, workdir)
    server = Server({"": disk}, PERSONALITIES[personality])
    back = workdir / "back.img"
    async with listening(server, workdir) as uri:
        # qemu 3.0 is not to be believed that it can do several connections.
        await run("nbdcopy", "--connections=1", "--flush", content, uri)
        await run("nbdcopy", "--connections=1", uri, back)
        assert checksum(back) == checksum(content)
        compared = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", content, uri)
        assert "identical" in compared


async def test_nbdcopy_with_many_connections(content: Path, workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE + 512)})
    back = workdir / "back.img"
    async with listening(server, workdir) as uri:
        await run("nbdcopy", "--threads=4", "--connections=4", content, uri)
        await run("nbdcopy", "--threads=4", "--connections=4", uri, back)
        assert checksum(back) == checksum(content)
        assert server.connections >= 8


@pytest.mark.parametrize("personality", PERSONAL)
async def test_qemu_img_convert_both_ways(personality: str, content: Path, workdir: Path) -> None:
    server = Server({"": MemoryDisk(SIZE + 512)}, PERSONALITIES[personality])
    back = workdir / "back.img"
    raw = ("-f", "raw", "-O", "raw")
    async with listening(server, workdir) as uri:
        await run("qemu-img", "convert", "-n", *raw, content, uri)
        await run("qemu-img", "convert", *raw, uri, back)
    assert checksum(back) == checksum(content)


async def test_nbdinfo(workdir: Path) -> None:
    server = Server(
        {"": MemoryDisk(SIZE), "disk": MemoryDisk(MIB)}, descriptions={"disk": "the other"}
    )
    async with listening(server, workdir) as uri:
        info = json.loads(await run("nbdinfo", "--json", uri))
        (export,) = info["exports"]
        assert info["structured"]
        assert export["export-size"] == SIZE
        assert export["can_multi_conn"]
        assert export["can_cache"]
        assert export["can_fast_zero"]
        assert export["contexts"] == ["base:allocation"]
        listed = json.loads(await run("nbdinfo", "--json", "--list", uri))
        assert [(e["export-name"], e.get("description")) for e in listed["exports"]] == [
            ("", None),
            ("disk", "the other"),
        ]


async def test_nbdinfo_of_qemu_3_0(workdir: Path) -> None:
    """What users of that version saw: "qemu-nbd 3.0.0 -e 3"."""
    async with listening(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0"]), workdir) as uri:
        (export,) = json.loads(await run("nbdinfo", "--json", uri))["exports"]
        assert export["can_multi_conn"]
        assert not export["can_cache"]
        assert export["block_size_minimum"] == 512


async def test_maps(workdir: Path) -> None:
    disk = FileDisk(_sparse_file(workdir))
    async with listening(Server({"": disk}), workdir) as uri:
        expected = [
            (0, MIB, "hole,zero"),
            (MIB, MIB, "data"),
            (2 * MIB, 2 * MIB, "hole,zero"),
        ]
        found = json.loads(await run("nbdinfo", "--json", "--map", uri))
        assert [(e["offset"], e["length"], e["description"]) for e in found] == expected
        mapped = json.loads(await run("qemu-img", "map", "-f", "raw", "--output=json", uri))
        assert [(e["start"], e["length"], e["data"]) for e in mapped] == [
            (offset, length, what == "data") for offset, length, what in expected
        ]


def _sparse_file(workdir: Path) -> Path:
    path = workdir / "sparse.img"
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(b"x" * MIB)
        file.truncate(4 * MIB)
    return path


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_qemu_io(kind: str, workdir: Path) -> None:
    server = Server({"": disk_of(kind, 4 * MIB, workdir)})
    async with listening(server, workdir) as uri:
        said = await run(
            "qemu-io", "-f", "raw",
            "-c", "write -P 0x11 0 1M",
            "-c", "write -f -P 0x22 512 512",
            "-c", "write -z 4096 65536",
            "-c", "write -z -u 131072 65536",
            "-c", "discard 262144 65536",
            "-c", "flush",
            "-c", "read -P 0x11 0 512",
            "-c", "read -P 0x22 512 512",
            "-c", "read -P 0 4096 65536",
            "-c", "read -P 0 131072 65536",
            "-c", "read -P 0x11 1024 3072",
            "-c", "aio_write -P 0x33 2M 256k",
            "-c", "aio_write -P 0x44 3M 256k",
            "-c", "aio_flush",
            "-c", "read -P 0x33 2M 256k",
            "-c", "read -P 0x44 3M 256k",
            uri,
        )  # fmt: skip
        assert "failed" not in said


DEPTH = """
import hashlib, os
h.add_meta_context("base:allocation")
h.connect_uri(uri)
data = os.urandom(1 << 20)
buffers = [nbd.Buffer.from_bytearray(bytearray(data[n << 14 : (n + 1) << 14])) for n in range(64)]
for n, buffer in enumerate(buffers):
    h.aio_pwrite(buffer, n << 14, lambda error: 1 if error.value == 0 else sys.exit("write"))
while h.aio_in_flight():
    h.poll(-1)
h.flush()
reads = [nbd.Buffer(1 << 14) for _ in range(64)]
for n, buffer in enumerate(reads):
    h.aio_pread(buffer, n << 14, lambda error: 1 if error.value == 0 else sys.exit("read"))
while h.aio_in_flight():
    h.poll(-1)
assert b"".join(bytes(r.to_bytearray()) for r in reads) == data
h.cache(1 << 20, 0)
h.zero(1 << 16, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.trim(1 << 16, 1 << 16, nbd.CMD_FLAG_FUA)
extents = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: extents.extend(entries))
assert sum(extents[::2]) == 1 << 20, extents
assert h.pread(1 << 16, 0) == bytes(1 << 16)
assert h.pread_structured(1 << 17, 0, lambda *chunk: 0, nbd.CMD_FLAG_DF)[1 << 16 :] is not None
h.set_strict_mode(0)
for call, code in (
    (lambda: h.pread(512, h.get_size()), "EINVAL"),
    (lambda: h.pwrite(b"x" * 512, h.get_size()), "ENOSPC"),
    (lambda: h.zero(512, h.get_size()), "ENOSPC"),
    (lambda: h.trim(512, h.get_size()), "EINVAL"),
):
    try:
        call()
        sys.exit("no " + code)
    except nbd.Error as error:
        assert error.errno == code, (error.errno, code)
h.shutdown()
"""


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_libnbd_at_depth(kind: str, workdir: Path) -> None:
    server = Server({"": disk_of(kind, 4 * MIB, workdir)})
    async with listening(server, workdir) as uri:
        await libnbd(DEPTH, uri)


async def test_libnbd_calls_qemu_3_0s_cache_dead(workdir: Path) -> None:
    """Q-S2, as it was seen with the real program."""
    script = """
h.connect_uri(uri)
h.set_strict_mode(0)
try:
    h.cache(4096, 0)
except nbd.Error:
    pass
print(h.aio_is_dead() or h.aio_is_closed())
"""
    async with listening(Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0"]), workdir) as uri:
        assert await libnbd(script, uri) == "True\n"


async def test_nbdsh_reads_old_data_at_worst(workdir: Path) -> None:
    """Q-S1: two connections, as a client that believes bit 8 opens them."""
    script = """
other = nbd.NBD()
for handle in (h, other):
    handle.connect_uri(uri)
assert h.can_multi_conn()
assert other.pread(512, 0) == bytes(512)
h.pwrite(b"n" * 512, 0)
h.flush()
print(other.pread(512, 0) == bytes(512))
"""
    async with listening(
        Server({"": MemoryDisk(SIZE)}, PERSONALITIES["qemu-3.0-incoherent"]), workdir
    ) as uri:
        assert await libnbd(script, uri) == "True\n"


async def test_the_module_serves_by_itself(workdir: Path) -> None:
    path = workdir / "own"
    command = [sys.executable, "-m", "gateway.embedded", "memory:1M", "--unix", str(path)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdout=PIPE, check=False, task_status=task_status
            )
        )
        # It says where it listens once it does.
        said = await process.stdout.receive_some()
        assert said == f"nbd+unix:///?socket={path}\n".encode()
        assert await run("nbdinfo", "--size", said.decode().strip()) == f"{MIB}\n"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


async def test_the_module_says_what_is_wrong(workdir: Path) -> None:
    module = (sys.executable, "-m", "gateway.embedded")
    for target, said in (
        (f"file:{workdir}", "is a directory"),
        ("legacy:qemu-0.1", "there is no server 'qemu-0.1' to imitate"),
        ("nbd://host", "an embedded server is memory:, file: or legacy:"),
    ):
        assert said in await run(*module, target, "--unix", workdir / "no", status=1)

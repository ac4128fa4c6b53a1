"""What a gateway that runs answers over HTTP, and what those who mean no good get."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.web.app import MOST_BODY_BYTES
from gateway.web.guard import HEALTH
from gateway.web.main import NICE
from gateway.web.serving import HEADER_BYTES, MOST_CONNECTIONS
from gateway.web.tokens import load_tokens
from tests.tools.patience import HANG_SECONDS
from tests.web.pages import CONFIG, FULL, LOOK, Running, answer_in, running

pytestmark = pytest.mark.real

DOC = Path(__file__).parents[2] / "docs" / "web.md"


async def fio(uri: str, *options: str) -> Any:
    """Have fio do something; give what it says of its job."""
    done = await trio.run_process(
        ["fio", "--output-format=json", "--name=x", "--ioengine=nbd", f"--uri={uri}", *options],
        capture_stdout=True,
        cwd="/tmp",
    )
    text = done.stdout.decode()
    return json.loads(text[text.index("{") :])["jobs"][0]


async def numbers(gateway: Running) -> dict[Any, float]:
    answer = await gateway.ask("/metrics", token=LOOK)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    return {
        (sample.name.removeprefix("nbd_gateway_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


async def test_metrics_and_api_have_fios_numbers(workdir: Path) -> None:
    async with running(workdir) as gateway:
        job = await fio(
            f"{gateway.nbd}/x", "--rw=randrw", "--bs=4k", "--iodepth=8", "--size=8m", "--fsync=16"
        )
        with trio.fail_after(HANG_SECONDS):
            while (await gateway.ask("/api/v1/status")).said["sessions"]:
                await trio.sleep(0.01)
        assert f"listener={gateway.nbd} " in await gateway.logged("session begins")
        found = await numbers(gateway)
        assert found["handshakes_total", ("listener", gateway.nbd), ("result", "session")] > 0
        of = {"command": "READ", "export": "x", "result": "ok"}
        assert found["requests_total", *sorted(of.items())] == job["read"]["total_ios"]
        of = {"command": "WRITE", "export": "x", "result": "ok"}
        assert found["requests_total", *sorted(of.items())] == job["write"]["total_ios"]
        assert (
            found["bytes_total", ("direction", "read"), ("export", "x")] == job["read"]["io_bytes"]
        )
        assert (
            found["bytes_total", ("direction", "write"), ("export", "x")]
            == job["write"]["io_bytes"]
        )
        ended = {key: value for key, value in found.items() if key[0] == "sessions_ended_total"}
        assert sum(ended.values()) == found["sessions_begun_total",], ended
        [export] = (await gateway.ask("/api/v1/exports")).said["exports"]
        assert export["totals"]["requests"]["READ"] == job["read"]["total_ios"]
        assert export["totals"]["bytes"]["WRITE"] == job["write"]["io_bytes"]
        totals = (await gateway.ask("/api/v1/status")).said["totals"]
        assert totals["requests"] == export["totals"]["requests"]


async def test_who_may_do_what(workdir: Path) -> None:
    """No token, a wrong one, one that may look; and a Unix socket, where the kernel says who it is."""
    async with running(workdir) as gateway:
        assert (await gateway.ask("/api/v1/me")).said["role"] == "look"
        assert (await gateway.ask("/api/v1/me", token=LOOK)).said["role"] == "look"
        assert (await gateway.ask("/api/v1/me", token=FULL)).said["role"] == "full"
        assert (await gateway.ask("/api/v1/me", unix=True)).said["role"] == "full"
        for path in ("/metrics", "/api/v1/status", "/api/v1/events", "/livez"):
            wrong = await gateway.ask(path, token=FULL + "x")
            assert wrong.status == 401
            assert wrong.headers["www-authenticate"] == "Bearer"
        assert (await gateway.do("drain", token=None)).status == 403
        assert (await gateway.do("drain", token=LOOK)).status == 403
        assert (await gateway.do("drain", token="x" * 40)).status == 401
        assert not (await gateway.ask("/api/v1/status")).said["listeners"][0]["drained"]
        assert "a token that is none, to look" in await gateway.logged("admin request refused")
        await gateway.logged("a token that is none, to have something done")
        done = await gateway.do("drain")
        assert (done.status, done.said["ok"]) == (200, True)
        assert "asked_by='ops at 127.0.0.1" in await gateway.logged("command done")
        ready = await gateway.ask("/readyz")
        assert (ready.status, ready.said["problems"]) == (503, ["all listeners are drained"])
        assert (await gateway.ask("/livez")).status == 200
        assert (await gateway.do("undrain")).status == 200
        assert (await gateway.ask("/readyz")).status == 200


async def test_a_get_changes_nothing_and_a_page_from_elsewhere_gets_nothing_done(
    workdir: Path,
) -> None:
    async with running(workdir) as gateway:

        async def post(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await gateway.ask(
                "/api/v1/drain", method="POST", body={}, token=FULL, headers=named
            )
            return answer.status

        assert (await gateway.ask("/api/v1/drain", token=FULL)).status == 405
        assert (await gateway.ask("/api/v1/drain", method="PUT", token=FULL)).status == 405
        assert (await gateway.ask("/api/v1/drain", method="OPTIONS", token=FULL)).status == 405
        assert await post(origin="http://evil.example") == 403
        assert await post(origin="null") == 403
        assert await post(sec_fetch_site="cross-site") == 403
        assert await post(content_type="text/plain") == 415
        assert await post(content_type="application/x-www-form-urlencoded") == 415
        for host in ("evil.example", "", "127.0.0.1.evil.example:80"):
            assert (await gateway.ask("/api/v1/status", host=host)).status == 421
        assert not (await gateway.ask("/api/v1/status")).said["listeners"][0]["drained"]
        assert await post(origin="http://localhost", sec_fetch_site="same-origin") == 200
        headers = (await gateway.ask("/")).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "access-control-allow-origin" not in headers
        assert headers["x-frame-options"] == "DENY"


NONSENSE = (
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 4 * HEADER_BYTES + b"\r\n\r\n", 431),
    (b"GET /" + b"y" * 13_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"NBDMAGICIHAVEOPT\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 0),
    (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: h2c\r\nconnection: upgrade, close\r\n\r\n",
        200,
    ),
    (
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
        200,
    ),
    (b"HEAD /api/v1/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
    (b"GET /%ff%00 HTTP/1.1\r\nhost: localhost\r\n\r\n", 404),
    (b"GET /static/../../doors.py HTTP/1.1\r\nhost: localhost\r\n\r\n", 404),
    (b"GET /static/%2e%2e/doors.py HTTP/1.1\r\nhost: localhost\r\n\r\n", 404),
)


async def test_nonsense(workdir: Path) -> None:
    async with running(workdir) as one:
        for what, status in NONSENSE:
            with trio.fail_after(HANG_SECONDS):
                async with await one.connect() as stream:
                    await stream.send_all(what)
                    answer = await answer_in(stream)
            assert answer.status == status, what
            assert (await one.ask("/livez")).status == 200


async def test_bodies_without_end(workdir: Path) -> None:
    """One that says how long it is, one that does not, and one that nobody wants."""
    async with running(workdir) as one:
        head = f"POST /api/v1/drain HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {FULL}\r\n"
        head += "content-type: application/json\r\n"
        piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"

        async def flood(stream: trio.SocketStream) -> None:
            try:
                while True:
                    await stream.send_all(piece)
            except trio.BrokenResourceError:
                pass

        for request, status in (
            (head + f"content-length: {MOST_BODY_BYTES + 1}\r\n\r\n", 413),
            (head + "transfer-encoding: chunked\r\n\r\n", 413),
            ("GET /livez HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n", 200),
        ):
            with trio.fail_after(HANG_SECONDS):
                async with await one.connect() as stream, trio.open_nursery() as nursery:
                    await stream.send_all(request.encode())
                    nursery.start_soon(flood, stream)
                    assert (await answer_in(stream)).status == status
                    nursery.cancel_scope.cancel()
        assert not (await one.ask("/api/v1/status")).said["listeners"][0]["drained"]


async def test_idle_connections_keep_nobody_out(workdir: Path) -> None:
    """Many more than there may be: the oldest have to go, and who asks is answered all the while."""
    async with running(workdir) as one:
        assert os.sched_getscheduler(one.child) == os.SCHED_BATCH  # whoever relays goes first
        assert os.getpriority(os.PRIO_PROCESS, one.child) == min(19, os.nice(0) + NICE)
        before = one.descriptors()
        there = [await one.connect() for _ in range(1000)]
        try:
            for _ in range(20):
                assert (await one.ask("/livez")).status == 200
            assert one.descriptors() < before + MOST_CONNECTIONS + 10
        finally:
            for stream in there:
                stream.socket.close()


async def test_who_reads_nothing_keeps_no_probe_out(workdir: Path) -> None:
    """More of them than there may be connections, each with more to take than its socket has room for. Probes
    are answered all the while, and so is, as soon as one of them is given up, whoever wants to look.
    """
    request = b"GET /api/v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with running(workdir) as one:
        there: list[trio.SocketStream] = []

        async def ask(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):  # there are others since
                await stream.send_all(100 * request)
            await trio.lowlevel.wait_readable(stream.socket)  # it is answered, or hung up on

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(MOST_CONNECTIONS + 50):
                    there.append(await one.connect(unix=True))
                    nursery.start_soon(ask, there[-1])
            for _ in range(10):
                for path in HEALTH:
                    assert (await one.ask(path)).status == 200
            with trio.fail_after(HANG_SECONDS):
                while (await one.ask("/api/v1/me")).status == 503:
                    await trio.sleep(0.1)
        finally:
            for stream in there:
                stream.socket.close()


async def test_events_come_and_end_with_who_hears_them(workdir: Path) -> None:
    async with running(workdir) as one:
        with trio.fail_after(HANG_SECONDS):
            async with await one.connect() as stream:
                await stream.send_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
                heard = b""
                while b"event: point" not in heard:
                    heard += await stream.receive_some()
                assert b"text/event-stream" in heard
                await one.do("drain")
                while b'"drained": true' not in heard:
                    heard += await stream.receive_some()
                while b"command done" not in heard:  # the log
                    heard += await stream.receive_some()


async def test_trace_is_told_and_ends_with_who_hears_it(workdir: Path) -> None:
    async with running(workdir) as one:
        answer = await one.do("trace", export="no", seconds="x")
        assert answer.status == 400
        body = json.dumps({"export": "x", "seconds": 0.2}).encode()
        answer = await one.ask("/api/v1/trace", method="POST", body=body, token=FULL)
        assert answer.status == 200, answer.body
        events = answer.body.decode().split("\n\n")
        assert events[0].startswith("event: begins\n")
        assert '"end"' in events[-2]


async def test_the_child_dies_and_another_follows(workdir: Path) -> None:
    async with running(workdir) as one:
        first = one.child
        os.kill(first, signal.SIGKILL)
        await one.logged("admin interface ended, another is begun")
        with trio.fail_after(HANG_SECONDS):
            while first in one.children or (await one.ask("/livez")).status != 200:
                await trio.sleep(0.01)


async def test_a_gateway_that_is_killed_takes_it_along(workdir: Path) -> None:
    async with running(workdir, ends=-signal.SIGKILL) as gateway:
        child = gateway.child
        gateway.process.kill()
        with trio.fail_after(HANG_SECONDS):
            while Path(f"/proc/{child}").exists():
                await trio.sleep(0.01)


async def test_a_gateway_that_does_not_answer_does_not_live(workdir: Path) -> None:
    async with running(workdir) as one:
        one.process.send_signal(signal.SIGSTOP)
        try:
            answer = await one.ask("/livez")
        finally:
            one.process.send_signal(signal.SIGCONT)
        assert answer.status == 503
        assert "has not answered" in answer.said["problems"][0]
        assert (await one.ask("/livez")).status == 200


async def test_a_reload_takes_it_up(workdir: Path) -> None:
    """Another token file and name, the same address: no connection is refused meanwhile."""
    async with running(workdir) as one:
        first = one.child
        other = "full-fedcba98765432100123"
        (one.directory / "others").touch(0o600)
        (one.directory / "others").write_text(f"full other {other}\n")
        file = one.directory / "gateway.toml"
        text = file.read_text()
        file.write_text(text.replace('/tokens"', '/others"\nhosts = "gw.example"'))
        assert (await one.ask("/livez", host="gw.example")).status == 421
        done = await one.do("reload")
        assert done.status in (200, 0)  # who speaks HTTP may go before it has answered
        with trio.fail_after(HANG_SECONDS):
            while (await one.ask("/api/v1/me", token=other)).status != 200 or len(one.children) > 1:
                await trio.sleep(0.01)
        assert (await one.ask("/livez", host="gw.example")).status == 200
        assert (await one.ask("/api/v1/me", token=FULL)).status == 401
        assert one.child != first
        file.write_text(text.replace("/tokens", "/no-such"))
        answer = await one.do("reload", token=other)
        assert answer.status == 409
        assert "no-such" in answer.said["problems"][0]
        file.write_text(text.partition("[admin]")[0])
        assert (await one.do("reload", token=other)).status in (200, 0)
        with trio.fail_after(HANG_SECONDS):
            while True:
                try:
                    await (await one.connect()).aclose()
                except OSError:
                    break
                await trio.sleep(0.01)


async def test_it_moves_and_goes_and_comes_back_by_sighup(workdir: Path) -> None:
    async with running(workdir) as one:
        file = one.directory / "gateway.toml"
        nobody = file.read_text().partition("[admin]")[0]

        async def reload(admin: str, event: str = "configuration reloaded") -> str:
            before = len(one.said)
            file.write_text(nobody + admin)
            one.process.send_signal(signal.SIGHUP)
            with trio.fail_after(HANG_SECONDS):
                while not (found := [each for each in one.said[before:] if event in each]):
                    await trio.sleep(0.01)
            return found[0]

        async def is_closed() -> None:
            with trio.fail_after(HANG_SECONDS), suppress(OSError):
                while True:
                    await (await one.connect()).aclose()

        moved = '[admin]\nuri = "http://127.0.0.2:0"\n'
        found = re.search(r"admin: http://127.0.0.2:(\d+)", await reload(moved))
        assert found
        await is_closed()
        one.address, one.port = "127.0.0.2", int(found[1])
        assert (await one.ask("/livez")).status == 200
        with trio.fail_after(HANG_SECONDS):
            while len(one.children) > 1:
                await trio.sleep(0.01)

        taken = await trio.open_tcp_listeners(0, host="127.0.0.1")
        [port] = {each.socket.getsockname()[1] for each in taken}
        for wrong in (
            f'[admin]\nuri = "http://127.0.0.1:{port}"\n',
            '[admin]\nuri = "http://0.0.0.0:0"\n',
            '[admin]\nuri = ["http://127.0.0.2:0", "http+unix:///no-such-place/s"]\n',
        ):
            await reload(wrong, "configuration stays as it was")
            assert (await one.ask("/livez")).status == 200

        assert "admin: nowhere any more" in await reload("")
        await is_closed()
        assert not one.children
        found = re.search(r"admin: http://127.0.0.2:(\d+)", await reload(moved))
        assert found
        one.port = int(found[1])
        assert (await one.ask("/livez")).status == 200
        for each in taken:
            await each.aclose()


async def test_a_reload_that_fails_leaves_it_as_it_was(workdir: Path) -> None:
    """One address is shared by then, and another cannot be listened on."""
    async with running(workdir) as one:
        file = one.directory / "gateway.toml"
        file.write_text(file.read_text().replace("/admin", "/no-such/admin"))
        for _ in range(2):
            answer = await one.do("reload")
            assert answer.status == 409
            assert "no-such" in answer.said["problems"][0]
        assert (await one.ask("/livez")).status == 200


async def test_mutual_tls(workdir: Path) -> None:
    make = [sys.executable, "-m", "gateway", "pki", "init", str(workdir / "pki")]
    await trio.run_process(make, capture_stdout=True)
    admin = f'[admin]\nuri = ["https://127.0.0.1:0", "http://127.0.0.1:0"]\ncertificates = "{workdir}/pki"\n'
    async with running(workdir, CONFIG, admin) as gateway:
        line = await gateway.logged("uri=https://127.0.0.1")
        port = line.rpartition(":")[2].strip()

        async def curl(*options: str) -> tuple[int, str]:
            done = await trio.run_process(
                [
                    "curl",
                    "-sS",
                    "--cacert",
                    f"{workdir}/pki/ca-cert.pem",
                    *options,
                    f"https://localhost:{port}/api/v1/me",
                ],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            return done.returncode, (done.stdout + done.stderr).decode()

        status, said = await curl()
        assert status != 0
        status, said = await curl(
            "--cert", f"{workdir}/pki/client-cert.pem", "--key", f"{workdir}/pki/client-key.pem"
        )
        assert status == 0, said
        assert json.loads(said)["role"] == "full"


async def test_the_commands_of_its_page(workdir: Path) -> None:
    """docs/web.md: tokens as it makes them, and each question and command, but for where it is asked."""
    tokens, *asks = (
        block
        for language, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", DOC.read_text())
        if not language
    )
    await trio.run_process(["sh", "-ec", tokens], cwd=workdir)
    assert len(load_tokens(workdir / "tokens")) == 2
    async with running(workdir) as one:
        for line in "".join(asks).splitlines():
            line = line.replace("127.0.0.1:10811", f"127.0.0.1:{one.port}")
            line = line.replace("/run/nbd-gateway/admin.sock", f"{workdir}/admin")
            line = (
                line.replace("vm-1", "x")
                .replace('"disks"', '"main"')
                .replace("curl ", "curl -sS --fail-with-body ")
            )
            environment = {**os.environ, "TOKEN": FULL}
            await trio.run_process(["sh", "-ec", line], env=environment, capture_stdout=True)
        assert (await one.ask("/api/v1/status")).said["paused"] == ["x"]


def test_without_the_table_nothing_of_it_is_loaded() -> None:
    code = "import sys, gateway.app.run, gateway.app.reload, gateway.cli.serve; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    late = ("hypercorn", "starlette", "prometheus_client", "h11", "gateway.web", "gateway.app.web")
    assert not [each for each in loaded.decode().split() if each.startswith(late)]

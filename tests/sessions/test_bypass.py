"""Every road past the rules but the one that is written: other names, other options, other identities.

What a denied client may learn is held against a name that does not exist, byte by byte, and no upstream hears
of it.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from gateway.access.rules import Access
from gateway.clients.client import serve_client
from gateway.config import parse
from gateway.embedded import MemoryDisk, Personality, Server
from gateway.embedded import server as embedded_server
from gateway.embedded.disk import ServedDisk
from gateway.protocol.client_role import Answered, Refused
from gateway.protocol.server_role import ContextsAsked, Event
from gateway.tls.credentials import ServerCredentials, server_credentials
from gateway.wire.constants import BASE_ALLOCATION, DIRTY_BITMAP, Cmd, Errno, Opt, Rep
from gateway.wire.constants import TransmissionFlag as Flag
from gateway.wire.handshake import (
    encode_option,
    encode_option_reply,
)
from gateway.wire.limits import MIB
from tests.embedded.peers import Client, socket_pair
from tests.sessions.asking import error_of, start_tls
from tests.sessions.gateways import CONFIG, Gateway, gateway_before
from tests.tls.handshakes import DAY, directory

SIZE = 4 * MIB
HELLO = b"\0\0\0\3"
ABORT = encode_option(Opt.ABORT)
BITMAP = DIRTY_BITMAP + "nightly"
BITMAPS = Personality("bitmaps", contexts=(BASE_ALLOCATION, BITMAP, DIRTY_BITMAP + "weekly"))


class AnyName(Mapping[str, ServedDisk]):
    """A server that knows its one disk by any name: what the gateway lets through, it gets."""

    def __init__(self) -> None:
        self.disk = MemoryDisk(SIZE)

    def __getitem__(self, name: str) -> ServedDisk:
        return self.disk

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(("open", "secret", "hidden"))

    def __len__(self) -> int:
        return 3


def obliging(personality: Personality = BITMAPS) -> Server:
    return Server(AnyName(), personality)


EXPORTS = """
[[export]]
name = "open"
upstream = "main"
[[export]]
name = "secret"
upstream = "main"
[[export]]
name = "hidden"
upstream = "main"
"""
DENIED = f"""
{EXPORTS}
[[rule]]
exports = "hidden"
deny = true
hide = true
[[rule]]
exports = "secret"
deny = true
[[rule]]
exports = "open"
"""

# --- What is said of a name


def questions(name: bytes) -> dict[str, bytes]:
    """Every option that names an export."""

    def sized(option: Opt, rest: bytes) -> bytes:
        return encode_option(option, len(name).to_bytes(4) + name + rest)

    return {
        "GO": sized(Opt.GO, bytes(2)),
        "INFO": sized(Opt.INFO, bytes(2)),
        "LIST_META_CONTEXT": sized(Opt.LIST_META_CONTEXT, bytes(4)),
        "SET_META_CONTEXT": sized(
            Opt.SET_META_CONTEXT,
            (1).to_bytes(4) + len(BASE_ALLOCATION).to_bytes(4) + BASE_ALLOCATION.encode(),
        ),
        "EXPORT_NAME": encode_option(Opt.EXPORT_NAME, name),
    }


async def said(gateway: Gateway, option: bytes) -> bytes:
    """All that a client is sent that asks one thing and leaves."""
    client = gateway.client()
    async with client.stream:
        structured = encode_option(Opt.STRUCTURED_REPLY)
        await client.stream.send_all(HELLO + structured + option + ABORT)
        return await client.rest()


GREETING_BYTES = 18
ACKNOWLEDGED = encode_option_reply(Opt.STRUCTURED_REPLY, Rep.ACK)


def replies(data: bytes) -> list[int]:
    """The types of the option replies that follow the greeting and STRUCTURED_REPLY's."""
    data = data[GREETING_BYTES:].removeprefix(ACKNOWLEDGED)
    found = []
    while data:
        found.append(int.from_bytes(data[12:16]))
        data = data[20 + int.from_bytes(data[16:20]) :]
    return found


SPELLINGS = [
    *("", "/", "/secret", "secret/", "//secret", "./secret", "open/../secret", "secret,open"),
    *("SECRET", "Secret", "secreT", " secret", "secret ", "secret\n", "\tsecret", "secret\r"),
    *("%73ecret", "secret%00", "secret%2f", "secre%74", "&#115;ecret", "\\secret", "secret\\"),
    *("*", "s*", "secre?", "[s]ecret", "secre[t]", "!open", "secret*", "{secret,open}", "?" * 6),
    *("\N{LATIN SMALL LETTER LONG S}ecret", "s\N{CYRILLIC SMALL LETTER IE}cret"),
    *("\N{FULLWIDTH LATIN SMALL LETTER S}ecret", "secre\u0301t", "secret\u200b", "\ufeffsecret"),
    *("secret?x=1", "secret#", "nbd://localhost/secret", "secret:", "'secret'", '"secret"'),
    *("open\0secret", "secret\0", "\0secret", "secret\0open"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_another_spelling_is_another_name(spelling: str) -> None:
    server = obliging()
    async with gateway_before(server, upstream=DENIED) as gateway:
        for ask, option in questions(spelling.encode()).items():
            answer = await said(gateway, option)
            if ask == "EXPORT_NAME":
                assert answer[GREETING_BYTES:] == ACKNOWLEDGED, ask
            else:
                # No name has a NUL in it, and that is told.
                assert replies(answer)[0] in {Rep.ERR_UNKNOWN, Rep.ERR_INVALID}, ask
                assert ("\0" in spelling) or replies(answer)[0] == Rep.ERR_UNKNOWN
    assert server.connections == 0


@pytest.mark.parametrize("name", [b"\xffsecret", b"secret\xc0\x80", b"secret\xed\xa0\x80"])
async def test_a_name_that_is_no_text(name: bytes) -> None:
    server = obliging()
    async with gateway_before(server, upstream=DENIED) as gateway:
        for option in questions(name).values():
            answer = await said(gateway, option)
            assert set(replies(answer)) <= {Rep.ERR_UNKNOWN, Rep.ERR_INVALID, Rep.ACK}
    assert server.connections == 0


async def test_a_denied_export_says_so_and_a_hidden_one_is_not_there() -> None:
    """A hidden name is answered in the very bytes of one that does not exist, whatever is asked."""
    server = obliging()
    async with gateway_before(server, upstream=DENIED) as gateway:
        hidden, absent, secret = (questions(n) for n in (b"hidden", b"absent", b"secret"))
        for ask in hidden:
            told = await said(gateway, hidden[ask])
            assert told.replace(b"hidden", b"absent") == await said(gateway, absent[ask]), ask
            if ask == "EXPORT_NAME":
                assert told[GREETING_BYTES:] == ACKNOWLEDGED
                assert await said(gateway, secret[ask]) == told
            else:
                assert replies(told) == [Rep.ERR_UNKNOWN, Rep.ACK]
                assert replies(await said(gateway, secret[ask])) == [Rep.ERR_POLICY, Rep.ACK]
    assert server.connections == 0


HIDDEN_BY = {
    "no rule": ("", '[[rule]]\nexports = "open"'),
    "a rule": ("", '[[rule]]\nexports = "open"\n[[rule]]\ndeny = true'),
    "join": ('{ use = "limit", connections = 1 }', ""),
    "describe": ('{ use = "window", offset = "1G", size = "1M" }', ""),
    "prepare": ('{ use = "window", partition = 3 }', ""),
    "flags": ('{ use = "flags", require = ["ROTATIONAL"] }', ""),
}


@pytest.mark.parametrize("by", HIDDEN_BY)
@pytest.mark.parametrize("ask", ["GO", "INFO", "EXPORT_NAME"])
async def test_an_export_that_hides_is_not_there_whoever_denies_it(by: str, ask: str) -> None:
    policies, rules = HIDDEN_BY[by]
    config = f"""
[[export]]
name = "open"
upstream = "main"
[[export]]
name = "hidden"
upstream = "main"
hide = true
policies = [ {policies} ]
{rules}
"""
    async with gateway_before(obliging(), upstream=config) as gateway:
        holder = gateway.client()
        async with holder.stream:
            if by == "join":
                await holder.go("hidden")
            told = await said(gateway, questions(b"hidden")[ask])
            absent = await said(gateway, questions(b"absent")[ask])
            assert told.replace(b"hidden", b"absent") == absent


PATTERNS = """
canonical-names = true
{}
[[export]]
name = "?*"
upstream = "main"
[[rule]]
{}
"""


def answers_contexts_of_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have embedded servers do as nbdkit does."""
    answer = embedded_server._Negotiation._answer

    def loosely(self: embedded_server._Negotiation, event: Event) -> object:
        if isinstance(event, ContextsAsked):
            self._core.answer_contexts(self._contexts(event))
            return None
        return answer(self, event)

    monkeypatch.setattr(embedded_server._Negotiation, "_answer", loosely)


HIDDEN_OF_PATTERNS = {
    "by a rule": ("", 'exports = "hidden"\ndeny = true\nhide = true\n[[rule]]'),
    "by renaming": ("", 'policies = [ { use = "exports", deny = ["hidden"] } ]'),
    "by a rule, shared": (
        'connections = "shared"',
        'exports = "hidden"\ndeny = true\nhide = true\n[[rule]]',
    ),
}


@pytest.mark.parametrize("loosely", [False, True])
@pytest.mark.parametrize("by", HIDDEN_OF_PATTERNS)
async def test_a_hidden_name_is_not_told_from_one_that_the_server_does_not_have(
    by: str, loosely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where names are patterns, the server is asked of the one and not of the other."""
    if loosely:
        answers_contexts_of_any_name(monkeypatch)
    config = PATTERNS.format(*HIDDEN_OF_PATTERNS[by])
    server = Server({"hidden": MemoryDisk(SIZE), "open": MemoryDisk(SIZE)}, BITMAPS)
    with structlog.testing.capture_logs() as lines:
        async with gateway_before(server, upstream=config) as gateway:
            hidden, absent = questions(b"hidden"), questions(b"absent")
            for ask in hidden:
                told = await said(gateway, hidden[ask])
                assert server.connections == 0
                assert told.replace(b"hidden", b"absent") == await said(gateway, absent[ask]), ask
                server.connections = 0
    whys = [line["why"] for line in lines if line.get("asked") == "GO 'absent'"]
    assert len(whys) == 1
    assert "upstream: " in whys[0]  # what it says is for us


async def test_a_hidden_name_is_not_told_from_one_that_an_oldstyle_server_does_not_have() -> None:
    server = Server({"": MemoryDisk(SIZE)}, Personality("old", oldstyle=True))
    config = PATTERNS.format(*HIDDEN_OF_PATTERNS["by a rule"])
    async with gateway_before(server, upstream=config) as gateway:
        hidden, absent = (questions(name)["GO"] for name in (b"hidden", b"absent"))
        told = await said(gateway, hidden)
        assert told.replace(b"hidden", b"absent") == await said(gateway, absent)


async def listed(client: Client) -> list[str]:
    client.negotiation.list_exports()
    return [export.name for export in (await client.answered()).exports]


async def test_what_is_denied_is_not_listed() -> None:
    async with gateway_before(obliging(), upstream=DENIED) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            assert await listed(client) == ["open"]


RENAMED = f"""
{EXPORTS}
[[rule]]
exports = ["open", "secret"]
policies = [ {{ use = "exports", allow = ["secret"], rename = {{ "secret" = "open" }} }} ]
"""


async def test_rules_see_our_name_and_not_the_one_that_is_asked_for() -> None:
    """A new name leads to one export alone, and its old one to none."""
    rules = f"""
{EXPORTS}
[[rule]]
exports = "secret"
deny = true
[[rule]]
policies = [ {{ use = "exports", rename = {{ "secret" = "alias" }} }} ]
"""
    server = obliging()
    async with gateway_before(server, upstream=rules) as gateway:
        for name in (b"alias", b"secret"):
            for ask, option in questions(name).items():
                answer = await said(gateway, option)
                if ask != "EXPORT_NAME":
                    assert replies(answer)[0] in {Rep.ERR_POLICY, Rep.ERR_UNKNOWN}, (name, ask)
    assert server.connections == 0
    async with gateway_before(server, upstream=RENAMED) as gateway:
        client = gateway.client()
        async with client.stream:
            await client.greeting()
            assert await listed(client) == ["open"]
            client.negotiation.ask_info("secret", ())
            assert (await client.refused()).reply == Rep.ERR_UNKNOWN
            client.negotiation.ask_info("hidden", ())
            assert (await client.refused()).reply == Rep.ERR_POLICY


# --- Meta contexts

CONTEXTS = """
[[export]]
name = "open"
upstream = "main"
[[export]]
name = "vm"
upstream = "main"
policies = [ {{ use = "contexts", deny = ["qemu:*"]{} }} ]
"""
OMITTING = ', denied = "omit"'


@asynccontextmanager
async def asking(
    gateway: Gateway, *, extended: bool = False, structured: bool = True
) -> AsyncIterator[Client]:
    client = gateway.client()
    async with client.stream:
        await client.greeting()
        if extended:
            client.negotiation.ask_extended_headers()
            await client.answered()
        elif structured:
            client.negotiation.ask_structured_replies()
            await client.answered()
        yield client


async def contexts(client: Client, name: str, *queries: str, select: bool) -> list[str] | int:
    """The contexts that are told, or how that is refused."""
    client.negotiation.ask_contexts(name, queries, select=select)
    told = await client.event()
    if isinstance(told, Refused):
        return told.reply
    assert isinstance(told, Answered)
    return [context.name for context in told.contexts]


@pytest.mark.parametrize("more", ["", OMITTING])
async def test_wildcards_give_what_is_allowed(more: str) -> None:
    async with (
        gateway_before(obliging(), upstream=CONTEXTS.format(more)) as gateway,
        asking(gateway) as client,
    ):
        for queries in ([], ["base:", "qemu:"], [BASE_ALLOCATION, DIRTY_BITMAP]):
            assert await contexts(client, "vm", *queries, select=False) == [BASE_ALLOCATION]
        for queries in (["qemu:"], [DIRTY_BITMAP], [BITMAP]):
            assert await contexts(client, "vm", *queries, select=False) == []
        assert BITMAP in str(await contexts(client, "open", select=False))


SETS: dict[str, tuple[list[tuple[str, list[str]]], set[str]]] = {
    "allowed": ([("vm", [BASE_ALLOCATION])], {BASE_ALLOCATION}),
    "denied": ([("vm", [BITMAP])], set()),
    "a wildcard": ([("vm", ["qemu:"])], set()),
    "a wildcard of bitmaps": ([("vm", [DIRTY_BITMAP])], set()),
    "both": ([("vm", [BASE_ALLOCATION, BITMAP])], set()),
    "allowed, then denied": ([("vm", [BASE_ALLOCATION]), ("vm", [BITMAP])], set()),
    "denied, then allowed": ([("vm", [BITMAP]), ("vm", [BASE_ALLOCATION])], {BASE_ALLOCATION}),
    "another export": ([("open", [BITMAP])], set()),
    "another export, then this": (
        [("open", [BITMAP, BASE_ALLOCATION]), ("vm", [BASE_ALLOCATION])],
        {BASE_ALLOCATION},
    ),
    "this, then another export": ([("vm", [BASE_ALLOCATION]), ("open", [BITMAP])], set()),
    "this, then one that is not": ([("vm", [BASE_ALLOCATION]), ("none", [BITMAP])], set()),
    "in capitals": ([("vm", [BITMAP.upper(), "Qemu:dirty-bitmap:nightly"])], set()),
    "spelled": ([("vm", [BITMAP + " ", " " + BITMAP, BITMAP + "/", "*", "qemu:*"])], set()),
    "nothing": ([("vm", [BASE_ALLOCATION]), ("vm", [])], set()),
}


@pytest.mark.parametrize("between", ["nothing", "LIST_META_CONTEXT", "LIST", "INFO"])
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("more", ["", OMITTING])
@pytest.mark.parametrize("sets", SETS)
async def test_what_is_selected_at_last(sets: str, more: str, extended: bool, between: str) -> None:
    """A session has the contexts of the last SET_META_CONTEXT for its export, and of those the allowed."""
    asked, expected = SETS[sets]
    if more and sets == "both":
        expected = {BASE_ALLOCATION}
    async with (
        gateway_before(obliging(), upstream=CONTEXTS.format(more)) as gateway,
        asking(gateway, extended=extended) as client,
    ):
        for name, queries in asked:
            told = await contexts(client, name, *queries, select=True)
            if between == "LIST_META_CONTEXT":
                await contexts(client, "open", select=False)
            elif between == "LIST":
                await listed(client)
            elif between == "INFO":
                client.negotiation.ask_info("vm", ())
                await client.answered()
        client.negotiation.go("vm", ())
        await client.answered()
        cookie = await client.send(Cmd.BLOCK_STATUS, 0, SIZE)
        if expected:
            chunks = await client.reply(cookie)
            ids = {chunk.status[0] for chunk in chunks if chunk.payload}
            assert len(ids) == len(expected)
            assert told == [BASE_ALLOCATION]
        else:
            assert await error_of(client, cookie) == Errno.EINVAL
        if extended:  # by number, what was never selected
            for number in range(4):
                data = SIZE.to_bytes(8) + number.to_bytes(4)
                cookie = await client.send(Cmd.BLOCK_STATUS, 0, data=data)
                chunks = await client.reply(cookie)
                known = number in (ids if expected else ())
                assert (chunks[-1].kind & 0x8000 == 0) == known


# --- Identities: before TLS and after it, and who says that he is another

TLS = """tls = "allow"
certificates = "not looked at"
"""


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA) -> Path:
    return directory(
        tmp_path_factory.mktemp("pki"),
        ca,
        server=ca.issue_cert("localhost"),
        client=ca.issue_cert("joe@a.example", common_name="backup-1"),
    )


@pytest.fixture(scope="module")
def credentials(pki: Path) -> ServerCredentials:
    return server_credentials(pki)


def context_of(pki: Path, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca-cert.pem"))
    if certificate is not None:
        context.load_cert_chain(certificate)
    else:
        context.load_cert_chain(pki / "client-cert.pem", pki / "client-key.pem")
    return context


def issued(ca: trustme.CA, path: Path, subject: Sequence[str]) -> Path:
    """A certificate with these CNs, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in subject])
        )
        .issuer_name(x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    signer = load_pem_private_key(ca.private_key_pem.bytes(), None)
    certificate = builder.sign(signer, SHA256())  # type: ignore[arg-type] # trustme's are EC
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return path


def connected(gateway: Gateway, credentials: ServerCredentials) -> Client:
    ours, theirs = socket_pair()
    listen = gateway.service.config.listen[0]
    serve = partial(serve_client, gateway.service, listen, tls=credentials.session)
    gateway.nursery.start_soon(serve, theirs)
    return Client(ours)


BY_CERTIFICATE = f"""
{EXPORTS}
[[rule]]
who = {{ certificate = {{ cn = "backup-*" }} }}
exports = "secret"
[[rule]]
who = {{ tls = false }}
exports = "open"
"""

NOT_BACKUP = {
    "a comma, and another CN": ["x,CN=backup-1"],
    "a plus, and another CN": ["x+CN=backup-1"],
    "another order": ["x", "backup-1,CN=x"],
    "in RFC 4514's escapes": ["x\\,CN=backup-1"],
    "a slash, as OpenSSL prints it": ["x/CN=backup-1"],
    "two CNs": ["backup-1", "backup-2"],
    "two CNs, another first": ["x", "backup-1"],
    "two CNs, another last": ["backup-1", "x"],
    "twice the same": ["backup-1", "backup-1"],
    "a line break": ["x\nCN=backup-1"],
    "in capitals": ["BACKUP-1"],
    "a space": [" backup-1"],
    "none": [],
}


@pytest.mark.parametrize("who", NOT_BACKUP)
async def test_names_in_a_certificate(
    who: str, pki: Path, ca: trustme.CA, credentials: ServerCredentials, tmp_path: Path
) -> None:
    mine = issued(ca, tmp_path / "mine.pem", NOT_BACKUP[who])
    server = obliging()
    async with gateway_before(server, listen=TLS, upstream=BY_CERTIFICATE) as gateway:
        client = connected(gateway, credentials)
        async with client.stream, await start_tls(client, context_of(pki, mine)):
            client.negotiation.go("secret", ())
            assert (await client.refused()).reply == Rep.ERR_POLICY
            client.negotiation.export_name("secret")
            await client.stream.send_all(client.negotiation.data_to_send())
            assert not await client.rest()
        assert server.connections == 0
        for subject in (["backup-1"], ["backup-x,CN=y"]):
            good = issued(ca, tmp_path / "good.pem", subject)
            client = connected(gateway, credentials)
            async with client.stream, await start_tls(client, context_of(pki, good)):
                client.negotiation.go("secret", ())
                await client.answered()
                await client.send(Cmd.DISC)
                assert not await client.rest()


async def test_what_was_asked_in_the_clear_is_over_with_tls(
    pki: Path, credentials: ServerCredentials
) -> None:
    server = obliging()
    async with gateway_before(server, listen=TLS, upstream=BY_CERTIFICATE) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_extended_headers()
            await client.answered()
            for select in (False, True):
                client.negotiation.ask_contexts("secret", [BITMAP], select=select)
                assert (await client.refused()).reply == Rep.ERR_POLICY
            client.negotiation.go("secret", ())
            assert (await client.refused()).reply == Rep.ERR_POLICY
            assert server.connections == 0
            client.negotiation.ask_contexts("open", [BITMAP], select=True)
            assert (await client.answered()).contexts
            client.negotiation.ask_info("open", ())
            await client.answered()
            client.negotiation.ask_starttls()
            await client.answered()
            clear = client.stream
            secure = trio.SSLStream(clear, context_of(pki), server_hostname="localhost")
            await secure.do_handshake()
            client.negotiation = client.negotiation.secured()
            client.stream = secure  # type: ignore[assignment] # all that it uses is there
            # It is somebody else now: what it had in the clear, it has no more.
            client.negotiation.go("open", ())
            assert (await client.refused()).reply == Rep.ERR_POLICY
            assert await listed(client) == ["secret"]
            client.negotiation.go("secret", ())
            await client.answered()
            # Nor has it contexts, or any framing but the simple one.
            cookie = await client.send(Cmd.BLOCK_STATUS, 0, 4096)
            assert await client.simple_reply() == (cookie, Errno.EINVAL, b"")
            await client.send(Cmd.DISC)
            assert not await client.rest()


async def test_contexts_that_were_selected_in_the_clear_are_not_there_over_tls(
    pki: Path, credentials: ServerCredentials
) -> None:
    """For the very same export."""
    config = f'{EXPORTS}\n[[rule]]\nwho = {{ network = "0.0.0.0/0" }}\ndeny = true\n[[rule]]'
    async with gateway_before(obliging(), listen=TLS, upstream=config) as gateway:
        client = connected(gateway, credentials)
        async with client.stream:
            await client.greeting()
            client.negotiation.ask_structured_replies()
            await client.answered()
            client.negotiation.ask_contexts("open", [BITMAP], select=True)
            assert (await client.answered()).contexts
            client.negotiation.ask_starttls()
            await client.answered()
            secure = trio.SSLStream(client.stream, context_of(pki), server_hostname="localhost")
            await secure.do_handshake()
            client.negotiation = client.negotiation.secured()
            client.stream = secure  # type: ignore[assignment] # all that it uses is there
            client.negotiation.ask_structured_replies()
            await client.answered()
            client.negotiation.go("open", ())
            await client.answered()
            cookie = await client.send(Cmd.BLOCK_STATUS, 0, 4096)
            assert await error_of(client, cookie) == Errno.EINVAL
            await client.send(Cmd.DISC)
            assert not await client.rest()


async def test_an_oldstyle_listener_has_rules_too() -> None:
    server = obliging()
    for name in ("secret", "hidden"):
        listen = f'style = "oldstyle"\nexport = "{name}"'
        with structlog.testing.capture_logs() as lines:
            async with gateway_before(server, listen=listen, upstream=DENIED) as gateway:
                client = gateway.client()
                async with client.stream:
                    assert await client.rest() == b""
        assert any("cannot be opened" in str(line.get("why")) for line in lines)
    assert server.connections == 0
    listen = 'style = "oldstyle"\nexport = "open"'
    read_only = f'{EXPORTS}\n[[rule]]\npolicies = [ {{ use = "readonly" }} ]'
    async with gateway_before(server, listen=listen, upstream=read_only) as gateway:
        client = gateway.client()
        async with client.stream:
            greeting = await client.receive(152)
            assert int.from_bytes(greeting[26:28]) & Flag.READ_ONLY
            await client.send(Cmd.WRITE, 0, data=b"x")
            assert (await client.simple_reply())[1] == Errno.EPERM


# --- Rules that change between two questions, and places


def reconfigure(gateway: Gateway, upstream: str) -> None:
    config = parse(
        CONFIG.format(drain_seconds=5, handshake_seconds=5, listen="", upstream=upstream), "test"
    )
    gateway.service.reconfigure(config, Access(config), gateway.service.servers)


def one(policies: str, more: str = "") -> str:
    return f'[[export]]\nname = "vm"\nupstream = "main"\npolicies = [ {policies} ]\n{more}'


PREPARES = '{ use = "delay", open = "1ns" }'
DENY = "[[rule]]\ndeny = true"


@pytest.mark.parametrize("prepares", ["", PREPARES + ", "])
async def test_a_go_is_held_against_the_rules_of_its_own_time(prepares: str) -> None:
    """Also where its INFO had opened the export already."""
    server = obliging()
    before = one(prepares)
    async with gateway_before(server, upstream=before) as gateway:

        async def after_info(then: str, *, first: str = before) -> Answered | Refused:
            reconfigure(gateway, first)
            async with asking(gateway) as client:
                client.negotiation.ask_contexts("vm", [BITMAP], select=True)
                await client.event()
                client.negotiation.ask_info("vm", ())
                await client.event()
                reconfigure(gateway, then)
                client.negotiation.go("vm", ())
                told = await client.event()
                assert isinstance(told, Answered | Refused)
                if isinstance(told, Answered):
                    cookie = await client.send(Cmd.WRITE, 0, data=b"x")
                    writes.append(await error_of(client, cookie))
                    cookie = await client.send(Cmd.BLOCK_STATUS, 0, 4096)
                    status.append(await error_of(client, cookie))
                return told

        writes: list[int] = []
        status: list[int] = []
        told = await after_info(one(prepares, DENY))
        assert isinstance(told, Refused)
        assert told.reply == Rep.ERR_POLICY
        told = await after_info(one(prepares, DENY + "\nhide = true"))
        assert isinstance(told, Refused)
        assert told.reply == Rep.ERR_UNKNOWN
        assert isinstance(await after_info(before, first=one(prepares, DENY)), Answered)
        told = await after_info(one(f'{prepares}{{ use = "readonly" }}'))
        assert isinstance(told, Answered)
        assert told.export is not None
        assert told.export.flags & Flag.READ_ONLY
        assert writes == [0, Errno.EPERM]
        told = await after_info(one(f'{prepares}{{ use = "window", offset = "1M" }}'))
        assert isinstance(told, Answered)
        assert told.export is not None
        assert told.export.size == SIZE - MIB
        status.clear()
        assert isinstance(
            await after_info(one(f'{prepares}{{ use = "contexts", deny = ["qemu:*"] }}')), Answered
        )
        assert status == [Errno.EINVAL]


@pytest.mark.parametrize("then", ["other", "vm"])
async def test_an_info_lets_go_of_what_was_opened_for_one_before(then: str) -> None:
    """There may be no slot for two."""
    server = obliging()
    exports = one(PREPARES) + '\n[[export]]\nname = "other"\nupstream = "main"'
    async with gateway_before(server, upstream=exports) as gateway:
        gateway.service.servers["main"].slots.limiter.total_tokens = 1
        async with asking(gateway) as client:
            for name in ("vm", then):
                client.negotiation.ask_info(name, ())
                assert isinstance(await client.event(), Answered)


async def test_an_info_takes_no_place_and_gets_past_none() -> None:
    server = obliging()
    config = one('{ use = "limit", connections = 1 }')
    async with gateway_before(server, upstream=config) as gateway:
        flood = [gateway.client() for _ in range(10)]
        for client in flood:
            await client.greeting()
            for _ in range(20):
                client.negotiation.ask_info("vm", ())
                await client.answered()
        first = gateway.client()
        await first.go("vm")
        for client in flood:
            for ask in (client.negotiation.ask_info, client.negotiation.go):
                ask("vm", ())
                assert (await client.refused()).reply == Rep.ERR_POLICY
            client.negotiation.export_name("vm")
            await client.stream.send_all(client.negotiation.data_to_send())
            assert await client.rest() == b""
            await client.stream.aclose()
        await first.send(Cmd.DISC)
        assert not await first.rest()
        await first.stream.aclose()
        for _ in range(3):  # the place is free again, and only one
            one_more, another = gateway.client(), gateway.client()
            async with one_more.stream, another.stream:
                await one_more.go("vm")
                await another.greeting()
                another.negotiation.go("vm", ())
                assert (await another.refused()).reply == Rep.ERR_POLICY
                await one_more.send(Cmd.DISC)
                assert not await one_more.rest()


async def test_a_denied_client_has_no_upstream_connection() -> None:
    server = obliging()
    async with gateway_before(server, upstream=DENIED) as gateway:
        async with asking(gateway) as client:
            for name in ("secret", "hidden", "none", ""):
                for select in (False, True):
                    assert isinstance(await contexts(client, name, BITMAP, select=select), int)
                for ask in (client.negotiation.ask_info, client.negotiation.go):
                    ask(name, ())
                    await client.refused()
            assert server.connections == 0
            # Nor does what it may have serve what it may not.
            client.negotiation.ask_info("open", ())
            await client.answered()
            client.negotiation.go("secret", ())
            assert (await client.refused()).reply == Rep.ERR_POLICY
            client.negotiation.ask_contexts("secret", [BITMAP], select=True)
            assert (await client.refused()).reply == Rep.ERR_POLICY
        assert server.connections == 1

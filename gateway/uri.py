"""What a user writes to name a server: NBD URIs, and the short forms of our embedded servers.

An NBD URI is that of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md, read as libnbd
reads it (lib/uri.c), with two differences: what libnbd passes over in silence (an unknown parameter, a
host beside a Unix socket) is an error here, because it is a slip of the user's, and scheme and host may be
written in capitals, as RFC 3986 has it.

    nbd://host:10809/export         nbds://... with TLS; [::1] for IPv6; the port defaults to 10809
    nbd+unix:///export?socket=/path the export comes before the socket, and is usually empty
    nbd+vsock://cid:10809/export    cid 2 is the host that runs this virtual machine
    memory:1G                       an embedded server: zeros at first, kept in memory
    file:disk.img                   an embedded server over a file or a block device
    legacy:qemu-3.0,size=64M        an embedded server that behaves as an old one does

This file is longer than other modules: whatever can be wrong with what names a server is found here, before
anything is done with it.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

DEFAULT_PORT = 10809
"""IANA's port for NBD."""

VSOCK_HOST_CID = 2
"""A vsock URI without a CID means the host, as in libnbd."""

VSOCK_ANY = 0xFFFF_FFFF
"""VMADDR_CID_ANY: as a listener, every CID of this machine."""

MAX_NAME_BYTES = 4096
"""proto.md: "A string ... MUST be no longer than 4096 bytes"."""

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of unix(7) has 108 bytes, the last of which is NUL."""

MAX_SIZE_BYTES = 2**63 - 1
"""off_t: no file, and so no export of ours, is larger."""

MAX_LABEL_CHARS = 63
MAX_HOST_CHARS = 253
"""RFC 1035, 2.3.4: labels of 63 octets, names of 255, where each label has its length before it, and the root
is one of length 0. Who looks names up raises what is no OSError for others."""

LEGACY_SIZE_BYTES = 64 << 20
"""Large enough to copy something onto, small enough to be had in an instant."""


class UriError(ValueError):
    """`text` does not name a server; `problem` says what was expected instead."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.text = text
        self.problem = problem

    def __str__(self) -> str:
        # An argument that is not UTF-8 has surrogates in it, which could not be printed.
        text = f'"{self.text}": {self.problem}'
        return text.encode(errors="backslashreplace").decode()


class Transport(Enum):
    """What an NBD URI connects with; the value is the scheme's suffix."""

    TCP = ""
    UNIX = "+unix"
    VSOCK = "+vsock"


@dataclass(frozen=True, slots=True)
class NbdUri:
    """An NBD URI; `str()` gives its canonical form, which parses to an equal value.

    TCP has host and port, UNIX socket_path (an abstract one begins with NUL), VSOCK cid and port.
    `parameters` are the query's without `socket`: those for TLS, and `x-` for experiments.
    """

    tls: bool
    transport: Transport
    host: str | None = None
    port: int | None = None
    socket_path: str | None = None
    cid: int | None = None
    export: str = ""
    username: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def export_named(self) -> bool:
        """Whether the URI names an export. An empty path and "/" are one: the default export."""
        return self.export != ""

    def __str__(self) -> str:
        user = "" if self.username is None else quote(self.username, safe="") + "@"
        match self.transport:
            case Transport.TCP:
                host = quote(self.host or "", safe=":")
                host = f"[{host}]" if ":" in host else host
                authority = f"{host}:{self.port}"
            case Transport.VSOCK:
                authority = f"{self.cid}:{self.port}"
            case Transport.UNIX:
                authority = ""
        parameters = dict(self.parameters)
        if self.socket_path is not None:
            parameters = {"socket": self.socket_path} | parameters
        # Only what no shell looks at stays unquoted: people paste URIs.
        query = "&".join(f"{quote(k)}={quote(v, safe='/:@')}" for k, v in parameters.items())
        path = "/" + quote(self.export, safe="/:@") if self.export or query else ""
        scheme = ("nbds" if self.tls else "nbd") + self.transport.value
        return f"{scheme}://{user}{authority}{path}" + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class MemoryUri:
    """`memory:1G`: an embedded server whose one export begins as zeros and is gone at the end."""

    size_bytes: int

    def __str__(self) -> str:
        return f"memory:{format_size(self.size_bytes)}"


@dataclass(frozen=True, slots=True)
class FileUri:
    """`file:disk.img`: an embedded server over a file or a block device that exists."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class Legacy:
    """`legacy:qemu-3.0`: an embedded server with the manners of an old one. For trying things out."""

    personality: str
    size_bytes: int = LEGACY_SIZE_BYTES

    def __str__(self) -> str:
        return f"legacy:{self.personality},size={format_size(self.size_bytes)}"


Target = NbdUri | MemoryUri | FileUri | Legacy
"""Whatever `parse_upstream` can give."""


def export_of(target: Target) -> str:
    """Give the export that is meant; an embedded server has the default export alone."""
    return target.export if isinstance(target, NbdUri) else ""


# ---- the short forms ----


def parse_upstream(text: str) -> Target:
    """Parse what stands for a server: an NBD URI, or the short form of an embedded server."""
    kind, colon, rest = text.partition(":")
    if colon and (parse := _EMBEDDED.get(kind.lower())):
        return parse(text, rest)
    if not colon:
        hint = f'; a local image is "file:{text}"' if re.search(r"[/.]", text) else ""
        raise UriError(text, f"expected {_EXPECTED}{hint}")
    return parse_nbd_uri(text)


def _parse_memory(text: str, rest: str) -> MemoryUri:
    return MemoryUri(_size(text, rest))


def _parse_file(text: str, rest: str) -> FileUri:
    if rest.startswith("//"):
        # file:///path is a URL of RFC 8089; two slashes alone would make "path" a host.
        if not rest.startswith("///"):
            raise UriError(text, f'expected "file:PATH", write "file:{rest.lstrip("/")}"')
        rest = "/" + rest.lstrip("/")  # two slashes would be kept, and read as a host the next time
    if not rest or "\0" in rest:
        raise UriError(text, 'expected the path of an image, as in "file:disk.img"')
    return FileUri(Path(rest))


def _parse_legacy(text: str, rest: str) -> Legacy:
    personality, comma, option = rest.partition(",")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", personality):
        raise UriError(text, 'expected a server to imitate, as in "legacy:qemu-3.0"')
    if not comma:
        return Legacy(personality)
    key, _, value = option.partition("=")
    if key != "size":
        raise UriError(text, f'expected "size=" after the comma, got "{option}"')
    return Legacy(personality, _size(text, value))


_EMBEDDED: Mapping[str, Callable[[str, str], Target]] = {
    "memory": _parse_memory,
    "file": _parse_file,
    "legacy": _parse_legacy,
}
_EXPECTED = (
    "an NBD URI such as nbd://host:10809 or nbd+unix:///?socket=PATH, "
    "or memory:SIZE, file:PATH, legacy:qemu-3.0"
)


# ---- sizes ----

_SHIFTS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


def parse_size(text: str) -> int:
    """Bytes from `1G` as nbdkit reads it: a whole number, then one of b K M G T P E, powers of 1024."""
    found = re.fullmatch(r"([0-9]{1,19})([bkmgtpe]?)", text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError(
            f'expected a size such as 64M or 1G (b, K, M, G, T, P, E, or bytes), got "{text}"'
        )
    size = int(found[1]) << _SHIFTS[found[2].lower()]
    if size > MAX_SIZE_BYTES:
        raise ValueError(f'expected a size of less than 8E (2^63 bytes), got "{text}"')
    return size


def size_of(value: object) -> int:
    """Bytes from what a configuration has: text as above, or a number of bytes. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"expected a size of 0 or more, got {value}")
        return value
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError(f'expected a size such as "64M", or a number of bytes, got {value}')


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as exactly this."""
    for suffix, shift in reversed(_SHIFTS.items()):
        if size_bytes and shift and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{suffix.upper()}"
    return str(size_bytes)


def _size(text: str, size: str) -> int:
    try:
        return parse_size(size)
    except ValueError as error:
        raise UriError(text, str(error)) from None


# ---- NBD URIs ----

_SCHEMES = {
    ("nbds" if tls else "nbd") + transport.value: (tls, transport)
    for transport in Transport
    for tls in (False, True)
}

# RFC 3986, appendix B, narrowed to the one form that libnbd takes: scheme://[authority][/path][?query]
_URI = re.compile(r"([^:/?#]+)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?")
_AUTHORITY = re.compile(r"(?:([^@]*)@)?(\[[^\]]*\]|[^:@\[\]]*)(?::([0-9]*))?")
# RFC 3986: unreserved, sub-delims, ":", "@", "/", "?" and percent; the brackets are IPv6's.
_NOT_IN_A_URI = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@/?#%\[\]-]")

# uri.md: "Any other query parameters which the client does not understand SHOULD be diagnosed by the
# parser." All but the first two are libnbd's own.
_PARAMETERS = frozenset(
    (
        "tls-type",
        "tls-hostname",
        "tls-username",
        "tls-verify-peer",
        "tls-certificates",
        "tls-psk-file",
    )
)


Address = tuple[str, ...]
"""Where a server is, as it is written."""


def address_of(uri: NbdUri) -> Address:
    """Give where a URI leads. Paths are made absolute; nothing is looked up."""
    match uri.transport:
        case Transport.TCP:
            return "tcp", uri.host or "localhost", str(uri.port)
        case Transport.VSOCK:
            return "vsock", str(uri.cid), str(uri.port)
        case Transport.UNIX:
            assert uri.socket_path is not None
            abstract = uri.socket_path.startswith("\0")
            path = uri.socket_path if abstract else str(Path(uri.socket_path).absolute())
            return "unix", path


def parse_nbd_uri(text: str) -> NbdUri:
    """Parse an NBD URI; `UriError` says what was expected and what came."""
    scheme, colon, rest = text.partition(":")
    if scheme.lower() not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise UriError(text, f"expected an NBD URI, which begins with one of {known}")
    if not rest.startswith("//"):
        # qemu's own notation, older than URIs and still in many manuals: nbd:host:port:exportname=x
        raise UriError(text, f'expected "{scheme}://" at its beginning, got "{scheme}{colon}"')
    if odd := _NOT_IN_A_URI.search(text):
        problem = f"{odd[0]!r} cannot stand in a URI"
        with suppress(UnicodeEncodeError):  # half of a character, which nobody can write
            problem += f', write "{quote(odd[0], safe="", errors="surrogateescape")}" for it'
        raise UriError(text, problem)
    if "#" in text:
        raise UriError(text, 'an NBD URI has no fragment; "#" in a name is written "%23"')
    parts = _URI.fullmatch(text)
    authority = parts and _AUTHORITY.fullmatch(parts[2])
    if parts is None or authority is None:
        raise UriError(text, f'expected "{scheme}://HOST:PORT/EXPORT", an IPv6 address in [ ]')
    if re.search(r"[\[\]]", (parts[3] or "") + (parts[4] or "")):
        raise UriError(text, '"[" and "]" after the host are written "%5B" and "%5D"')

    tls, transport = _SCHEMES[scheme.lower()]
    username = None if authority[1] is None else _decode(text, authority[1], "user name")
    host, port = _decode(text, authority[2], "host"), authority[3]
    parameters = _parse_query(text, parts[4] or "")
    socket_path = parameters.pop("socket", None)
    if socket_path is not None and transport is not Transport.UNIX:
        unix = ("nbds" if tls else "nbd") + Transport.UNIX.value
        raise UriError(text, f'"socket" goes with {unix}:///?socket=PATH only')
    for key in parameters:
        if key not in _PARAMETERS and not key.startswith("x-"):
            raise UriError(text, f'unknown parameter "{key}" (known: {_KNOWN_PARAMETERS})')
        if key.startswith("tls-") and not tls:
            raise UriError(text, f'"{key}" goes with nbds: only, which is NBD over TLS')
    if hostname := parameters.get("tls-hostname"):
        _check_host(text, hostname)

    # The path without its one leading slash; nbd://host//disk is the export "/disk".
    export = check_name(text, _decode(text, (parts[3] or "/")[1:], "export name"))
    if transport is Transport.UNIX and (host or port is not None):
        raise UriError(text, f'expected "{scheme}:///EXPORT?socket=PATH", with no host')
    return NbdUri(
        tls,
        transport,
        host=_parse_host(text, host) if transport is Transport.TCP else None,
        port=_parse_port(text, port, transport),
        socket_path=_parse_socket(text, socket_path, scheme)
        if transport is Transport.UNIX
        else None,
        cid=_parse_number(text, host, "CID", VSOCK_HOST_CID, VSOCK_ANY)
        if transport is Transport.VSOCK
        else None,
        export=export,
        username=username,
        parameters=parameters,
    )


_KNOWN_PARAMETERS = ", ".join(["socket", *sorted(_PARAMETERS), "x-..."])


def check_name(text: str, name: str, what: str = "an export name") -> str:
    """Give back `name` if proto.md allows it as a string; else blame `text`, where it stands."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:  # from an argument that is not, or from half of a character in JSON
        raise UriError(text, f"{what} is UTF-8, and this is not") from None
    if length > MAX_NAME_BYTES:
        raise UriError(
            _brief(text), f"{what} has at most {MAX_NAME_BYTES} bytes, this one {length}"
        )
    if "\0" in name:
        raise UriError(text, f"{what} cannot contain NUL")
    return name


def _brief(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_socket_path(text: str, path: str) -> str:
    """Give back `path` if a Unix socket can have it; else blame `text`, where it stands."""
    length = len(path.encode(errors="surrogateescape"))
    # An abstract name (unix(7)) begins with NUL and needs none at its end.
    if length > MAX_SOCKET_PATH_BYTES + path.startswith("\0"):
        raise UriError(
            text,
            f"the path of a Unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes, this one {length}",
        )
    return path


def _parse_query(text: str, query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    # libnbd takes ";" for "&" as well.
    for piece in filter(None, re.split("[&;]", query)):
        key, _, value = (_decode(text, part, "parameter") for part in piece.partition("="))
        if key in parameters:
            raise UriError(text, f'parameter "{key}" is given twice')
        parameters[key] = value
    return parameters


def _parse_host(text: str, host: str) -> str:
    if not host:
        return "localhost"  # as libnbd
    if not host.startswith("["):
        if re.search(r"[^A-Za-z0-9_.-]", host):
            raise UriError(text, f'expected a host name or an IP address, got "{host}"')
        _check_host(text, host)
        return host.lower()
    # Imported here: the gateway has to be listening in no time, and seldom on IPv6.
    from ipaddress import IPv6Address

    try:
        return str(IPv6Address(host[1:-1]))
    except ValueError:
        raise UriError(text, f'expected an IPv6 address in [ ], got "{host[1:-1]}"') from None


def _check_host(text: str, host: str) -> None:
    """Refuse what cannot be looked up as a name, nor be that of a certificate."""
    try:
        # Not always: the codec takes longer to load than all of this.
        plain = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise UriError(_brief(text), "expected a host name that DNS can have") from None
    plain = plain.removesuffix(".")
    if "\0" in plain or len(plain) > MAX_HOST_CHARS:
        problem = f"a host name has at most {MAX_HOST_CHARS} characters, and no NUL"
        raise UriError(_brief(text), problem)
    if not all(0 < len(label) <= MAX_LABEL_CHARS for label in plain.split(".")):
        problem = f"between the dots of a host name are 1 to {MAX_LABEL_CHARS} characters"
        raise UriError(_brief(text), problem)


def _parse_port(text: str, port: str | None, transport: Transport) -> int | None:
    if transport is Transport.UNIX:
        return None
    maximum = 0xFFFF_FFFF if transport is Transport.VSOCK else 0xFFFF
    return _parse_number(text, port or "", "port", DEFAULT_PORT, maximum)


def _parse_number(text: str, number: str, what: str, default: int, maximum: int) -> int:
    if number == "":
        return default
    # No number of ten digits or fewer is dear to convert; a longer one is too large anyway.
    if not re.fullmatch("[0-9]{1,10}", number) or int(number) > maximum:
        raise UriError(text, f'expected a {what} from 0 to {maximum}, got "{number}"')
    return int(number)


def _parse_socket(text: str, path: str | None, scheme: str) -> str:
    if not path:
        raise UriError(text, f'expected the socket\'s path, as in "{scheme}:///?socket=PATH"')
    check_socket_path(text, path)
    if "\0" in path[1:] or path == "\0":
        raise UriError(text, "the path of a Unix socket cannot contain NUL")
    return path


def _decode(text: str, part: str, what: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", part):
        raise UriError(text, '"%" is followed by two hexadecimal digits; "%" itself is "%25"')
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise UriError(text, f"the {what} is not UTF-8") from None

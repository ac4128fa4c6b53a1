"""Values of keys: paths, names, URIs that are nobody's, durations."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import Field, PlainValidator, WithJsonSchema

from gateway.config.base import shown, text, written_as
from gateway.uri import NbdUri, UriError, check_name, check_socket_path, size_of


def without_user(uri: NbdUri, why: str) -> NbdUri:
    """Give a URI that may have no user name. Raises `UriError`."""
    if uri.username is not None:
        raise UriError(str(uri), f'{why}; remove "{quote(uri.username, safe="")}@"')
    return uri


def _file(value: object) -> Path:
    path = text(value)
    if not path or "\0" in path:
        raise ValueError(f"expected a path, got {shown(value)}")
    return Path(path)


def _socket(value: object) -> Path:
    return Path(check_socket_path(text(value), str(_file(value))))


def _name(value: object) -> str:
    return check_name(text(value), text(value))


def _socket_mode(value: object) -> int:
    # TOML has octal integers (0o660), but 660 would be an integer as well, and a decimal one.
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError(f'expected octal digits such as "0660", got {shown(value)}')
    return int(value, 8)


def _descriptor(value: object) -> str:
    if not re.fullmatch(r"[!-9;-~]{1,255}", text(value)):
        raise ValueError(
            "expected the FileDescriptorName= of a socket unit, up to 255 characters of ASCII without spaces"
            f' and ":", got {shown(value)}'
        )
    return text(value)


File = Annotated[Path, *written_as(_file)]
Socket = Annotated[Path, *written_as(_socket)]
"""Where a Unix socket is."""
SocketMode = Annotated[int, *written_as(_socket_mode)]
Descriptor = Annotated[str, *written_as(_descriptor)]
"""What systemd calls a socket that it hands over."""
FilePattern = Annotated[str, *written_as(text)]
Name = Annotated[str, *written_as(_name)]
Size = Annotated[
    int,
    PlainValidator(size_of),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}),
]
"""In bytes: `4096`, `"64K"`, `"1G"`."""

# A day is longer than anyone means to wait, and shorter than any overflow below.
Seconds = Annotated[float, Field(gt=0, le=86_400)]
WaitSeconds = Annotated[float, Field(ge=0, le=86_400)]
"""The same where 0 means something of its own."""
# tcp(7): TCP_KEEPIDLE takes whole seconds up to MAX_TCP_KEEPIDLE, 32767.
KeepaliveSeconds = Annotated[int, Field(ge=0, le=32_767)]
UserTimeoutSeconds = Annotated[int, Field(ge=0, le=86_400)]

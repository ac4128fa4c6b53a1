"""nbd-gateway init: a configuration to begin with."""

import stat
from pathlib import Path

from gateway.cli import complain


def init(path: Path = Path("gateway.toml"), /, *, force: bool = False) -> int:
    """Write a gateway.toml that explains every key and passes "nbd-gateway check" as it is.

    :param path: The file to write. Default: gateway.toml.
    :param force: Overwrite the file if there is one.
    """
    from gateway.config.template import TEMPLATE
    from gateway.there import status_of
    from gateway.whole import write_whole

    text = TEMPLATE.encode()
    try:
        there = status_of(path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            complain(f"{path} is a directory; name a file in it, such as {path / 'gateway.toml'}")
            return 1
        # A link still leads to the same place afterwards. What is no file (/dev/stdout) has no place beside it
        # for a new one.
        file = path.resolve() if force else path
        if force and there is not None and not stat.S_ISREG(there.st_mode):
            file.write_bytes(text)
        else:
            write_whole({file: text}, replacing=[file] if force else [])
    except FileExistsError:
        complain(f"{path} is there already; --force overwrites it")
        return 1
    except OSError as error:
        complain(f"{path} cannot be written: {error.strerror}")
        return 1
    print(f"{path} is written; next: nbd-gateway check {path}")
    return 0

"""nbd-gateway init: a configuration to begin with."""

from pathlib import Path

from gateway.cli import complain


def init(path: Path = Path("gateway.toml"), /, *, force: bool = False) -> int:
    """Write a gateway.toml that explains every key and passes "nbd-gateway check" as it is.

    :param path: The file to write. Default: gateway.toml.
    :param force: Overwrite the file if there is one.
    """
    from gateway.config.template import TEMPLATE

    if path.is_dir():
        complain(f"{path} is a directory; name a file in it, such as {path / 'gateway.toml'}")
        return 1
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        complain(f"{path} is there already; --force overwrites it")
        return 1
    except OSError as error:
        complain(f"{path} cannot be written: {error.strerror}")
        return 1
    print(f"{path} is written; next: nbd-gateway check {path}")
    return 0

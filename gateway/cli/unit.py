"""nbd-gateway unit: units of systemd for a configuration."""

import sys
from pathlib import Path


def unit(
    path: Path = Path("gateway.toml"),
    /,
    *,
    sockets: bool = False,
    name: str = "nbd-gateway",
    user: str | None = None,
    systemd: int | None = None,
) -> int:
    """Print a service unit of systemd for this installation and a configuration, or the socket unit beside it.

    For example:

      nbd-gateway unit /etc/nbd-gateway.toml > /etc/systemd/system/nbd-gateway.service
      nbd-gateway unit /etc/nbd-gateway.toml --sockets > /etc/systemd/system/nbd-gateway.socket
      systemctl daemon-reload && systemctl enable --now nbd-gateway.service

    The service may do what the configuration needs, and little else; so print it anew after a change of the
    disks, sockets and addresses there. With the socket unit, systemd listens: no client is refused while the
    gateway is started anew.

    :param path: The configuration. Default: gateway.toml.
    :param sockets: Print the socket unit.
    :param name: What both units are called. Default: nbd-gateway.
    :param user: Who runs it. Default: the configuration's user, else one that systemd makes up, for whom keys
        and disks have to be readable.
    :param systemd: The version that they are for, such as 252. Default: this machine's.
    """
    from gateway.cli import complain
    from gateway.cli.vocabulary import vocabulary
    from gateway.config import ConfigError, load
    from gateway.inspect.unit import Installation, NoUnit, service_unit, socket_unit

    here = Installation(
        _program(), path.absolute(), name, user, _version() if systemd is None else systemd
    )
    try:
        here.refuse_what_no_unit_takes()
        config = load(path, vocabulary())
    except NoUnit as error:
        complain(str(error))
        return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        print((socket_unit if sockets else service_unit)(config, here), end="")
    except NoUnit as error:
        complain(f"{path}: {error}")
        return 1
    return 0


def _program() -> tuple[str, ...]:
    """Give the command by which this installation is started."""
    script = Path(sys.executable).with_name("nbd-gateway")
    return (str(script),) if script.exists() else (sys.executable, "-m", "gateway")


def _version() -> int:
    """Give the version of this machine's systemd; 0 if it has none."""
    import re
    import subprocess

    try:
        said = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"systemd (\d+)", said)
    return 0 if found is None else int(found[1])

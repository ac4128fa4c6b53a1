import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gateway
import gateway.app
from gateway.app.options import RunOptions
from gateway.app.source import ConfigSource
from gateway.cli import VERBS, main
from gateway.config import Config, load
from gateway.config.template import TEMPLATE
from gateway.embedded import PERSONALITIES
from gateway.hub.pump import is_compiled
from gateway.quirks import catalogue
from gateway.upstream.configured import StartError
from gateway.uri import NbdUri, Transport
from tests.tools.patience import HANG_SECONDS

pytestmark = pytest.mark.real

Capture = pytest.CaptureFixture[str]

GOOD = """
[[listen]]
uri = "nbd+unix:///?socket=/s"
socket-mode = "0660"
[upstream.a]
uri = "nbd://h"
[upstream.b]
uri = "nbd://h/only"
[upstream.c]
command = ["qemu-nbd", "x"]
[upstream.spare]
uri = "memory:1M"
[[export]]
name = "one"
upstream = "a"
[[export]]
name = "vm-*"
upstream = "a"
upstream-name = ""
[[export]]
name = ""
upstream = "b"
[[export]]
name = "*"
upstream = "c"
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: Capture) -> None:
    assert main([flag]) == 0
    pump = "with" if is_compiled() else "without"
    python = ".".join(map(str, sys.version_info[:3]))
    built = f"not a release, {pump} the compiled pump, Python {python}"
    assert capsys.readouterr().out == f"{gateway.__version__} ({built})\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        [line] = [line for line in out.splitlines() if line.startswith(f"│ {verb} ")]
        assert len(line.split()) > 6, "without a description"
    assert out.splitlines()[-1].startswith("Begin with: nbd-gateway demo")


@pytest.mark.parametrize("verb", [*VERBS, "pki init"])
def test_help_of_a_verb(verb: str, capsys: Capture) -> None:
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: nbd-gateway {verb}" in out
    assert "Begin with" not in out
    assert main(["help", *verb.split()]) == 0
    assert capsys.readouterr().out == out
    # Every argument and option is explained beside its name, not on a line of nothing else.
    assert not [
        line for line in out.splitlines() if line.startswith("│ --") and len(line.split()) < 4
    ]


def test_help_of_serve_has_examples_that_fit(capsys: Capture) -> None:
    main(["serve", "--help"])
    assert "\n  nbd-gateway serve 'nbd+unix:///?socket=/run/q.sock' --listen nbd://0.0.0.0\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sreve"], 'Did you mean "serve"?'),
        (["help", "sreve"], 'Did you mean "serve"?'),
        (["quirks", "--json", "--markdown"], "expected --json or --markdown, got both"),
        (["serve", "--lisen", "x"], "Did you mean --listen?"),
        (["serve", "a", "b"], 'unexpected argument "b"; see nbd-gateway serve --help'),
        (["init", "a", "b", "c"], 'unexpected arguments "b", "c"; see nbd-gateway init --help'),
        (["serve", "--listen"], "--listen requires an argument"),
        (["serve", "nbd://h", "--max-connections", "many"], "many"),
        (["serve", "nbd://h", "--log-level", "trace"], "trace"),
        (["serve"], "serve needs to know which server"),
        (["serve", "x", "--config", "y"], "takes either UPSTREAM (x) or --config (y)"),
        (["serve", "nbd://h", "--tls", "allow"], "TLS needs --tls-certificates"),
        (["serve", "\udcff"], "expected an NBD URI"),
        (["serve", "memory:1M", "--listen", "\udcff"], "expected an NBD URI"),
        (
            ["serve", "memory:1M", "--listen", "nbd+unix:///?socket=s", "--socket-mode", "\udcff"],
            "0660",
        ),
        (["pause", "a\udcff"], r'"a\udcff": an export name is UTF-8'),
        (["pause", "a\udcff", "--", "true"], "UTF-8"),
        (["resume", "\udcff"], "UTF-8"),
        (["switch", "\udcff", "nbd://h"], "UTF-8"),
        (["losses", "\udcff"], "UTF-8"),
        (["explain", "--export", "\udcff"], "UTF-8"),
        (["serve", "legacy:foo"], 'UPSTREAM: there is no server "foo" to imitate; known are'),
        (["check", "a", "b"], "b"),
        (["init", "--forse"], "Did you mean --force?"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], expected: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("nbd-gateway: ")
    assert expected in err


def test_check(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.toml").write_text(GOOD)
    assert main(["check", "g.toml", "--offline"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "g.toml: ok",
        "  listens on nbd+unix:///?socket=/s, at most 1000 clients, mode 0660",
        '  "one": the same name of a (nbd://h:10809)',
        '  names like "vm-*": the default export of a (nbd://h:10809)',
        '  the default export: "only" of b (nbd://h:10809/only)',
        "  every name: the same name of c (qemu-nbd x)",
        "  upstream spare is not used: no [[export]] leads there",
    ]


def test_check_says_what_is_unusual_of_a_listener(tmp_path: Path, capsys: Capture) -> None:
    listeners = [
        'style = "oldstyle"',
        'style = "oldstyle"\nexport = "disk0"',
        'handshake-flags = ["FIXED_NEWSTYLE"]',
        "handshake-flags = []",
        'proxy-protocol = ["10.0.0.0/8", "::1"]',
    ]
    text = "".join(f'[[listen]]\nuri = "nbd://h:{i}"\n{more}\n' for i, more in enumerate(listeners))
    (tmp_path / "g.toml").write_text(f'{text}[upstream.a]\nuri = "nbd://i"\n')
    assert main(["check", "g.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[1:6] == [
        "  listens on nbd://h:0, at most 1000 clients, oldstyle: the default export",
        '  listens on nbd://h:1, at most 1000 clients, oldstyle: "disk0"',
        "  listens on nbd://h:2, at most 1000 clients, offers FIXED_NEWSTYLE",
        "  listens on nbd://h:3, at most 1000 clients, offers no handshake flags",
        "  listens on nbd://h:4, at most 1000 clients, PROXY headers from 10.0.0.0/8 and ::1/128",
    ]


def test_check_says_who_may_reach_what(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.toml").write_text("""
[[listen]]
uri = "nbd+unix:///?socket=/s"
[upstream.a]
uri = "nbd://h"
[[rule]]
name = "backup"
who = { unix-user = 0, network = "10.0.0.0/8" }
exports = ["vm-1"]
policies = [{ use = "readonly" }, { use = "limit", connections = 1, mode = "observe" }]
[[rule]]
who = { tls = false }
deny = true
mode = "observe"
[[rule]]
exports = ["vm-1"]
[[export]]
name = "secret"
upstream = "a"
[[export]]
name = "vm-1"
upstream = "a"
policies = [{ use = "trim", how = "none" }]
""")
    assert main(["check", "g.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        '  "secret": the same name of a (nbd://h:10809)',
        '  "vm-1": the same name of a (nbd://h:10809), with trim',
        '  rule 1 "backup": by network, unix-user: vm-1: with readonly, limit (observed)',
        "  rule 2: by tls: every export: denied, only observed",
        "  rule 3: everybody: vm-1: as it is",
        '  "secret" is for nobody: no rule lets anybody have it',
    ]


def test_what_check_prints_no_terminal_obeys(tmp_path: Path, capsys: Capture) -> None:
    """Who wrote the file need not be who looks whether it is good."""
    bad = r"\u001b[2J\u0007\n\u202e"
    (tmp_path / "g.toml").write_text(
        f'[[listen]]\nuri = "nbd://h"\nstyle = "oldstyle"\nexport = "{bad}"\n'
        f'[upstream."{bad}"]\nuri = "nbd://i"\n[upstream."x{bad}"]\nuri = "nbd://i"\n'
        f'[[export]]\nname = "{bad}"\nupstream = "{bad}"\nupstream-name = "{bad}"\n'
        f'[[rule]]\nname = "{bad}"\nexports = ["{bad}"]\n'
    )
    assert main(["check", "g.toml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    escaped = r"\x1b[2J\x07\n\u202e"
    assert lines[2] == rf'  "{escaped}": "{escaped}" of {escaped} (nbd://i:10809)'
    assert [line for line in lines if not line.isprintable()] == []


def test_check_complains(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "gateway.toml").write_text("[[listen]]\nurl = 1\n")
    assert main(["check"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "gateway.toml:1: listen.uri: has to be given",
        'gateway.toml:1: upstream: at least one is needed: [upstream.NAME] with uri = "nbd://HOST"',
        'gateway.toml:2: listen.url: unknown key, did you mean "uri"?',
    ]


@pytest.mark.parametrize("verb", [["check"], ["serve", "--config"], ["explain"]])
def test_names_that_do_not_exist(verb: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "g.toml").write_text(
        '[[listen]]\nuri = "nbd://h"\n'
        '[upstream.a]\nuri = "legacy:foo"\nquirks = [\n  "qemu-multi-conn-bits", "nope"]\n'
        '[[export]]\nname = ""\nupstream = "a"\n'
    )
    assert main([*verb, "g.toml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.removeprefix("nbd-gateway: ") for line in err.splitlines()] == [
        'g.toml:4: upstream.a.uri: there is no server "foo" to imitate; '
        f"known are {', '.join(sorted(PERSONALITIES))}",
        'g.toml:5: upstream.a.quirks: there is no quirk "qemu-multi-conn-bits", '
        'did you mean "qemu-multi-conn-bit"?',
        'g.toml:5: upstream.a.quirks: there is no quirk "nope"; '
        f"known are {', '.join(sorted(catalogue()))}",
    ]


@pytest.mark.parametrize("verb", [["check"], ["serve", "--config"]])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("missing.toml", "missing.toml: cannot be read: No such file or directory"),
        (".", ".: cannot be read: Is a directory"),
        ("latin1.toml", "latin1.toml:1: not UTF-8, as TOML has to be"),
        ("missing/\udcff", "cannot be read: No such file or directory"),
    ],
)
def test_files_that_cannot_be_read(
    verb: list[str], path: str, expected: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "latin1.toml").write_bytes(b"# caf\xe9")
    assert main([*verb, path]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err


def test_init_then_check(tmp_path: Path, capsys: Capture) -> None:
    assert main(["init"]) == 0
    assert (tmp_path / "gateway.toml").read_text() == TEMPLATE
    assert main(["check"]) == 0
    assert "gateway.toml: ok" in capsys.readouterr().out


def test_init_overwrites_only_when_told(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "g.toml"
    path.write_text("mine")
    assert main(["init", "g.toml"]) == 1
    assert path.read_text() == "mine"
    assert (
        capsys.readouterr().err == "nbd-gateway: g.toml is there already; --force overwrites it\n"
    )
    assert main(["init", "g.toml", "--force"]) == 0
    assert load(path).exports


def test_init_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    there = tmp_path / "etc" / "g.toml"
    there.write_text("mine")
    there.chmod(0o640)
    (tmp_path / "g.toml").symlink_to("etc/g.toml")
    assert main(["init", "g.toml"]) == 1
    assert there.read_text() == "mine"
    assert main(["init", "g.toml", "--force"]) == 0
    assert (tmp_path / "g.toml").is_symlink()
    assert there.read_text() == TEMPLATE
    assert there.stat().st_mode & 0o777 == 0o640


def test_init_into_what_is_no_file(tmp_path: Path) -> None:
    """As `init /dev/stdout --force`."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["init", "pipe"]) == 1
    assert main(["init", "pipe", "--force"]) == 0
    assert os.read(reader, 1 << 20).decode() == TEMPLATE
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_init_of_too_long_a_name(force: list[str], capsys: Capture) -> None:
    assert main(["init", "x" * 300, *force]) == 1
    assert capsys.readouterr().err.endswith("cannot be written: File name too long\n")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_init_of_a_directory(force: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "d").mkdir()
    assert main(["init", "d", *force]) == 1
    assert capsys.readouterr().err == (
        "nbd-gateway: d is a directory; name a file in it, such as d/gateway.toml\n"
    )


@pytest.mark.parametrize("path", ["missing/g.toml", "x\udcff/y"])
def test_init_where_nothing_can_be_written(path: str, capsys: Capture) -> None:
    assert main(["init", path, "--force"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_schema(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert "listen" in json.loads(capsys.readouterr().out)["properties"]


# ---- serve, with the application played by these tests ----


@dataclass
class FakeApp:
    """Stands in for gateway.app: notes what it is asked to serve."""

    status: int = 0
    error: str = ""
    served: tuple[Config, RunOptions] | None = None
    source: ConfigSource | None = None
    directory_mode: int | None = None

    async def serve(
        self,
        config: Config,
        options: RunOptions,
        *,
        source: ConfigSource | None,
        listening: Callable[[tuple[NbdUri, ...]], None],
    ) -> int:
        self.served, self.source = (config, options), source
        path = config.listen[0].uri.socket_path
        if path is not None:
            self.directory_mode = Path(path).parent.stat().st_mode & 0o777
            Path(path).touch()
        if self.error:
            raise StartError(self.error)
        return self.status


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FakeApp:
    fake = FakeApp()
    module: Any = ModuleType("gateway.app.run")
    module.serve = fake.serve
    monkeypatch.setitem(sys.modules, "gateway.app.run", module)
    # Where it was imported before, its package has it, too.
    monkeypatch.setattr(gateway.app, "run", module, raising=False)
    return fake


def test_serve(app: FakeApp) -> None:
    assert main(["serve", "memory:1M", "-l", "nbd://a", "--listen", "nbd://b"]) == 0
    assert app.served is not None
    config, options = app.served
    assert [listen.uri.host for listen in config.listen] == ["a", "b"]
    assert options == RunOptions(run=None, pidfile=None, exit_after_last_client=False)


def test_a_configuration_from_standard_input_cannot_be_read_again(
    app: FakeApp, tmp_path: Path
) -> None:
    file = tmp_path / "g.toml"
    file.write_text('listen = [{ uri = "nbd://a" }]\nupstream.d.uri = "memory:1M"\n')
    kept = os.dup(0)
    with file.open() as text:
        os.dup2(text.fileno(), 0)
    try:
        assert main(["serve", "--config", "-"]) == 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert app.served is not None
    assert app.served[1].from_standard_input
    assert main(["serve", "--config", str(file)]) == 0
    assert not app.served[1].from_standard_input


def test_serve_passes_options_and_status_on(app: FakeApp) -> None:
    app.status = 7
    arguments = [
        "serve",
        "memory:1M",
        "--run",
        "x $uri",
        "--pidfile",
        "p",
        "--exit-after-last-client",
    ]
    assert main(arguments) == 7
    assert app.served is not None
    assert app.served[1] == RunOptions("x $uri", Path("p"), exit_after_last_client=True)


def test_serve_a_file(app: FakeApp, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(GOOD.replace("/s", f"{tmp_path}/s"))
    assert main(["serve", "--config", "g.toml", "--run", "x"]) == 0
    assert app.served is not None
    assert app.served[0] == load(tmp_path / "g.toml")
    assert app.source is not None
    assert app.source.load(lambda _path: None) == app.served[0]


def test_what_stands_beside_the_file_is_said_again_by_each_reload(
    app: FakeApp, tmp_path: Path
) -> None:
    (tmp_path / "g.toml").write_text(GOOD.replace("/s", f"{tmp_path}/s"))
    assert (
        main(["serve", "--config", "g.toml", "--log-level", "debug", "--drain-seconds", "1"]) == 0
    )
    assert app.source is not None
    (tmp_path / "g.toml").write_text(GOOD.replace("/s", f"{tmp_path}/t"))
    config = app.source.load(lambda _path: None)
    assert (config.log.level, config.drain_seconds) == ("debug", 1)
    assert config.listen[0].uri.socket_path == f"{tmp_path}/t"


def test_what_has_no_file_has_no_source(app: FakeApp) -> None:
    main(["serve", "memory:1M"])
    assert app.served is not None
    assert app.source is None


def test_run_has_a_private_socket(app: FakeApp) -> None:
    assert main(["serve", "memory:1M", "--run", "x"]) == 0
    assert app.served is not None
    [listen] = app.served[0].listen
    assert listen.uri.transport is Transport.UNIX
    assert listen.uri.socket_path is not None
    assert app.directory_mode == 0o700
    assert not Path(listen.uri.socket_path).parent.exists()


def test_run_on_an_address_of_ones_own(app: FakeApp) -> None:
    assert main(["serve", "memory:1M", "--run", "x", "--listen", "nbd://h"]) == 0
    assert app.served is not None
    assert [listen.uri.host for listen in app.served[0].listen] == ["h"]


def test_what_cannot_be_started(app: FakeApp, capsys: Capture) -> None:
    app.error = "nbd://h:10809: address in use"
    assert main(["serve", "memory:1M"]) == 1
    assert capsys.readouterr().err == "nbd-gateway: nbd://h:10809: address in use\n"


# ---- in a process of its own ----


def test_serve_loads_nothing_that_only_help_needs() -> None:
    """rich alone would cost a fifth of the time in which the gateway has to be listening."""
    program = (
        "import sys, gateway.cli.serve as serve;"
        "serve._run = lambda *_: print(*sorted(sys.modules)) or 0;"
        "import gateway.cli; gateway.cli.main(['serve', 'memory:1M'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    assert "gateway.config.models" in loaded
    assert not {"rich", "structlog", "trio", "gateway.config.template"} & {*loaded}


def test_what_a_gateway_has_no_part_of_is_not_loaded() -> None:
    """Neither TLS nor a fleet is in its configuration; and what is for reading by people is for other verbs."""
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules)));"
        "from gateway import cli; cli.main(['serve', 'memory:1M', '--run', 'exit'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {*run.stdout.split()}
    assert {"gateway.sessions.service", "structlog"} <= loaded
    assert not {"cryptography", "httpx", "hypercorn", "rich"} & loaded
    assert not {each for each in loaded if each.startswith(("gateway.fleet.", "gateway.web."))}
    assert "gateway.tls.credentials" not in loaded


PRINTING = [
    ["schema"],
    ["init", "g.toml"],
    ["check", "good.toml"],
    ["explain", "good.toml"],
    ["demo"],
    ["--help"],
    ["serve", "--help"],
    ["--version"],
]


def printing(arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    Path("good.toml").write_text(
        '[[listen]]\nuri = "nbd://127.0.0.1"\n[upstream.a]\nuri = "memory:1M"\n'
    )
    shell = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh"]
    return subprocess.run(
        [*shell, sys.executable, "-m", "gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_an_output_that_is_full(arguments: list[str]) -> None:
    done = printing(arguments, ">/dev/full")
    assert done.stderr == (
        "nbd-gateway: standard output cannot be written: No space left on device\n"
    )
    assert done.returncode == 1


def test_an_output_that_is_closed() -> None:
    done = printing(["schema"], ">&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_seen_enough() -> None:
    program = "import sys; from gateway.cli import main; sys.exit(main(['schema']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_check_looks_at_certificates(tmp_path: Path, capsys: Capture) -> None:
    config = '[[listen]]\nuri = "nbds://h"\ncertificates = "pki"\n[upstream.a]\nuri = "memory:1M"\n'
    (tmp_path / "g.toml").write_text(config)
    assert main(["check", "g.toml"]) == 1
    assert "g.toml:3: listen.certificates: listener nbds://h:10809: pki: is no directory" in (
        capsys.readouterr().err
    )
    assert main(["pki", "init", "pki"]) == 0
    capsys.readouterr()
    assert main(["check", "g.toml"]) == 0
    assert "listens on nbds://h:10809, at most 1000 clients, TLS\n" in capsys.readouterr().out

"""A client of a gateway that asks for something, and then has the gateway say what it is doing. `serve --run`
runs it. Its arguments are the control socket and the words of each verb. It prints what each has said, as one
JSON array.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

from tests.cli.programs import GATEWAY
from tests.interop.rawclient import RawClient
from tests.tools.patience import HANG_SECONDS

BLOCK = 4096
READS, WRITES = 3, 2


def main(control: str, *verbs: str) -> None:
    """Each verb is one argument, with blanks between its words; SESSION stands for the id of ours."""
    said: list[object] = []
    with RawClient(os.environ["uri"]) as client:  # noqa: SIM112 # --run has it so
        for number in range(READS):
            client.socket.sendall(client.read_request(number, 0, BLOCK))
            client.reply(BLOCK)
        for number in range(WRITES):
            request = struct.pack("!IHHQQI", 0x25609513, 0, 1, number, 0, BLOCK)
            client.socket.sendall(request + bytes(BLOCK))
            client.reply(0)
        ours = ""
        for verb in verbs:
            words = verb.replace("SESSION", ours).split()
            done = subprocess.run(
                [*GATEWAY, *words, *([] if words[0] == "probe" else ["--socket", control])],
                capture_output=True,
                text=True,
                timeout=HANG_SECONDS,
                check=False,
            )
            said.append((done.returncode, done.stdout, done.stderr))
            if words == ["sessions", "--json"]:
                ours = json.loads(done.stdout)["sessions"][0]["session"]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

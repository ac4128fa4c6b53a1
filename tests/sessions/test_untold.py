"""What is told of losses can be told, however many disks there are, and whatever clients call them."""

from __future__ import annotations

import json
from dataclasses import asdict

import trio

from gateway.admin.control import MAX_ANSWER_BYTES
from gateway.app.switching import NOTHING_LOST, verbs_of
from gateway.embedded import Server
from gateway.embedded.disk import MemoryDisk
from gateway.links.disk import MOST_KEPT
from gateway.sessions.pausing import Pauses
from gateway.sessions.untold import MOST_DISKS, Called
from tests.sessions.gateways import gateway_before

RANGES = [(start << 62, (start << 62) + 512) for start in range(40)]


async def test_an_answer_about_very_many_disks_is_one_that_is_taken() -> None:
    async with gateway_before(Server({"": MemoryDisk(4096)})) as gateway:
        service = gateway.service
        [server] = service.led_to
        for number in range(MOST_KEPT):
            disk = service.disks.at(server, "é" * 2000 + str(number))
            disk.losses.tell_the_next("the connection to the server was lost", RANGES)
            disk.is_left()
        pauses = Pauses(service, gateway.nursery)
        losses = verbs_of(service, pauses, lambda: None)["losses"]
        answer = await losses({})
        assert len(answer.done) == MOST_DISKS + 1
        assert answer.done[-1] == f"{MOST_KEPT - MOST_DISKS} disks more: nbd-gateway losses EXPORT"
        assert answer.data is not None
        assert answer.data["more"] == MOST_KEPT - MOST_DISKS
        said = {**asdict(answer), "undo": None, "then": None}
        assert len(json.dumps(said)) < MAX_ANSWER_BYTES
        assert len((await losses({"forget": True})).done) == MOST_DISKS + 1
        assert (await losses({})).done == (NOTHING_LOST,)


async def test_a_disk_has_few_of_the_names_that_its_clients_have_for_it() -> None:
    server = Server({"": MemoryDisk(4096)})
    async with gateway_before(server, export='upstream-name = ""\n') as gateway:
        service = gateway.service
        clients = [gateway.client() for _ in range(7)]
        for number, client in enumerate(clients):
            await client.go(f"vm-{number}")
        while len(service.running) < len(clients):
            await trio.lowlevel.checkpoint()
        [main] = service.led_to
        known_as = "export 'vm-0', 'vm-1', 'vm-2', 'vm-3' and 3 more"
        names = await Called.of_all(service)
        assert names.of((main.disks, "")) == f"'' of upstream main, {known_as}"
        for client in clients:
            await client.stream.aclose()

"""A session whose link has died: what was under way on it becomes jobs, which ask somebody else.

The client does not know that another link serves the rest. So each reply has to be what it would have been:

- of a READ whose reply has begun, the client is given what is missing, and nothing twice. If the data of one
  chunk, or of a simple reply, is half sent, its rest comes first, before anything else is said;
- of a BLOCK_STATUS, the client is given the contexts that it has not been told of;
- the data of a WRITE was kept until its answer. If the server has had only a part of the data, the WRITE was
  not done, even if the server says so. The rest is still to come from the client; then it is a WRITE like any
  other;
- READs are begun as the client takes what was read before, for their data is held here now;
- `adopt` asks whatever else may change the disk: it may have been done, or may yet be done.

Writes stay in the in-flight table until they are answered, for claims of others wait for them there.

The link may have died of any of these, so each is asked with that suspicion (`Ask.losses`). If the server was
going (`going`), nobody is to blame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.jobs.locks import ASK, Entry
from gateway.jobs.steps import Answer, Job, moved
from gateway.jobs.translate import status, translate
from gateway.protocol.asks import Ask, Done, Outcome
from gateway.protocol.commands import WRITE_CLASS
from gateway.scan.partial import Partial
from gateway.scan.plan import Plan, contexts_wanted
from gateway.scan.requests import RequestScan
from gateway.scan.traffic import Traffic, nobody_minds
from gateway.wire.constants import Cmd, CmdFlag, Errno
from gateway.wire.framing import shifted

Send = Callable[[Ask, Done], None]


def carry_over(
    traffic: Traffic, requests: RequestScan, after: Plan, ask: Send, adopt: Send
) -> None:
    """Have everything that is under way asked by `ask` and `adopt`, and whatever comes later by `ask`; `after`
    is the plan for that. The rest of data that is half sent to the client is for `rest_of`.
    """
    before, partial = traffic.plan, dict(traffic.partial)
    half_sent = traffic.early.half_sent
    entries = {ours: entry for ours, entry in traffic.in_flight.items() if not entry[1] & ASK}
    data = {} if traffic.memory is None else traffic.memory.take_data()
    under_way, kept = traffic.asks.take(), traffic.asks.take_kept()
    losses = 0 if traffic.going.begun else 1
    traffic.in_flight.clear()
    traffic.partial.clear()
    traffic.to_upstream.clear()
    traffic.early.forget()
    traffic.going.forget()
    traffic.memory = traffic.trail = None  # whoever is asked remembers
    traffic.leave_late = nobody_minds  # and sees to it himself

    def first(asked: Ask, done: Done) -> None:
        (adopt if asked.command in WRITE_CLASS else ask)(asked, done)

    traffic.jobs.ask_elsewhere(first)
    for asked, done in under_way:
        first(replace(asked, losses=asked.losses + losses), done)
    for asked, done in kept:
        ask(asked, done)
    traffic.plan = after
    requests.go_by(after, data.pop(half_sent, b""), entries.pop(half_sent, None))
    for ours, entry in entries.items():
        _begin_again(traffic, before, ours, entry, partial.get(ours), data.get(ours, b""), losses)
    traffic.jobs.ask_elsewhere(ask)
    traffic.begin_postponed()


def rest_of(plan: Plan, end: int, length: int) -> Job:
    """Give the job that reads the last `length` bytes before `end`, of the disk. It is no suspect, for its
    reply had begun.
    """
    return translate(plan.upstream, Cmd.READ, 0, end - length, length)


def suspected(job: Job, losses: int) -> Job:
    """Give a job whose asks count as asked over so many links that have died."""
    outcomes: list[Outcome] = []
    try:
        while True:
            step = job.send(outcomes) if outcomes else next(job)
            if isinstance(step, list):
                step = [replace(ask, losses=losses) for ask in step]
            outcomes = yield step
    except StopIteration as end:
        answer: Answer = end.value
        return answer
    finally:
        job.close()


def _begin_again(
    traffic: Traffic,
    before: Plan,
    ours: int,
    entry: Entry,
    partial: Partial | None,
    data: bytes,
    losses: int,
) -> None:
    cookie, word, offset, length = entry
    command = Cmd(word & 0xFFFF)
    client, base = before.offer.framing, before.offer.base
    asked = offset - base
    if partial is not None and partial.failed:
        # The error has been told, or is to be told at the end.
        if client.chunked:
            traffic.to_client.append(client.end(cookie, asked))
        else:
            traffic.to_client.append(client.failure(cookie, asked, partial.error or Errno.EIO))
        return
    sent = before.fast.get(word, (0, 0, None))[1] >> 16 & ~CmdFlag.PAYLOAD_LEN
    if command is Cmd.READ:
        # Replies of the link were sent on as they came; these are held, so they have to be begun one by one.
        traffic.postponed.append(lambda: _read_again(traffic, entry, partial, sent, losses))
        return
    job: Job
    if command is Cmd.BLOCK_STATUS:
        wanted = contexts_wanted(traffic.plan)  # of an answer that is not whole nothing was told
        job = status(before.upstream, sent, offset, length, wanted, before.offer.size - asked)
    else:
        job = _again(Ask(command, offset, length, sent, data))
        if command in WRITE_CLASS:
            traffic.in_flight[ours] = entry
            job = _in_table(job, traffic, ours)
    job = moved(suspected(job, losses), base)
    traffic.jobs.start(cookie, word, asked, job, cost=len(data), begun=True)


def _again(ask: Ask) -> Job:
    [outcome] = yield [ask]
    return Answer(outcome.error, outcome.text, outcome.offset)


def _in_table(job: Job, traffic: Traffic, ours: int) -> Job:
    try:
        return (yield from job)
    finally:
        traffic.in_flight.pop(ours, None)
        traffic.locks.look_again()


def _read_again(
    traffic: Traffic, entry: Entry, partial: Partial | None, flags: int, losses: int
) -> None:
    """Read what is missing of a READ, and send it in as many chunks as that takes."""
    cookie, word, offset, length = entry
    plan = traffic.plan
    base = plan.offer.base
    covered = [] if partial is None else partial.covered
    if not covered:
        job = suspected(translate(plan.upstream, Cmd.READ, flags, offset, length), losses)
        traffic.jobs.start(cookie, word, offset - base, moved(job, base), cost=length)
        return
    client = shifted(plan.offer.framing, base)
    missing = _gaps(covered, offset, offset + length)
    if not missing:
        traffic.to_client.append(client.end(cookie, offset))
        return

    def read() -> Job:
        """In order, so that the last chunk is the last."""
        out, failed = traffic.to_client, False
        for start, end in missing:
            answer = yield from translate(plan.upstream, Cmd.READ, 0, start, end - start)
            last = end == missing[-1][1]
            if answer.error:
                if not failed:
                    failed = True
                    traffic.count_error(word, Errno.EIO)
                text = answer.text
                out.append(client.failure(cookie, offset, Errno.EIO, text, done=last))
            else:
                out.append(client.data_head(cookie, offset, start, end - start, done=last))
                out.extend(memoryview(data) for _offset, data in answer.data)
        return Answer()

    traffic.jobs.ask(suspected(read(), losses), lambda _answer: None)


def _gaps(covered: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    gaps = []
    for first, behind in covered:
        if start < first:
            gaps.append((start, first))
        start = behind
    if start < end:
        gaps.append((start, end))
    return gaps

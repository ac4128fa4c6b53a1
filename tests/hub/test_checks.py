"""What the compiled pump checks is what the scan checks: docs/performance.md has both, row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.hub import pump
from gateway.hub.pump import NOT_MINE
from tests.hub.checks import asked_in_c, asked_in_python, rows
from tests.hub.examples import EXAMPLES

pytestmark = pytest.mark.skipif(not pump.is_compiled(), reason="the pump was not built")

HOUSE = Path(pump.__file__).parents[1]


@pytest.mark.parametrize("row", EXAMPLES)
def test_a_check_is_made(row: str) -> None:
    assert EXAMPLES[row]
    for example in EXAMPLES[row]:
        example.check()


def test_the_page_has_a_row_for_each() -> None:
    assert list(rows()) == list(EXAMPLES)


@pytest.mark.parametrize("row", EXAMPLES)
def test_the_page_says_what_the_pump_does(row: str) -> None:
    _where, what = rows()[row]
    said = {each.says for each in EXAMPLES[row]}
    assert (HANDS_OVER in what) == (pump.GO_ON in said)
    assert (IS_NOT_USED in what) == (NOT_MINE in said)


HANDS_OVER, IS_NOT_USED = "hands over", "is not used"

CONDITIONS: dict[str, dict[str, str]] = {
    "step": {
        "at_work": "a pump that is at work, or was not made",
        "p->of[SESSION] == NULL": "a pump that is at work, or was not made",
        "p->client_fd < 0": "",
        "p->link_fd < 0": "",
        "!is_usual(p)": "",
    },
    "is_usual": {
        "value(p, at_flowing) == Py_True": "a socket that takes nothing, or is not read",
        "at_over": "the session has ended",
        "at_stopping": "the session comes to its end",
        "at_holds": "a pause",
        "at_more_requests": "what the last turn has left",
        "at_more_replies": "what the last turn has left",
        "at_link_mute": "the link has gone",
        "at_link_closed": "the link has gone",
        "at_client_gone": "the client has gone",
        "!holds(value_in(p, requests, at_out))": "requests of our own",
        "!holds(value_in(p, replies, at_out))": "replies of our own",
        "is_usual_scan(p)": "",
    },
    "is_usual_scan": {
        "at_stopped": "a pause",
        "at_held": "a gate has held a request",
        "at_stale": "writes of a client that went while they waited",
        "at_postponed": "commands are postponed",
        "at_to_upstream": "requests of our own",
        "at_requests_wait": "requests of our own",
        "at_to_client": "replies of our own",
        "at_answers": "replies of our own",
        "at_replies_wait": "replies of our own",
        "at_disconnected": "DISC has come",
        "at_drop_left": "a payload that is dropped",
        "at_gather_left": "a payload that a job takes",
        "at_asked_data": "data of a job's READ",
        "at_early_held": "an early reply is held",
        "at_begun": "the server goes",
        "at_refused": "the server goes",
        "memory != Py_None": "",
        "Py_TYPE(memory) != (PyTypeObject *)p->memory_type": "a memory of another class",
        "!named_holds(p->kin, s_claims)": "claims",
    },
    "scan": {
        "at_work": "a pump that is at work, or was not made",
        "p->of[lane] == NULL": "a pump that is at work, or was not made",
        "!is_usual_scan(p)": "",
    },
    "scan_lane": {
        "segment == Py_None": "",
    },
    "room": {
        "memory != Py_None": "",
        "number(value_in(p, memory, at_kept_bytes)) >= MAX_KEPT_BYTES": "bytes kept for another link",
        "held >= MAX_JOB_BYTES": "bytes of jobs, and of replies not taken",
        "busy >= most": "commands under way",
    },
    "prepare": {
        "value_in(p, lane, at_ended) != Py_False": "a side that has closed",
        "!PyBytes_CheckExact(left_over)": "a buffer that is full, or of another kind",
        "f->end < f->capacity": "a buffer that is full, or of another kind",
        "!(pinned && f->capacity - f->end < MIN_FREE_BYTES)": "a buffer that is full, or of another kind",
    },
    "usual_requests": {
        "(memory != NULL && has_news(p, memory))": "news of the disk: a link came up, a FLUSH failed",
        "value(p, at_gate) != Py_None": "rates: a gate looks at each request",
        "holds(value(p, at_lost))": "what is lost",
        "named_holds(p->fences, s_standing)": "fences",
    },
    "do_requests": {
        # After the scan: Python looks what is to be waited for.
        "!said": "",
        "!after": "",
        "unscanned >= REQUEST_BYTES": "",
    },
    "add_words": {
        "!is_ranged": "",  # the plan has none
        "p->words == MAX_WORDS": "more words than the pump keeps",
    },
    "scan_requests": {
        "end - pos >= header": "a message that is cut",
        "ours >= newest": "commands under way",
        "!has_room(f)": "pieces of one send",
        "get32(at) != client_magic": "magic of a request",
        "word == NULL": "command",
        "!length": "a length of nothing",
        "touches(p, word, offset, length)": "ranges that are protected",
        "length > word->longest": "longest length",
        "(length > UINT32_MAX && p->link != EXTENDED)": "a length of more than 32 bits",
        "offset > p->size": "an offset behind the end",
        "length > p->size - offset": "an end behind the end",
        "(there | length) & p->mask": "alignment",
        "over": "the turn's end",
    },
    "do_replies": {
        "(word & 0xFFFF) == BLOCK_STATUS": "the oldest is a BLOCK_STATUS",
    },
    "usual_replies": {
        "holds(value(p, at_unsent))": "a WRITE that the link has not taken",
        "holds(value(p, at_partial))": "a reply of several chunks",
        "(p->at_gathering && holds(value_at(p->of[REPLIES], p->at_gathering)))": "a chunk that is gathered",
    },
    "resume": {"!ends_shortly(closing)": "an end that says what is missing"},
    "scan_simple": {
        "said > 0": "",
        "f->end - pos >= SIMPLE_REPLY_BYTES": "a message that is cut",
        "get32(at) != SIMPLE_REPLY_MAGIC": "magic of a reply",
        "get32(at + WORD_AT)": "error",
        "!has_room(f)": "pieces of one send",
        "said <= 0": "cookie",
        "command.word & ASK": "a command of our own",
        "(command.ours >= early && asked != READ)": "an early reply",
        "asked == BLOCK_STATUS": "an answer to BLOCK_STATUS",
        "over": "the turn's end",
    },
    "scan_chunks": {
        "said > 0": "",
        "f->end - pos >= least": "a message that is cut",
        "word == (DONE_BIT | OFFSET_DATA)": "a chunk's type",
        "its_magic == magic": "magic of a reply",
        "!word": "error",
        "its_magic == SIMPLE_REPLY_MAGIC": "magic of a reply",
        "simple_stays": "an end that the client is told in other words",
        "word == DONE_BIT": "a chunk's flags",
        "chunk_stays": "an end that the client is told in other words",
        "here >= head": "a message that is cut",
        "!get32(at + 16)": "a NONE chunk with a payload",
        "!(is_data || is_short)": "magic of a reply",
        "(is_data && here < head + OFFSET_BYTES)": "a data chunk without its offset",
        "!has_room(f)": "pieces of one send",
        "said <= 0": "cookie",
        "asked != READ": "data for what was no READ",
        "command.word & ASK": "a command of our own",
        "offset != command.offset": "a chunk's offset",
        "!echoed": "the offset that a chunk repeats",
        "size < OFFSET_BYTES": "a chunk's length",
        "size - OFFSET_BYTES != command.length": "a chunk's length",
        "asked == READ": "a READ without data",
        "asked == BLOCK_STATUS": "an answer to BLOCK_STATUS",
        "command.ours >= early": "an early reply",
        "over": "the turn's end",
    },
}
"""What each function of the pump asks before it goes on by itself, and the row that has it. Without a row is
what only says that there is something to ask about."""


ASKED: dict[str, dict[str, str]] = {
    "RequestScan": {
        "traffic.debt.lost": "what is lost",
        "self.payload_left": "a message that is cut",
        "pos > end": "a message that is cut",
        "pos <= last": "a message that is cut",
        "self.waiting": "requests of our own",
        "self._drop_left": "a payload that is dropped",
        "self._gather_left": "a payload that a job takes",
        "not self.between_messages": "a payload that a job takes",
        "mask": "",
        "traffic.locks.busy": "claims",
        "traffic.fences.standing": "fences",
        "traffic.stale": "writes of a client that went while they waited",
        "not (guarded and word & 65535 in WRITE_CLASS)": "claims",
        "self.stopped": "a pause",
        "ours < newest": "commands under way",
        "gate is not None": "rates: a gate looks at each request",
        "word & 65535 != Cmd.DISC": "rates: a gate looks at each request",
        "not gate.take(moved_bytes(traffic.plan, word, offset, length))": "rates: a gate looks at each request",
        "magic == client_magic": "magic of a request",
        "magic != client_magic": "magic of a request",
        "begins_tls(magic)": "magic of a request",
        "0 < length <= longest": "longest length",
        "offset + length <= size": "an end behind the end",
        "not (at | length) & mask": "alignment",
        "ranges is None": "ranges that are protected",
        "not touches(ranges, offset, offset + length)": "ranges that are protected",
        "self.disconnected": "DISC has come",
        "answers >= MAX_ANSWERS": "replies of our own",
        "not ours & FEW": "the turn's end",
        "traffic.turn.takes()": "the turn's end",
    },
    "SimpleReplies": {
        "self.payload_left": "a message that is cut",
        "end - pos >= 16": "a message that is cut",
        "pos > end": "a message that is cut",
        "self._asked_data is not None": "data of a job's READ",
        "entry is None": "cookie",
        "error": "error",
        "entry[1] & ASK": "a command of our own",
        "magic != SIMPLE_REPLY_MAGIC": "magic of a reply",
        "ours in refused": "the server goes",
        "ours >= early": "an early reply",
        "entry[1] & 65535": "an early reply",
        "not ours & FEW": "the turn's end",
        "self.traffic.turn.takes()": "the turn's end",
    },
    "ChunkReplies": {
        "self.payload_left": "a message that is cut",
        "pos <= last": "a message that is cut",
        "behind > end": "a message that is cut",
        "behind == pos": "a message that is cut",
        "pos <= last_chunk": "a data chunk without its offset",
        "self._asked_data is not None": "data of a job's READ",
        "self._gathering": "a chunk that is gathered",
        "refused": "the server goes",
        "word == _DATA_DONE": "a chunk's type",
        "magic == chunk_magic": "magic of a reply",
        "magic != chunk_magic": "magic of a reply",
        "magic == SIMPLE_REPLY_MAGIC": "magic of a reply",
        "offset == at": "a chunk's offset",
        "size == length + 8": "a chunk's length",
        "not asked_word & _NOT_A_READ": "data for what was no READ",
        "ours not in one_by_one": "a reply of several chunks",
        "echo == offset": "the offset that a chunk repeats",
        "not word": "error",
        "simple_stays": "an end that the client is told in other words",
        "word == _NONE_DONE": "a chunk's type",
        "chunk_stays": "an end that the client is told in other words",
        "buffer[pos + 16:min(pos + head, end)] == _NO_PAYLOAD": "a NONE chunk with a payload",
        "ours < early": "an early reply",
        "entry[1] & 65535 not in _HAS_DATA": "a READ without data",
        "not entry[1] & ASK": "a command of our own",
        "not ours & FEW": "the turn's end",
        "traffic.turn.takes()": "the turn's end",
    },
}
"""What `feed` of each scanner asks, and the row that has it."""

HOW = {
    *("answered", "answered is not None", "memory is not None", "length <= MAX_COPIED_BYTES"),
    *("pos - data == length", "start < end", "pos > run", "base", "same", "sent != word"),
    *("chunked", "stays", "not done", "extended", "not extended", "short"),
    *("pos > data", "self._framing is not EXTENDED", "command == 1", "not word & 65535"),
}
"""What it asks only to know how a message goes on that is taken."""


def test_what_python_asks_has_a_row() -> None:
    named = {(name, asked) for name, its in ASKED.items() for asked in its}
    assert named == {each for each in asked_in_python() if each[1] not in HOW}
    assert {row for its in ASKED.values() for row in its.values() if row} <= set(EXAMPLES)


def test_what_the_pump_asks_has_a_row() -> None:
    named = {(name, asked) for name, its in CONDITIONS.items() for asked in its}
    assert named == asked_in_c()
    assert {row for its in CONDITIONS.values() for row in its.values() if row} <= set(EXAMPLES)


def test_where_python_checks_is_there() -> None:
    for where, _what in rows().values():
        for name in re.findall(r"`(.*?)`", where):
            module, _dot, attribute = name.rpartition(".")
            file = HOUSE / f"{module.replace('.', '/')}.py"
            assert re.search(rf"\b{attribute}\b", file.read_text()), name

/* The usual case of a session, compiled: receive once, scan, send once.

   Theory
   ------

   Most of what goes through a gateway is FAST or REFRAMED (gateway/scan/plan.py), comes over a plain socket
   and meets nothing in its way: no claim, no rate, no loss, no pause. A step of a session is then one receive,
   a look at each header, and one send. This does such a step in one call. Everything else is Python's, which
   is also the specification: whatever is done here, `RequestScan.feed`, `SimpleReplies.feed`,
   `ChunkReplies.feed`, `Lane` and `Session` say what it has to come to, and tests hold both against each other.

   Where a side is TLS, Python receives and sends, and only the scan is done here, over what lies in the lane's
   buffer. Python's `feed` goes on where that has stopped.

   There is no state of a session in here. What is under way, what is kept, how far a buffer is scanned stands
   in the attributes of Python's objects (`in_flight`, `Memory`, `Lane`), and each call reads them anew. So
   Python can take over after any call, and nothing has to be kept in step.

   A call begins by looking whether this is the usual case. If not, it does nothing (NOT_MINE). If the usual
   case ends in the middle (a request that is refused, an error, a BLOCK_STATUS, a full socket, a turn that is
   over), what is to be sent so far is laid into `Lane.out`, the lane says up to where it is scanned, and
   GO_ON says that Python has to take it up at that very byte.

   What a peer says is checked here exactly as there: magic, word, length, range, alignment, cookie, command,
   chunk. Every number of a peer's that is added to a position is compared with what is there first. Numbers are
   unsigned and have 64 bits; a sum that may overflow is checked.

   The global lock is kept while it receives and sends. The sockets never wait, so a call takes about as long as
   copying a buffer.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef MADE_OF
#error "MADE_OF has to be the hash of this file: packaging/pump.py gives it"
#endif

/* --- What a call says, beside the `Crowd` (-1 to 2). The module has the same names and numbers. */

enum {
    NOT_MINE = -2,       /* nothing was done */
    GO_ON = -3,          /* Python scans on where the lane says */
    SCANNED = -4,        /* Python does what comes after the scan */
    RECEIVE_FAILED = -5, /* `error` says how */
    SEND_FAILED = -6
};

/* --- The protocol (gateway/wire) */

#define REQUEST_MAGIC 0x25609513u
#define EXTENDED_REQUEST_MAGIC 0x21E41C71u
#define SIMPLE_REPLY_MAGIC 0x67446698u
#define STRUCTURED_REPLY_MAGIC 0x668E33EFu
#define EXTENDED_REPLY_MAGIC 0x6E8A278Cu

enum { SIMPLE, STRUCTURED, EXTENDED }; /* framings */

#define READ 0u
#define WRITE 1u
#define BLOCK_STATUS 7u
#define OFFSET_DATA 1u
#define DONE_BIT 0x10000u
#define ASK (UINT64_C(1) << 32) /* gateway/jobs/locks.py */

enum {
    REQUEST_BYTES = 28,
    EXTENDED_REQUEST_BYTES = 32,
    SIMPLE_REPLY_BYTES = 16,
    CHUNK_BYTES = 20,
    EXTENDED_CHUNK_BYTES = 32,
    OFFSET_BYTES = 8,
    WORD_AT = 4,
    COOKIE_AT = 8,
    OFFSET_AT = 16
};

/* --- Bounds. Those that Python has as well are held equal by a test. */

enum {
    MIN_FREE_BYTES = 64 * 1024,
    MIN_MESSAGE_BYTES = 28,
    MAX_FREE_BUFFERS = 16,
    MAX_COPIED_BYTES = 16 * 1024,
    FEW = 0x1F,
    FEW_COMMANDS = 4,
    CALM_STEPS = 1024,
    SMALL_BYTES = 16 * 1024,
    MAX_JOB_BYTES = 64 * 1024 * 1024,
    MAX_KEPT_BYTES = 32 * 1024 * 1024,
    RANGED_COMMANDS = 8, /* their numbers are below this */
    MAX_WORDS = 64,  /* command words that go FAST or REFRAMED: five commands with a few flags */
    MAX_RANGES = 32, /* that are protected, of all commands: a few, which most of the commands share */
    MAX_PIECES = 512 /* of one send: 128 commands, each with a header, its data and its end */
};

enum { CALM = -1, NONE = 0, LARGE = 1, SMALL = 2 }; /* `Crowd` */

/* --- Attributes with a slot are read and set where they lie. MEMORY and SEGMENT are looked up in their class:
   which object it is may change. */

enum {
    SESSION,
    TRAFFIC,
    REQUESTS,
    REPLIES,
    REQUEST_LANE,
    REPLY_LANE,
    EARLY,
    GOING,
    TURN,
    DEBT,
    OBJECTS, /* up to here */
    MEMORY = OBJECTS,
    SEGMENT
};

#define ATTRIBUTES(X)                                                                                        \
    X(SESSION, over, "_over")                                                                                \
    X(SESSION, flowing, "_flowing")                                                                          \
    X(SESSION, stopping, "_stopping")                                                                        \
    X(SESSION, holds, "_holds")                                                                              \
    X(SESSION, more_requests, "_more_requests")                                                              \
    X(SESSION, more_replies, "_more_replies")                                                                \
    X(SESSION, link_mute, "_link_mute")                                                                      \
    X(SESSION, link_closed, "_link_closed")                                                                  \
    X(SESSION, client_gone, "_client_gone")                                                                  \
    X(SESSION, calm, "_calm")                                                                                \
    X(TRAFFIC, last_cookie, "last_cookie")                                                                   \
    X(TRAFFIC, asked, "asked")                                                                               \
    X(TRAFFIC, asked_bytes, "asked_bytes")                                                                   \
    X(TRAFFIC, gate, "gate")                                                                                 \
    X(TRAFFIC, held, "held")                                                                                 \
    X(TRAFFIC, stale, "stale")                                                                               \
    X(TRAFFIC, postponed, "postponed")                                                                       \
    X(TRAFFIC, backlog, "backlog")                                                                           \
    X(TRAFFIC, most_in_flight, "_most_in_flight")                                                            \
    X(TRAFFIC, to_upstream, "to_upstream")                                                                   \
    X(TRAFFIC, to_client, "to_client")                                                                       \
    X(TRAFFIC, memory, "memory")                                                                             \
    X(TRAFFIC, partial, "partial")                                                                           \
    X(REQUESTS, stopped, "stopped")                                                                          \
    X(REQUESTS, disconnected, "disconnected")                                                                \
    X(REQUESTS, drop_left, "_drop_left")                                                                     \
    X(REQUESTS, gather_left, "_gather_left")                                                                 \
    X(REQUESTS, write_left, "payload_left")                                                                  \
    X(REQUESTS, requests_wait, "waiting")                                                                    \
    X(REQUESTS, answers, "answers")                                                                          \
    X(REPLIES, read_left, "payload_left")                                                                    \
    X(REPLIES, replies_wait, "waiting")                                                                      \
    X(REPLIES, closing, "_closing")                                                                          \
    X(REPLIES, open, "_open")                                                                                \
    X(REPLIES, open_end, "_open_end")                                                                        \
    X(REPLIES, asked_data, "_asked_data")                                                                    \
    X(REQUEST_LANE, segment, "_segment")                                                                     \
    X(REQUEST_LANE, left_over, "_left_over")                                                                 \
    X(REQUEST_LANE, start, "_start")                                                                         \
    X(REQUEST_LANE, end, "_end")                                                                             \
    X(REQUEST_LANE, out, "out")                                                                              \
    X(REQUEST_LANE, sent_bytes, "sent_bytes")                                                                \
    X(REQUEST_LANE, ended, "ended")                                                                          \
    X(EARLY, half_sent, "half_sent")                                                                         \
    X(EARLY, unsent, "unsent")                                                                               \
    X(EARLY, early_held, "held")                                                                             \
    X(GOING, begun, "begun")                                                                                 \
    X(GOING, refused, "refused")                                                                             \
    X(TURN, ends, "_ends")                                                                                   \
    X(DEBT, lost, "lost")                                                                                    \
    X(MEMORY, kept, "kept")                                                                                  \
    X(MEMORY, kept_bytes, "kept_bytes")                                                                      \
    X(MEMORY, answered, "answered")                                                                          \
    X(MEMORY, losses, "_losses")                                                                             \
    X(MEMORY, witnesses, "_witnesses")                                                                       \
    X(MEMORY, seen_news, "_last_news")                                                                       \
    X(MEMORY, seen_gone_over, "_gone_over")                                                                  \
    X(SEGMENT, data, "data")                                                                                 \
    X(SEGMENT, view, "view")                                                                                 \
    X(SEGMENT, pins, "pins")

enum {
#define X(holder, id, name) at_##id,
    ATTRIBUTES(X)
#undef X
        ATTRIBUTE_COUNT
};

static const struct {
    int holder;
    const char *name;
} attributes[] = {
#define X(holder, id, name) {holder, name},
    ATTRIBUTES(X)
#undef X
};

typedef struct {
    uint64_t start, end;
} Range;

typedef struct {
    uint32_t word, sent;
    uint64_t longest;
    int from, to; /* in `Pump.range`: what it must not touch */
} Word;

typedef struct {
    PyObject_HEAD PyObject *of[OBJECTS];
    PyObject *in_flight, *jobs, *fences, *kin, *pool, *free_segments, *client_framing;
    PyObject *segment_type, *memory_type;
    Py_ssize_t at[ATTRIBUTE_COUNT];
    Py_ssize_t at_gathering; /* 0: replies that have no chunks have no such attribute */
    int client_fd, link_fd;
    int client, link; /* framings */
    uint64_t size, base, mask;
    int words;
    Word word[MAX_WORDS];
    int ranges;
    Range range[MAX_RANGES];
    int error;
} Pump;

/* One direction, while a call lasts. */
typedef struct {
    PyObject *lane;
    int from, to;
    PyObject *segment; /* a reference of our own, to the lane's */
    unsigned char *bytes;
    Py_ssize_t start, end, capacity;
    int pieces; /* to be sent: of the segment, and of `arena` */
    struct iovec piece[MAX_PIECES];
    size_t used; /* of `arena`, which has the headers that are made here */
    unsigned char arena[MAX_PIECES * (EXTENDED_CHUNK_BYTES + OFFSET_BYTES)];
} Flow;

/* One call is at work at a time: it keeps the global lock, and what it calls calls no session of its own. */
static Flow flow;
static bool at_work;

static PyObject *zero, *no_bytes;
static PyObject *s_standing, *s_claims, *s_waiting, *s_bytes, *s_last_news, *s_gone_over, *s_take, *s_takes;
static PyObject *s_release, *s_release_what_nobody_needs, *s_remember, *s_end, *s_part;

/* --- Numbers as they stand in messages */

static uint32_t get32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static uint64_t get64(const unsigned char *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static unsigned char *put32(unsigned char *at, uint32_t value) {
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static unsigned char *put64(unsigned char *at, uint64_t value) {
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

/* --- Attributes */

static PyObject **place(PyObject *object, Py_ssize_t at) {
    return (PyObject **)((char *)object + at);
}

/* Borrowed; None in place of what is not set, so that nothing here meets NULL. */
static PyObject *value_at(PyObject *object, Py_ssize_t at) {
    PyObject *its = *place(object, at);
    return its == NULL ? Py_None : its;
}

static PyObject *value_in(const Pump *p, PyObject *object, int attribute) {
    return value_at(object, p->at[attribute]);
}

static PyObject *value(const Pump *p, int attribute) {
    return value_in(p, p->of[attributes[attribute].holder], attribute);
}

/* Takes the reference; NULL is an error that was raised already. */
static bool set_in(const Pump *p, PyObject *object, int attribute, PyObject *its) {
    if (its == NULL) {
        return false;
    }
    PyObject **at = place(object, p->at[attribute]), *before = *at;
    *at = its;
    Py_XDECREF(before);
    return true;
}

static bool set(const Pump *p, int attribute, PyObject *value) {
    return set_in(p, p->of[attributes[attribute].holder], attribute, value);
}

static bool set_number(const Pump *p, int attribute, uint64_t number) {
    return set(p, attribute, PyLong_FromUnsignedLongLong(number));
}

static uint64_t number(PyObject *value) {
    return PyLong_AsUnsignedLongLong(value); /* PyErr_Occurred says whether it is one */
}

/* Whether something is true, or has anything in it. What raises counts as such: Python will meet it. */
static bool holds(PyObject *value) {
    if (value == Py_False || value == Py_None) {
        return false;
    }
    if (PyList_CheckExact(value)) {
        return PyList_GET_SIZE(value) > 0;
    }
    if (PyDict_CheckExact(value)) {
        return PyDict_GET_SIZE(value) > 0;
    }
    int is_true = PyObject_IsTrue(value);
    if (is_true < 0) {
        PyErr_Clear();
        return true;
    }
    return is_true > 0;
}

static bool named_holds(PyObject *object, PyObject *name) {
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL) {
        PyErr_Clear();
        return true;
    }
    bool is_true = holds(value);
    Py_DECREF(value);
    return is_true;
}

static bool named_is(PyObject *object, PyObject *name, PyObject *expected) {
    PyObject *value = PyObject_GetAttr(object, name);
    int equal = value == NULL ? -1 : PyObject_RichCompareBool(value, expected, Py_EQ);
    Py_XDECREF(value);
    if (equal < 0) {
        PyErr_Clear();
    }
    return equal > 0;
}

/* A command in the in-flight table: cookie, word, offset, length. */
static bool is_entry(PyObject *entry) {
    return PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) == 4;
}

/* --- Whether this is the usual case */

static bool any_holds(const Pump *p, const int *which, size_t count) {
    for (size_t n = 0; n < count; n++) {
        if (holds(value(p, which[n]))) {
            return true;
        }
    }
    return false;
}

/* Whether messages may be scanned here. */
static bool is_usual_scan(const Pump *p) {
    static const int none[] = {
        at_held,      at_stale,        at_postponed,     at_to_upstream, at_to_client,    at_stopped,
        at_disconnected, at_drop_left, at_gather_left,   at_requests_wait, at_answers,    at_replies_wait,
        at_asked_data, at_early_held,  at_begun,         at_refused,
    };
    PyObject *memory = value(p, at_memory);
    if (memory != Py_None && Py_TYPE(memory) != (PyTypeObject *)p->memory_type) {
        return false;
    }
    return !any_holds(p, none, sizeof none / sizeof *none) && !named_holds(p->kin, s_claims);
}

/* Whether a whole step may be done here. */
static bool is_usual(const Pump *p) {
    static const int none[] = {
        at_over,         at_stopping,  at_holds,       at_more_requests,
        at_more_replies, at_link_mute, at_link_closed, at_client_gone,
    };
    PyObject *requests = p->of[REQUEST_LANE], *replies = p->of[REPLY_LANE];
    return value(p, at_flowing) == Py_True && !any_holds(p, none, sizeof none / sizeof *none) &&
           !holds(value_in(p, requests, at_out)) && !holds(value_in(p, replies, at_out)) && is_usual_scan(p);
}

/* How many requests may be begun: `Traffic.room`, of which the rest is known. Negative: an error is raised. */
static int64_t room(const Pump *p) {
    PyObject *memory = value(p, at_memory);
    if (memory != Py_None && number(value_in(p, memory, at_kept_bytes)) >= MAX_KEPT_BYTES) {
        return PyErr_Occurred() ? -1 : 0;
    }
    PyObject *bytes = PyObject_GetAttr(p->jobs, s_bytes), *waiting = PyObject_GetAttr(p->jobs, s_waiting);
    int64_t room = -1;
    if (bytes != NULL && waiting != NULL) {
        uint64_t held = number(bytes) + number(value(p, at_backlog));
        uint64_t busy = number(waiting) + (uint64_t)PyDict_GET_SIZE(p->in_flight);
        uint64_t most = number(value(p, at_most_in_flight));
        if (!PyErr_Occurred()) {
            room = held >= MAX_JOB_BYTES || busy >= most ? 0 : (int64_t)(most - busy);
        }
    }
    Py_XDECREF(bytes);
    Py_XDECREF(waiting);
    return room;
}

/* --- Buffers */

/* Takes the lane's buffer. False: an error is raised. */
static bool take_segment(const Pump *p, Flow *f, PyObject *segment) {
    PyObject *data = Py_TYPE(segment) == (PyTypeObject *)p->segment_type ? value_in(p, segment, at_data) : Py_None;
    if (!PyByteArray_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "a lane has another buffer than a Segment");
        return false;
    }
    Py_XSETREF(f->segment, Py_NewRef(segment));
    f->bytes = (unsigned char *)PyByteArray_AS_STRING(data);
    f->capacity = PyByteArray_GET_SIZE(data);
    return true;
}

static bool is_within(const Flow *f) {
    if (f->start < 0 || f->start > f->end || f->end > f->capacity) {
        PyErr_SetString(PyExc_ValueError, "a lane's positions are not in its buffer");
        return false;
    }
    return true;
}

static void begin(Flow *f, PyObject *lane) {
    f->lane = lane;
    f->pieces = 0;
    f->used = 0;
}

/* Has the lane's buffer ready to receive into. 0: this is not the usual case, and nothing was done. */
static int prepare(const Pump *p, Flow *f, PyObject *lane) {
    PyObject *segment = value_in(p, lane, at_segment), *left_over = value_in(p, lane, at_left_over);
    begin(f, lane);
    if (value_in(p, lane, at_ended) != Py_False || !PyBytes_CheckExact(left_over)) {
        return 0;
    }
    if (segment == Py_None) {
        Py_ssize_t left = PyBytes_GET_SIZE(left_over);
        Py_ssize_t count = PyList_CheckExact(p->free_segments) ? PyList_GET_SIZE(p->free_segments) : 0;
        if (count) {
            segment = Py_NewRef(PyList_GET_ITEM(p->free_segments, count - 1));
            if (PyList_SetSlice(p->free_segments, count - 1, count, NULL) < 0) {
                Py_DECREF(segment);
                return -1;
            }
        } else {
            segment = PyObject_CallMethodNoArgs(p->pool, s_take);
        }
        if (!set_in(p, lane, at_segment, segment)) {
            return -1;
        }
        f->start = 0;
        f->end = left;
    } else {
        f->start = PyLong_AsSsize_t(value_in(p, lane, at_start));
        f->end = PyLong_AsSsize_t(value_in(p, lane, at_end));
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    if (!take_segment(p, f, segment)) {
        return -1;
    }
    if (PyBytes_GET_SIZE(left_over)) { /* then there was no segment */
        if (f->end > f->capacity) {
            PyErr_SetString(PyExc_ValueError, "more is left over than a buffer holds");
            return -1;
        }
        memcpy(f->bytes, PyBytes_AS_STRING(left_over), (size_t)f->end);
        if (!set_in(p, lane, at_left_over, Py_NewRef(no_bytes))) {
            return -1;
        }
    }
    if (!is_within(f)) {
        return -1;
    }
    if (!set_in(p, lane, at_start, PyLong_FromSsize_t(f->start)) ||
        !set_in(p, lane, at_end, PyLong_FromSsize_t(f->end))) {
        return -1;
    }
    bool pinned = holds(value_in(p, segment, at_pins));
    return f->end < f->capacity && !(pinned && f->capacity - f->end < MIN_FREE_BYTES);
}

/* `Lane.release`: give the buffer back, or keep what is left in it. */
static bool release(const Pump *p, Flow *f) {
    Py_ssize_t left = f->end - f->start;
    if (left >= MIN_MESSAGE_BYTES || holds(value_in(p, f->segment, at_pins))) {
        PyObject *done = PyObject_CallMethodNoArgs(f->lane, s_release);
        Py_XDECREF(done);
        return done != NULL;
    }
    if (left && !set_in(p, f->lane, at_left_over,
                        PyBytes_FromStringAndSize((char *)f->bytes + f->start, left))) {
        return false;
    }
    if (!PyList_CheckExact(p->free_segments)) { /* a pool of its own kind */
        PyObject *done = PyObject_CallMethodNoArgs(f->segment, s_part);
        Py_XDECREF(done);
        if (done == NULL) {
            return false;
        }
    } else if (PyList_GET_SIZE(p->free_segments) < MAX_FREE_BUFFERS &&
               PyList_Append(p->free_segments, f->segment) < 0) {
        return false;
    }
    return set_in(p, f->lane, at_segment, Py_NewRef(Py_None)) &&
           set_in(p, f->lane, at_start, PyLong_FromLong(0)) && set_in(p, f->lane, at_end, PyLong_FromLong(0));
}

/* --- What is to be sent */

static void add(Flow *f, Py_ssize_t from, Py_ssize_t to) {
    if (to > from) {
        f->piece[f->pieces].iov_base = f->bytes + from;
        f->piece[f->pieces++].iov_len = (size_t)(to - from);
    }
}

/* Gives room for a header that is made here; `add_made` says where it ends. */
static unsigned char *making(Flow *f) {
    return f->arena + f->used;
}

static void add_made(Flow *f, const unsigned char *end) {
    f->piece[f->pieces].iov_base = f->arena + f->used;
    f->piece[f->pieces++].iov_len = (size_t)(end - (f->arena + f->used));
    f->used = (size_t)(end - f->arena);
}

static void add_bytes(Flow *f, PyObject *bytes) {
    unsigned char *made = making(f);
    memcpy(made, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    add_made(f, made + PyBytes_GET_SIZE(bytes));
}

/* Another message has room: it takes four pieces at most. */
static bool has_room(const Flow *f) {
    return f->pieces + 4 <= MAX_PIECES;
}

/* Lays pieces that are not sent into the lane's list, the first without what is sent of it. */
static bool lay(const Pump *p, Flow *f, int first, size_t sent) {
    PyObject *out = value_in(p, f->lane, at_out), *view = value_in(p, f->segment, at_view);
    for (int n = first; n < f->pieces; n++, sent = 0) {
        unsigned char *from = (unsigned char *)f->piece[n].iov_base + sent;
        Py_ssize_t length = (Py_ssize_t)(f->piece[n].iov_len - sent);
        PyObject *piece;
        if (from >= f->bytes && from < f->bytes + f->capacity) {
            Py_ssize_t at = from - f->bytes;
            PyObject *slice = NULL, *start = PyLong_FromSsize_t(at), *end = PyLong_FromSsize_t(at + length);
            if (start != NULL && end != NULL) {
                slice = PySlice_New(start, end, NULL);
            }
            piece = slice == NULL ? NULL : PyObject_GetItem(view, slice);
            Py_XDECREF(start);
            Py_XDECREF(end);
            Py_XDECREF(slice);
        } else {
            piece = PyBytes_FromStringAndSize((char *)from, length);
        }
        int appended = piece == NULL ? -1 : PyList_Append(out, piece);
        Py_XDECREF(piece);
        if (appended < 0) {
            return false;
        }
    }
    return true;
}

/* Notes up to where the buffer is scanned. */
static bool note(const Pump *p, Flow *f) {
    return set_in(p, f->lane, at_start, PyLong_FromSsize_t(f->start)) &&
           set_in(p, f->lane, at_end, PyLong_FromSsize_t(f->end));
}

/* Sends once. 1: all is sent, and the buffer given back; 0: not all; SEND_FAILED; -1: an error is raised. */
static int send_all(Pump *p, Flow *f) {
    if (!note(p, f)) {
        return -1;
    }
    if (f->pieces) {
        struct msghdr message = {.msg_iov = f->piece, .msg_iovlen = (size_t)f->pieces};
        ssize_t sent;
        do {
            sent = sendmsg(f->to, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        } while (sent < 0 && errno == EINTR);
        if (sent < 0) {
            p->error = errno;
            if (!lay(p, f, 0, 0)) {
                return -1;
            }
            return p->error == EAGAIN || p->error == EWOULDBLOCK ? 0 : SEND_FAILED;
        }
        uint64_t total = number(value_in(p, f->lane, at_sent_bytes)) + (uint64_t)sent;
        if (PyErr_Occurred() || !set_in(p, f->lane, at_sent_bytes, PyLong_FromUnsignedLongLong(total))) {
            return -1;
        }
        size_t left = (size_t)sent;
        int done = 0;
        while (done < f->pieces && left >= f->piece[done].iov_len) {
            left -= f->piece[done++].iov_len;
        }
        if (done < f->pieces) {
            return lay(p, f, done, left) ? 0 : -1;
        }
    }
    return release(p, f) ? 1 : -1;
}

/* Receives once. 1: something came; 0: nothing; RECEIVE_FAILED; SCANNED: it has closed; -1: an error is raised. */
static int receive(Pump *p, Flow *f) {
    ssize_t count;
    do {
        count = recv(f->from, f->bytes + f->end, (size_t)(f->capacity - f->end), MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    if (count > 0) {
        f->end += count;
        return 1;
    }
    int why = errno;
    if (count < 0 && why != EAGAIN && why != EWOULDBLOCK) {
        p->error = why;
        return RECEIVE_FAILED;
    }
    if (!release(p, f)) {
        return -1;
    }
    if (count < 0) {
        return 0;
    }
    return set_in(p, f->lane, at_ended, Py_NewRef(Py_True)) ? SCANNED : -1;
}

/* --- Turns */

static bool begin_turn(const Pump *p) {
    return set(p, at_ends, Py_NewRef(zero));
}

/* `Turn.takes`: 1 if the turn is over; -1: an error is raised. */
static int takes(const Pump *p) {
    PyObject *over = PyObject_CallMethodNoArgs(p->of[TURN], s_takes);
    int is_over = over == NULL ? -1 : PyObject_IsTrue(over);
    Py_XDECREF(over);
    return is_over;
}

/* What `Session._step` gives after a step with which nothing is left to do. */
static PyObject *crowd(const Pump *p) {
    Py_ssize_t count = PyDict_GET_SIZE(p->in_flight);
    long many = NONE;
    if (count > FEW_COMMANDS) {
        PyObject *last = NULL, *values = PyObject_CallMethod(p->in_flight, "values", NULL);
        PyObject *reversed = values == NULL ? NULL : PyObject_CallMethod(values, "__reversed__", NULL);
        last = reversed == NULL ? NULL : PyIter_Next(reversed);
        Py_XDECREF(values);
        Py_XDECREF(reversed);
        if (last == NULL) {
            return NULL;
        }
        const uint64_t length = is_entry(last) ? number(PyTuple_GET_ITEM(last, 3)) : 0;
        Py_DECREF(last);
        if (PyErr_Occurred()) {
            return NULL;
        }
        many = length <= SMALL_BYTES && count > 2 * FEW_COMMANDS ? SMALL : LARGE;
    }
    PyObject *waiting = PyObject_GetAttr(p->jobs, s_waiting);
    long waits = waiting == NULL ? -1 : PyLong_AsLong(waiting);
    Py_XDECREF(waiting);
    if (waits < 0) {
        return NULL;
    }
    if (many || waits > FEW_COMMANDS) {
        return set(p, at_calm, PyLong_FromLong(0)) ? PyLong_FromLong(many) : NULL;
    }
    uint64_t calm = number(value(p, at_calm)) + 1;
    if (PyErr_Occurred() || !set_number(p, at_calm, calm)) {
        return NULL;
    }
    return PyLong_FromLong(calm > CALM_STEPS ? CALM : NONE);
}

/* --- Requests: `RequestScan.feed` */

/* What a scan comes to: 1: all was taken; 0: Python has to scan on; SCANNED: the turn is over; -1: an error. */

static const Word *word_of(const Pump *p, uint32_t word) {
    for (int n = 0; n < p->words; n++) {
        if (p->word[n].word == word) {
            return &p->word[n];
        }
    }
    return NULL;
}

/* Whether a request is in the way of a range that is protected. It ends where the export ends, or before. */
static bool touches(const Pump *p, const Word *word, uint64_t offset, uint64_t length) {
    for (int n = word->from; n < word->to; n++) {
        if (offset < p->range[n].end && offset + length > p->range[n].start) {
            return true;
        }
    }
    return false;
}

static bool add_command(const Pump *p, PyObject *ours, uint64_t cookie, uint32_t word, uint64_t at,
                        uint64_t length) {
    PyObject *entry = PyTuple_New(4);
    if (entry == NULL) {
        return false;
    }
    PyTuple_SET_ITEM(entry, 0, PyLong_FromUnsignedLongLong(cookie));
    PyTuple_SET_ITEM(entry, 1, PyLong_FromUnsignedLong(word));
    PyTuple_SET_ITEM(entry, 2, PyLong_FromUnsignedLongLong(at));
    PyTuple_SET_ITEM(entry, 3, PyLong_FromUnsignedLongLong(length));
    bool added = !PyErr_Occurred() && PyDict_SetItem(p->in_flight, ours, entry) == 0;
    Py_DECREF(entry);
    return added;
}

/* A piece of the buffer that is kept where it is: (segment, view), with a pin. */
static PyObject *pinned(const Pump *p, Flow *f, Py_ssize_t from, Py_ssize_t to) {
    PyObject *start = PyLong_FromSsize_t(from), *end = PyLong_FromSsize_t(to), *kept = NULL, *slice = NULL;
    if (start != NULL && end != NULL) {
        slice = PySlice_New(start, end, NULL);
    }
    PyObject *view = slice == NULL ? NULL : PyObject_GetItem(value_in(p, f->segment, at_view), slice);
    if (view != NULL) {
        kept = PyTuple_Pack(2, f->segment, view);
        uint64_t pins = number(value_in(p, f->segment, at_pins)) + 1;
        if (kept != NULL && (PyErr_Occurred() ||
                             !set_in(p, f->segment, at_pins, PyLong_FromUnsignedLongLong(pins)))) {
            Py_CLEAR(kept);
        }
    }
    Py_XDECREF(start);
    Py_XDECREF(end);
    Py_XDECREF(slice);
    Py_XDECREF(view);
    return kept;
}

/* Keeps the data of a WRITE that has begun, as far as it is here. */
static bool keep(const Pump *p, Flow *f, PyObject *memory, PyObject *ours, uint64_t length, Py_ssize_t from,
                 Py_ssize_t to) {
    uint64_t bytes = number(value_in(p, memory, at_kept_bytes)) + length;
    if (PyErr_Occurred() || !set_in(p, memory, at_kept_bytes, PyLong_FromUnsignedLongLong(bytes))) {
        return false;
    }
    PyObject *kept;
    if (length <= MAX_COPIED_BYTES && (uint64_t)(to - from) == length) {
        kept = PyByteArray_FromStringAndSize((char *)f->bytes + from, to - from);
    } else {
        kept = PyList_New(0);
        PyObject *piece = kept != NULL && to > from ? pinned(p, f, from, to) : NULL;
        if (to > from && (piece == NULL || PyList_Append(kept, piece) < 0)) {
            Py_CLEAR(kept);
        }
        Py_XDECREF(piece);
    }
    int done = kept == NULL ? -1 : PyObject_SetItem(value_in(p, memory, at_kept), ours, kept);
    Py_XDECREF(kept);
    return done == 0;
}

/* Keeps more of the data of the WRITE that is half sent. */
static bool keep_more(const Pump *p, Flow *f, PyObject *memory, Py_ssize_t from, Py_ssize_t to) {
    PyObject *kept = PyObject_GetItem(value_in(p, memory, at_kept), value(p, at_half_sent));
    PyObject *piece = kept == NULL ? NULL : pinned(p, f, from, to);
    bool done = piece != NULL && PyList_Append(kept, piece) == 0;
    Py_XDECREF(kept);
    Py_XDECREF(piece);
    return done;
}

/* What clients have asked for is counted once a call, by command. */
typedef struct {
    uint64_t times[RANGED_COMMANDS], bytes[RANGED_COMMANDS];
} Asked;

/* Adds to a number in a list of Python's, of which the pump knows that it is as long. */
static bool add_to(PyObject *list, int at, uint64_t more) {
    if (!PyList_CheckExact(list) || PyList_GET_SIZE(list) <= at) {
        PyErr_SetString(PyExc_TypeError, "expected a count for each command");
        return false;
    }
    PyObject *its = PyLong_FromUnsignedLongLong(more);
    PyObject *sum = its == NULL ? NULL : PyNumber_Add(PyList_GET_ITEM(list, at), its);
    Py_XDECREF(its);
    return sum != NULL && PyList_SetItem(list, at, sum) == 0;
}

static bool count(const Pump *p, const Asked *asked) {
    for (int command = 0; command < RANGED_COMMANDS; command++) {
        if (asked->times[command] && !(add_to(value(p, at_asked), command, asked->times[command]) &&
                                       add_to(value(p, at_asked_bytes), command, asked->bytes[command]))) {
            return false;
        }
    }
    return true;
}

static int scan_requests(const Pump *p, Flow *f, PyObject *memory, int64_t room) {
    const bool wide = p->client == EXTENDED, same = wide == (p->link == EXTENDED);
    const uint32_t client_magic = wide ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC;
    const uint32_t link_magic = p->link == EXTENDED ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC;
    const Py_ssize_t header = wide ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES, end = f->end;
    uint64_t ours = number(value(p, at_last_cookie)), left = number(value(p, at_write_left));
    if (PyErr_Occurred()) {
        return -1;
    }
    const uint64_t newest = ours + (uint64_t)room;
    Asked asked = {0};
    Py_ssize_t pos = f->start, run = pos;
    int said = 1;
    if (left) {
        uint64_t here = (uint64_t)(end - pos), taken = left < here ? left : here;
        if (memory != NULL && taken && !keep_more(p, f, memory, pos, pos + (Py_ssize_t)taken)) {
            return -1;
        }
        if (!set_number(p, at_write_left, left - taken)) {
            return -1;
        }
        pos += (Py_ssize_t)taken;
        if (left > here) {
            add(f, run, pos);
            f->start = pos;
            return 1;
        }
        if (!set_number(p, at_half_sent, 0)) {
            return -1;
        }
    }
    while (end - pos >= header) {
        unsigned char *at = f->bytes + pos;
        const Word *word = word_of(p, get32(at + WORD_AT));
        const uint64_t cookie = get64(at + COOKIE_AT), offset = get64(at + OFFSET_AT);
        const uint64_t length = wide ? get64(at + 24) : get32(at + 24);
        if (ours >= newest || !has_room(f) || get32(at) != client_magic || word == NULL || !length ||
            length > word->longest || (length > UINT32_MAX && p->link != EXTENDED) || offset > p->size ||
            length > p->size - offset) {
            said = 0;
            break;
        }
        const uint64_t there = offset + p->base;
        if ((there | length) & p->mask || touches(p, word, offset, length)) {
            said = 0;
            break;
        }
        ours++;
        asked.times[word->word & 0xFFFF]++;
        asked.bytes[word->word & 0xFFFF] += length;
        PyObject *key = PyLong_FromUnsignedLongLong(ours);
        if (key == NULL || !add_command(p, key, cookie, word->word, there, length)) {
            Py_XDECREF(key);
            return -1;
        }
        if (same) {
            put64(at + COOKIE_AT, ours);
            put64(at + OFFSET_AT, there);
            put32(at + WORD_AT, word->sent);
            pos += header;
        } else {
            add(f, run, pos);
            unsigned char *made = put32(making(f), link_magic);
            made = put64(put64(put32(made, word->sent), ours), there);
            add_made(f, wide ? put32(made, (uint32_t)length) : put64(made, length));
            pos += header;
            run = pos;
        }
        if ((word->word & 0xFFFF) == WRITE) {
            const Py_ssize_t data = pos;
            const uint64_t here = (uint64_t)(end - pos);
            if (length > here) {
                pos = end;
                if (!set_number(p, at_write_left, length - here) || !set_number(p, at_half_sent, ours)) {
                    Py_DECREF(key);
                    return -1;
                }
            } else {
                pos += (Py_ssize_t)length;
            }
            if (memory != NULL && !keep(p, f, memory, key, length, data, pos)) {
                Py_DECREF(key);
                return -1;
            }
        }
        Py_DECREF(key);
        if (!(ours & FEW)) {
            const int over = takes(p);
            if (over) {
                said = over < 0 ? -1 : SCANNED;
                break;
            }
        }
    }
    add(f, run, pos);
    f->start = pos;
    return set_number(p, at_last_cookie, ours) && count(p, &asked) ? said : -1;
}

/* --- Replies: `SimpleReplies.feed` and `ChunkReplies.feed` */

typedef struct {
    PyObject *key, *entry; /* references of our own */
    uint64_t ours, cookie, word, offset, length;
} Command;

static void forget(Command *command) {
    Py_CLEAR(command->key);
    Py_CLEAR(command->entry);
}

/* 1: there is such a command; 0: there is none; -1: an error is raised. */
static int find(const Pump *p, uint64_t ours, Command *command) {
    command->entry = NULL;
    command->ours = ours;
    command->key = PyLong_FromUnsignedLongLong(ours);
    PyObject *entry = command->key == NULL ? NULL : PyDict_GetItemWithError(p->in_flight, command->key);
    if (entry == NULL || !is_entry(entry)) {
        Py_CLEAR(command->key);
        return PyErr_Occurred() ? -1 : 0;
    }
    command->entry = Py_NewRef(entry);
    command->cookie = number(PyTuple_GET_ITEM(entry, 0));
    command->word = number(PyTuple_GET_ITEM(entry, 1));
    command->offset = number(PyTuple_GET_ITEM(entry, 2));
    command->length = number(PyTuple_GET_ITEM(entry, 3));
    if (PyErr_Occurred()) {
        forget(command);
        return -1;
    }
    return 1;
}

/* The command has its answer. */
static bool end_command(const Pump *p, const Command *command) {
    return PyDict_DelItem(p->in_flight, command->key) == 0;
}

static bool note_answered(const Pump *p, PyObject *memory, const Command *command) {
    if (memory == NULL) {
        return true;
    }
    PyObject *pair = PyTuple_Pack(2, command->key, command->entry);
    int done = pair == NULL ? -1 : PyList_Append(value_in(p, memory, at_answered), pair);
    Py_XDECREF(pair);
    return done == 0;
}

/* `Framing.success` of the client, for a command without data. */
static void add_success(const Pump *p, Flow *f, const Command *command) {
    unsigned char *made = making(f);
    if (p->client == EXTENDED) {
        made = put64(put32(put32(made, EXTENDED_REPLY_MAGIC), DONE_BIT), command->cookie);
        made = put64(put64(made, command->offset ? command->offset - p->base : 0), 0);
    } else {
        made = put64(put32(put32(made, SIMPLE_REPLY_MAGIC), 0), command->cookie);
    }
    add_made(f, made);
}

/* `Framing.data_head` of the client, for all the data of a READ. */
static void add_data_head(const Pump *p, Flow *f, const Command *command, bool done) {
    const uint64_t offset = command->offset - p->base;
    const uint32_t word = (done ? DONE_BIT : 0) | OFFSET_DATA;
    unsigned char *made = making(f);
    if (p->client == SIMPLE) {
        made = put64(put32(put32(made, SIMPLE_REPLY_MAGIC), 0), command->cookie);
    } else if (p->client == STRUCTURED) {
        made = put64(put32(put32(made, STRUCTURED_REPLY_MAGIC), word), command->cookie);
        made = put64(put32(made, (uint32_t)(command->length + OFFSET_BYTES)), offset);
    } else {
        made = put64(put32(put32(made, EXTENDED_REPLY_MAGIC), word), command->cookie);
        made = put64(put64(put64(made, offset), command->length + OFFSET_BYTES), offset);
    }
    add_made(f, made);
}

/* Data of a READ has begun to go out: `left` bytes of it are to come. `closes`: an end follows them. */
static bool begin_data(const Pump *p, const Command *command, uint64_t left, bool closes) {
    PyObject *closing = PyList_New(0);
    if (closing != NULL && closes) {
        PyObject *cookie = PyTuple_GET_ITEM(command->entry, 0), *offset = PyTuple_GET_ITEM(command->entry, 2);
        PyObject *end = PyObject_CallMethodObjArgs(p->client_framing, s_end, cookie, offset, NULL);
        if (end == NULL || PyList_Append(closing, end) < 0) {
            Py_CLEAR(closing);
        }
        Py_XDECREF(end);
    }
    return set(p, at_closing, closing) && set_number(p, at_read_left, left) &&
           set(p, at_open, Py_NewRef(command->entry)) &&
           set_number(p, at_open_end, command->offset + command->length);
}

/* Whether a reply ends with nothing, or with a header. An error that Python has laid there has a text. */
static bool ends_shortly(PyObject *closing) {
    if (!PyList_CheckExact(closing) || PyList_GET_SIZE(closing) > 1) {
        return false;
    }
    if (!PyList_GET_SIZE(closing)) {
        return true;
    }
    PyObject *end = PyList_GET_ITEM(closing, 0);
    return PyBytes_CheckExact(end) && PyBytes_GET_SIZE(end) <= EXTENDED_CHUNK_BYTES;
}

/* Goes on with the data that is under way. 1: it is whole, or all that is here; 0: Python has to; -1: an error is
   raised. */
static int resume(const Pump *p, Flow *f, Py_ssize_t *run, Py_ssize_t *pos) {
    const uint64_t left = number(value(p, at_read_left)), here = (uint64_t)(f->end - *pos);
    if (PyErr_Occurred()) {
        return -1;
    }
    if (left > here) {
        *pos = f->end;
        return set_number(p, at_read_left, left - here) ? 1 : -1;
    }
    PyObject *closing = value(p, at_closing);
    if (!ends_shortly(closing)) {
        return 0;
    }
    *pos += (Py_ssize_t)left;
    if (PyList_GET_SIZE(closing)) {
        add(f, *run, *pos);
        *run = *pos;
        add_bytes(f, PyList_GET_ITEM(closing, 0));
        if (!set(p, at_closing, PyList_New(0))) {
            return -1;
        }
    }
    return set_number(p, at_read_left, 0) && set(p, at_open, Py_NewRef(Py_None)) ? 1 : -1;
}

/* Takes a READ's data, whose header ends at `content`. */
static bool take_data(const Pump *p, Flow *f, const Command *command, Py_ssize_t content, Py_ssize_t *pos,
                      bool closes) {
    const uint64_t here = (uint64_t)(f->end - content);
    if (command->length > here) {
        *pos = f->end;
        return begin_data(p, command, command->length - here, closes);
    }
    *pos = content + (Py_ssize_t)command->length;
    return true;
}

static int scan_simple(const Pump *p, Flow *f, PyObject *memory, uint64_t early) {
    const bool chunked = p->client != SIMPLE, stays = p->client != EXTENDED;
    Py_ssize_t pos = f->start, run = pos;
    int said = holds(value(p, at_read_left)) ? resume(p, f, &run, &pos) : 1;
    while (said > 0 && f->end - pos >= SIMPLE_REPLY_BYTES) {
        unsigned char *at = f->bytes + pos;
        Command command;
        if (get32(at) != SIMPLE_REPLY_MAGIC || get32(at + WORD_AT) || !has_room(f)) {
            said = 0;
            break;
        }
        said = find(p, get64(at + COOKIE_AT), &command);
        if (said <= 0) {
            break;
        }
        const uint64_t asked = command.word & 0xFFFF;
        bool good = true;
        if (command.word & ASK || (command.ours >= early && asked != READ) || asked == BLOCK_STATUS) {
            forget(&command);
            said = 0;
            break;
        }
        if (asked == READ) {
            const Py_ssize_t content = pos + SIMPLE_REPLY_BYTES;
            const bool whole = command.length <= (uint64_t)(f->end - content);
            if (chunked) {
                add(f, run, pos);
                add_data_head(p, f, &command, whole);
                run = content;
            } else {
                put64(at + COOKIE_AT, command.cookie);
            }
            good = take_data(p, f, &command, content, &pos, chunked);
        } else {
            good = note_answered(p, memory, &command);
            if (stays) {
                put64(at + COOKIE_AT, command.cookie);
                pos += SIMPLE_REPLY_BYTES;
            } else {
                add(f, run, pos);
                add_success(p, f, &command);
                run = pos += SIMPLE_REPLY_BYTES;
            }
        }
        good = good && end_command(p, &command);
        forget(&command);
        const int over = good && !(command.ours & FEW) ? takes(p) : 0;
        if (!good || over) {
            said = good && over > 0 ? SCANNED : -1;
            break;
        }
    }
    add(f, run, pos);
    f->start = pos;
    return said;
}

static int scan_chunks(const Pump *p, Flow *f, PyObject *memory, uint64_t early) {
    const bool wide = p->link == EXTENDED, same = p->client == p->link;
    const bool simple_stays = p->client != EXTENDED && !wide, chunk_stays = same && !wide;
    const uint32_t magic = wide ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC;
    const Py_ssize_t head = wide ? EXTENDED_CHUNK_BYTES : CHUNK_BYTES, least = wide ? head : SIMPLE_REPLY_BYTES;
    Py_ssize_t pos = f->start, run = pos;
    int said = holds(value(p, at_read_left)) ? resume(p, f, &run, &pos) : 1;
    while (said > 0 && f->end - pos >= least) {
        unsigned char *at = f->bytes + pos;
        const Py_ssize_t here = f->end - pos;
        const uint32_t its_magic = get32(at), word = get32(at + WORD_AT);
        const bool is_data = word == (DONE_BIT | OFFSET_DATA) && its_magic == magic;
        Py_ssize_t is_short = 0; /* the length of a reply that says success, and no more */
        if (!word && its_magic == SIMPLE_REPLY_MAGIC && simple_stays) {
            is_short = SIMPLE_REPLY_BYTES;
        } else if (word == DONE_BIT && its_magic == magic && chunk_stays && here >= head && !get32(at + 16)) {
            is_short = head;
        }
        Command command;
        if (!(is_data || is_short) || (is_data && here < head + OFFSET_BYTES) || !has_room(f)) {
            said = 0;
            break;
        }
        said = find(p, get64(at + COOKIE_AT), &command);
        if (said <= 0) {
            break;
        }
        const uint64_t asked = command.word & 0xFFFF;
        bool good = true;
        if (is_data) {
            const uint64_t size = wide ? get64(at + 24) : get32(at + 16), offset = get64(at + head);
            const bool echoed = !wide || get64(at + OFFSET_AT) == offset;
            if (asked != READ || command.word & ASK || offset != command.offset || !echoed ||
                size < OFFSET_BYTES || size - OFFSET_BYTES != command.length) {
                forget(&command);
                said = 0;
                break;
            }
            const Py_ssize_t content = pos + head + OFFSET_BYTES;
            const bool whole = command.length <= (uint64_t)(f->end - content);
            if (same) {
                put64(at + COOKIE_AT, command.cookie);
                put64(at + head, offset - p->base);
                if (wide) {
                    put64(at + OFFSET_AT, offset - p->base);
                }
                if (!whole) {
                    put32(at + WORD_AT, OFFSET_DATA);
                }
            } else {
                add(f, run, pos);
                add_data_head(p, f, &command, whole);
                run = content;
            }
            good = take_data(p, f, &command, content, &pos, p->client != SIMPLE);
        } else {
            if (asked == READ || asked == BLOCK_STATUS || command.word & ASK || command.ours >= early) {
                forget(&command);
                said = 0;
                break;
            }
            good = note_answered(p, memory, &command);
            put64(at + COOKIE_AT, command.cookie);
            pos += is_short;
        }
        good = good && end_command(p, &command);
        forget(&command);
        const int over = good && !(command.ours & FEW) ? takes(p) : 0;
        if (!good || over) {
            said = good && over > 0 ? SCANNED : -1;
            break;
        }
    }
    add(f, run, pos);
    f->start = pos;
    return said;
}

/* --- What the hub calls */

/* Says what Python is told when a scan was not the usual one, or NULL if an error was raised. */
static PyObject *hand_over(const Pump *p, Flow *f, int said) {
    if (said == -1 || !note(p, f) || !lay(p, f, 0, 0)) {
        return NULL;
    }
    return PyLong_FromLong(said == 0 ? GO_ON : said);
}

/* Whether `Memory.look_for_news` would find any. */
static bool has_news(const Pump *p, PyObject *memory) {
    PyObject *losses = value_in(p, memory, at_losses), *witnesses = value_in(p, memory, at_witnesses);
    return !named_is(losses, s_last_news, value_in(p, memory, at_seen_news)) ||
           !named_is(witnesses, s_gone_over, value_in(p, memory, at_seen_gone_over));
}

/* How many requests may be begun here, or 0: it is not the usual case. Negative: an error is raised. */
static int64_t usual_requests(const Pump *p, PyObject *memory) {
    if ((memory != NULL && has_news(p, memory)) || value(p, at_gate) != Py_None || holds(value(p, at_lost)) ||
        named_holds(p->fences, s_standing)) {
        return 0;
    }
    return room(p);
}

/* Our least cookie to which a reply may be early (UINT64_MAX: there is none), or 0: it is not the usual case.
   `PyErr_Occurred` says whether an error is raised. */
static uint64_t usual_replies(const Pump *p) {
    if (holds(value(p, at_unsent)) || holds(value(p, at_partial)) ||
        (p->at_gathering && holds(value_at(p->of[REPLIES], p->at_gathering)))) {
        return 0;
    }
    const uint64_t half_sent = number(value(p, at_half_sent));
    return half_sent ? half_sent : UINT64_MAX;
}

static int scan_replies(const Pump *p, Flow *f, PyObject *memory, uint64_t early) {
    return p->link == SIMPLE ? scan_simple(p, f, memory, early) : scan_chunks(p, f, memory, early);
}

static PyObject *do_requests(Pump *p, PyObject *memory) {
    const int64_t before = usual_requests(p, memory);
    if (before <= 0) {
        return before < 0 ? NULL : PyLong_FromLong(NOT_MINE);
    }
    flow.from = p->client_fd;
    flow.to = p->link_fd;
    int said = prepare(p, &flow, p->of[REQUEST_LANE]);
    if (said <= 0) {
        return said < 0 ? NULL : PyLong_FromLong(NOT_MINE);
    }
    said = receive(p, &flow);
    if (said == -1) {
        return NULL;
    }
    if (said < 0) {
        return PyLong_FromLong(said);
    }
    if (said > 0) {
        said = scan_requests(p, &flow, memory, before);
        if (said != 1) {
            return hand_over(p, &flow, said);
        }
        const Py_ssize_t unscanned = flow.end - flow.start;
        said = send_all(p, &flow);
        if (said == -1) {
            return NULL;
        }
        if (said == SEND_FAILED) {
            return PyLong_FromLong(said);
        }
        const int64_t after = room(p);
        if (after < 0) {
            return NULL;
        }
        if (!said || !after || unscanned >= REQUEST_BYTES) {
            return PyLong_FromLong(SCANNED);
        }
    }
    return crowd(p);
}

static PyObject *do_replies(Pump *p, PyObject *memory) {
    PyObject *key, *entry;
    Py_ssize_t first = 0;
    if (PyDict_Next(p->in_flight, &first, &key, &entry)) {
        const uint64_t word = is_entry(entry) ? number(PyTuple_GET_ITEM(entry, 1)) : 0;
        if (PyErr_Occurred()) {
            return NULL;
        }
        if ((word & 0xFFFF) == BLOCK_STATUS) {
            return PyLong_FromLong(NOT_MINE);
        }
    }
    const uint64_t early = usual_replies(p);
    if (PyErr_Occurred() || !early) {
        return PyErr_Occurred() ? NULL : PyLong_FromLong(NOT_MINE);
    }
    flow.from = p->link_fd;
    flow.to = p->client_fd;
    int said = prepare(p, &flow, p->of[REPLY_LANE]);
    if (said <= 0) {
        return said < 0 ? NULL : PyLong_FromLong(NOT_MINE);
    }
    said = receive(p, &flow);
    if (said == -1) {
        return NULL;
    }
    if (said < 0) {
        return PyLong_FromLong(said);
    }
    if (said > 0) {
        said = scan_replies(p, &flow, memory, early);
        if (said != 1) {
            return hand_over(p, &flow, said);
        }
        said = send_all(p, &flow);
        if (said == -1) {
            return NULL;
        }
        if (said == SEND_FAILED) {
            return PyLong_FromLong(said);
        }
        if (!said) {
            return PyLong_FromLong(SCANNED);
        }
    }
    if (memory != NULL && holds(value_in(p, memory, at_answered))) {
        PyObject *done = PyObject_CallMethodOneArg(memory, s_remember, value(p, at_last_cookie));
        if (done == NULL) {
            return NULL;
        }
        Py_DECREF(done);
    }
    PyObject *requests = p->of[REQUEST_LANE];
    if (value_in(p, requests, at_segment) != Py_None) {
        PyObject *done = PyObject_CallMethodNoArgs(requests, s_release_what_nobody_needs);
        if (done == NULL) {
            return NULL;
        }
        Py_DECREF(done);
    }
    const int64_t after = room(p);
    if (after < 0) {
        return NULL;
    }
    if (!after || !is_usual(p)) {
        return PyLong_FromLong(SCANNED);
    }
    return crowd(p);
}

/* `memory`: the session's, or NULL. It stays while the call lasts, whatever Python does meanwhile. */
static PyObject *step(Pump *p, PyObject *(*what)(Pump *p, PyObject *memory)) {
    if (at_work || p->of[SESSION] == NULL || p->client_fd < 0 || p->link_fd < 0 || !is_usual(p)) {
        return PyLong_FromLong(NOT_MINE);
    }
    at_work = true;
    PyObject *memory = Py_NewRef(value(p, at_memory));
    PyObject *said = begin_turn(p) ? what(p, memory == Py_None ? NULL : memory) : NULL;
    Py_DECREF(memory);
    Py_CLEAR(flow.segment);
    at_work = false;
    return said;
}

static PyObject *pump_requests(PyObject *self, PyObject *Py_UNUSED(none)) {
    return step((Pump *)self, do_requests);
}

static PyObject *pump_replies(PyObject *self, PyObject *Py_UNUSED(none)) {
    return step((Pump *)self, do_replies);
}

/* --- What a lane calls that receives and sends by itself */

static int feed_requests(const Pump *p, PyObject *memory) {
    const int64_t room = usual_requests(p, memory);
    return room <= 0 ? (int)room : scan_requests(p, &flow, memory, room);
}

static int feed_replies(const Pump *p, PyObject *memory) {
    const uint64_t early = usual_replies(p);
    if (PyErr_Occurred()) {
        return -1;
    }
    return early ? scan_replies(p, &flow, memory, early) : 0;
}

/* Scans what is in a lane's buffer; what a scan comes to. */
static int scan_lane(Pump *p, PyObject *lane, int (*feed)(const Pump *p, PyObject *memory)) {
    PyObject *segment = value_in(p, lane, at_segment);
    if (segment == Py_None) {
        return 0;
    }
    begin(&flow, lane);
    flow.start = PyLong_AsSsize_t(value_in(p, lane, at_start));
    flow.end = PyErr_Occurred() ? 0 : PyLong_AsSsize_t(value_in(p, lane, at_end));
    if (PyErr_Occurred() || !take_segment(p, &flow, segment) || !is_within(&flow)) {
        return -1;
    }
    PyObject *memory = Py_NewRef(value(p, at_memory));
    const int said = feed(p, memory == Py_None ? NULL : memory);
    Py_DECREF(memory);
    return said == -1 || !note(p, &flow) || !lay(p, &flow, 0, 0) ? -1 : said;
}

/* True: all is done that `feed` would do. False: it has to go on where the lane says. */
static PyObject *scan(Pump *p, int lane, int (*feed)(const Pump *p, PyObject *memory)) {
    if (at_work || p->of[lane] == NULL || !is_usual_scan(p)) {
        return Py_NewRef(Py_False);
    }
    at_work = true;
    const int said = scan_lane(p, p->of[lane], feed);
    Py_CLEAR(flow.segment);
    at_work = false;
    return said == -1 ? NULL : PyBool_FromLong(said);
}

static PyObject *pump_scan_requests(PyObject *self, PyObject *Py_UNUSED(none)) {
    return scan((Pump *)self, REQUEST_LANE, feed_requests);
}

static PyObject *pump_scan_replies(PyObject *self, PyObject *Py_UNUSED(none)) {
    return scan((Pump *)self, REPLY_LANE, feed_replies);
}

/* --- The object */

static int pump_traverse(PyObject *self, visitproc visit, void *arg) {
    Pump *p = (Pump *)self;
    Py_VISIT(Py_TYPE(self));
    for (int n = 0; n < OBJECTS; n++) {
        Py_VISIT(p->of[n]);
    }
    Py_VISIT(p->in_flight);
    Py_VISIT(p->jobs);
    Py_VISIT(p->fences);
    Py_VISIT(p->kin);
    Py_VISIT(p->pool);
    Py_VISIT(p->free_segments);
    Py_VISIT(p->client_framing);
    Py_VISIT(p->segment_type);
    Py_VISIT(p->memory_type);
    return 0;
}

static int pump_clear(PyObject *self) {
    Pump *p = (Pump *)self;
    for (int n = 0; n < OBJECTS; n++) {
        Py_CLEAR(p->of[n]);
    }
    Py_CLEAR(p->in_flight);
    Py_CLEAR(p->jobs);
    Py_CLEAR(p->fences);
    Py_CLEAR(p->kin);
    Py_CLEAR(p->pool);
    Py_CLEAR(p->free_segments);
    Py_CLEAR(p->client_framing);
    Py_CLEAR(p->segment_type);
    Py_CLEAR(p->memory_type);
    return 0;
}

static void pump_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pump_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Finds where an attribute lies in the objects of a class. The name is the interned one, which the class has: the
   interpreter's cache of attributes keeps whatever string it was asked for, and a new one for each session would
   hold a place amidst what the session leaves. */
static bool find_slot(PyTypeObject *type, const char *name, Py_ssize_t *at) {
    PyObject *its = PyUnicode_InternFromString(name);
    PyObject *descriptor = its == NULL ? NULL : PyObject_GetAttr((PyObject *)type, its);
    Py_XDECREF(its);
    if (descriptor == NULL) {
        return false;
    }
    bool found = Py_TYPE(descriptor) == &PyMemberDescr_Type;
    if (found) {
        const PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        found = member->type == T_OBJECT_EX && member->offset > 0;
        *at = member->offset;
    }
    Py_DECREF(descriptor);
    if (!found) {
        PyErr_Format(PyExc_TypeError, "%s of %s has no slot", name, type->tp_name);
    }
    return found;
}

/* Adds what a word must not touch: (starts, ends). Says whether there was room; the error, if there is one, is
   Python's. */
static bool add_ranges(Pump *p, PyObject *ranges) {
    if (!PyTuple_Check(ranges) || PyTuple_GET_SIZE(ranges) != 2) {
        PyErr_SetString(PyExc_TypeError, "ranges are (starts, ends)");
        return false;
    }
    PyObject *starts = PyTuple_GET_ITEM(ranges, 0), *ends = PyTuple_GET_ITEM(ranges, 1);
    if (!PyTuple_Check(starts) || !PyTuple_Check(ends) || PyTuple_GET_SIZE(starts) != PyTuple_GET_SIZE(ends)) {
        PyErr_SetString(PyExc_TypeError, "each range has a start and an end");
        return false;
    }
    const Py_ssize_t count = PyTuple_GET_SIZE(starts);
    if (count > MAX_RANGES - p->ranges) {
        return false;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        Range *its = &p->range[p->ranges + n];
        its->start = number(PyTuple_GET_ITEM(starts, n));
        its->end = PyErr_Occurred() ? 0 : number(PyTuple_GET_ITEM(ends, n));
        if (PyErr_Occurred()) {
            return false;
        }
    }
    p->ranges += (int)count;
    return true;
}

/* Finds a word that was added whose ranges are these, for most commands share them. */
static const Word *word_with(const Pump *p, PyObject *const *whose, PyObject *ranges) {
    for (int n = 0; n < p->words; n++) {
        if (PyObject_RichCompareBool(whose[n], ranges, Py_EQ) == 1) {
            return &p->word[n];
        }
    }
    PyErr_Clear(); /* what cannot be compared is no other's */
    return NULL;
}

static bool add_words(Pump *p, PyObject *fast) {
    PyObject *key, *rule, *whose[MAX_WORDS];
    Py_ssize_t at = 0;
    while (PyDict_Next(fast, &at, &key, &rule)) {
        if (!PyTuple_Check(rule) || PyTuple_GET_SIZE(rule) != 3) {
            PyErr_SetString(PyExc_TypeError, "a word has (longest, sent, ranges)");
            return false;
        }
        const uint64_t its = number(key);
        if (PyErr_Occurred()) {
            return false;
        }
        const bool is_ranged = (its & 0xFFFF) < RANGED_COMMANDS;
        if (!is_ranged || p->words == MAX_WORDS) {
            continue; /* Python looks at those */
        }
        PyObject *ranges = PyTuple_GET_ITEM(rule, 2);
        const Word *like = ranges == Py_None ? NULL : word_with(p, whose, ranges);
        const int from = like == NULL ? p->ranges : like->from;
        if (ranges != Py_None && like == NULL && !add_ranges(p, ranges)) {
            if (PyErr_Occurred()) {
                return false;
            }
            continue; /* and at those with too many ranges */
        }
        whose[p->words] = ranges;
        Word *word = &p->word[p->words++];
        word->from = from;
        word->to = like == NULL ? p->ranges : like->to;
        word->word = (uint32_t)its;
        word->longest = number(PyTuple_GET_ITEM(rule, 0));
        word->sent = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(rule, 1));
        if (PyErr_Occurred()) {
            return false;
        }
    }
    return true;
}

/* Finds where all attributes lie that are read and set here. */
static bool find_slots(Pump *p) {
    PyObject *const types[] = {p->memory_type, p->segment_type};
    for (int n = 0; n < ATTRIBUTE_COUNT; n++) {
        const int holder = attributes[n].holder;
        PyObject *type = holder < OBJECTS ? (PyObject *)Py_TYPE(p->of[holder]) : types[holder - OBJECTS];
        if (!find_slot((PyTypeObject *)type, attributes[n].name, &p->at[n])) {
            return false;
        }
    }
    p->at_gathering = 0;
    if (p->link != SIMPLE && !find_slot(Py_TYPE(p->of[REPLIES]), "_gathering", &p->at_gathering)) {
        return false;
    }
    if (Py_TYPE(p->of[REQUEST_LANE]) != Py_TYPE(p->of[REPLY_LANE])) {
        PyErr_SetString(PyExc_TypeError, "both lanes are of one class");
        return false;
    }
    return true;
}

/* Takes the terms in numbers. */
static bool take_terms(Pump *p, PyObject *fast, PyObject *size, PyObject *base, PyObject *mask) {
    p->words = p->ranges = 0;
    p->size = number(size);
    p->base = PyErr_Occurred() ? 0 : number(base);
    p->mask = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLongMask(mask); /* -1 is all bits */
    if (PyErr_Occurred() || !add_words(p, fast)) {
        return false;
    }
    if (p->base > UINT64_MAX - p->size) {
        PyErr_SetString(PyExc_ValueError, "an export ends behind the last offset");
        return false;
    }
    if (p->client < SIMPLE || p->client > EXTENDED || p->link < SIMPLE || p->link > EXTENDED) {
        PyErr_SetString(PyExc_ValueError, "there is no such framing");
        return false;
    }
    return true;
}

static int pump_init(PyObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"objects",        "types",     "in_flight", "jobs",   "fences", "kin",  "pool", "free",
                            "client_framing", "client_fd", "link_fd",   "client", "link",   "fast", "size", "base",
                            "mask",           NULL};
    Pump *p = (Pump *)self;
    PyObject *objects, *memory_type, *segment_type, *fast, *size, *base, *mask;
    PyObject *in_flight, *jobs, *fences, *kin, *pool, *free_segments, *framing;
    int client_fd, link_fd, client, link;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "$O!(O!O!)O!OOOOOOiiiiO!OOO", names, &PyTuple_Type,
                                     &objects, &PyType_Type, &memory_type, &PyType_Type, &segment_type,
                                     &PyDict_Type, &in_flight, &jobs, &fences, &kin, &pool, &free_segments, &framing,
                                     &client_fd, &link_fd, &client, &link, &PyDict_Type, &fast, &size, &base,
                                     &mask)) {
        return -1;
    }
    if (PyTuple_GET_SIZE(objects) != OBJECTS) {
        PyErr_SetString(PyExc_TypeError, "other objects than a session has");
        return -1;
    }
    if (p->memory_type != NULL) {
        PyErr_SetString(PyExc_TypeError, "a pump is of one session");
        return -1;
    }
    for (int n = 0; n < OBJECTS; n++) {
        p->of[n] = Py_NewRef(PyTuple_GET_ITEM(objects, n));
    }
    p->memory_type = Py_NewRef(memory_type);
    p->segment_type = Py_NewRef(segment_type);
    p->in_flight = Py_NewRef(in_flight);
    p->jobs = Py_NewRef(jobs);
    p->fences = Py_NewRef(fences);
    p->kin = Py_NewRef(kin);
    p->pool = Py_NewRef(pool);
    p->free_segments = Py_NewRef(free_segments);
    p->client_framing = Py_NewRef(framing);
    p->client_fd = client_fd;
    p->link_fd = link_fd;
    p->client = client;
    p->link = link;
    if (!take_terms(p, fast, size, base, mask) || !find_slots(p)) {
        pump_clear(self); /* so that it does nothing */
        return -1;
    }
    return 0;
}

static PyObject *pump_error(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(((Pump *)self)->error);
}

static PyMethodDef pump_methods[] = {
    {"requests", pump_requests, METH_NOARGS, "The client's socket can be read: do the step, or say who has to."},
    {"replies", pump_replies, METH_NOARGS, "The same for the link's."},
    {"scan_requests", pump_scan_requests, METH_NOARGS, "Scan what the client sent; say whether that is all."},
    {"scan_replies", pump_scan_replies, METH_NOARGS, "The same for what the link sent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pump_attributes[] = {
    {"error", pump_error, NULL, "The errno of what has failed last.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_doc, "The usual steps of one session, or their scans."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, pump_init},
    {Py_tp_dealloc, pump_dealloc},
    {Py_tp_traverse, pump_traverse},
    {Py_tp_clear, pump_clear},
    {Py_tp_methods, pump_methods},
    {Py_tp_getset, pump_attributes},
    {0, NULL},
};

static PyType_Spec pump_spec = {
    .name = "gateway.hub._pump.Pump",
    .basicsize = sizeof(Pump),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = pump_slots,
};

static bool intern_all(void) {
    const struct {
        PyObject **where;
        const char *text;
    } all[] = {
        {&s_standing, "standing"},
        {&s_claims, "claims"},
        {&s_waiting, "waiting"},
        {&s_bytes, "bytes"},
        {&s_last_news, "last_news"},
        {&s_gone_over, "gone_over"},
        {&s_take, "take"},
        {&s_takes, "takes"},
        {&s_release, "release"},
        {&s_release_what_nobody_needs, "release_what_nobody_needs"},
        {&s_remember, "remember"},
        {&s_end, "end"},
        {&s_part, "part"},
    };
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) {
        if (*all[n].where == NULL && (*all[n].where = PyUnicode_InternFromString(all[n].text)) == NULL) {
            return false;
        }
    }
    zero = zero == NULL ? PyFloat_FromDouble(0.0) : zero;
    no_bytes = no_bytes == NULL ? PyBytes_FromStringAndSize(NULL, 0) : no_bytes;
    return zero != NULL && no_bytes != NULL;
}

static struct PyModuleDef pump_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_pump",
    .m_doc = "The usual case of a session, compiled; gateway/hub/pump.py says when it is used.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__pump(void) {
    static const struct {
        const char *name;
        long value;
    } numbers[] = {
        {"NOT_MINE", NOT_MINE},
        {"GO_ON", GO_ON},
        {"SCANNED", SCANNED},
        {"RECEIVE_FAILED", RECEIVE_FAILED},
        {"SEND_FAILED", SEND_FAILED},
        {"MIN_FREE_BYTES", MIN_FREE_BYTES},
        {"MIN_MESSAGE_BYTES", MIN_MESSAGE_BYTES},
        {"MAX_FREE_BUFFERS", MAX_FREE_BUFFERS},
        {"MAX_COPIED_BYTES", MAX_COPIED_BYTES},
        {"FEW", FEW},
        {"FEW_COMMANDS", FEW_COMMANDS},
        {"CALM_STEPS", CALM_STEPS},
        {"SMALL_BYTES", SMALL_BYTES},
        {"MAX_JOB_BYTES", MAX_JOB_BYTES},
        {"MAX_KEPT_BYTES", MAX_KEPT_BYTES},
        {"RANGED_COMMANDS", RANGED_COMMANDS},
    };
    PyObject *module = intern_all() ? PyModule_Create(&pump_module) : NULL;
    PyObject *type = module == NULL ? NULL : PyType_FromSpec(&pump_spec);
    bool good = type != NULL && PyModule_AddObjectRef(module, "Pump", type) == 0;
    Py_XDECREF(type);
    for (size_t n = 0; good && n < sizeof numbers / sizeof *numbers; n++) {
        good = PyModule_AddIntConstant(module, numbers[n].name, numbers[n].value) == 0;
    }
    good = good && PyModule_AddStringConstant(module, "MADE_OF", MADE_OF) == 0;
    if (!good) {
        Py_CLEAR(module);
    }
    return module;
}

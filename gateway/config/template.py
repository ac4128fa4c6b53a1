"""The file that `nbd-gateway init` writes: a configuration that is its own manual.

Whatever is commented out with one "#" shows the default or an example; prose has "# " and stays.
"""

TEMPLATE = """\
# gateway.toml: configuration of nbd-gateway.
#
#   nbd-gateway check gateway.toml             says what is wrong, or what would be served
#   nbd-gateway serve --config gateway.toml    serves it
#
# Keys that are commented out show their default or an example. Durations are in seconds.

# Files with more of [[listen]], [upstream.NAME], [[export]] and [[rule]], as in ["conf.d/*.toml"]
#include = []

# Whom to become once all is listened on, for a gateway that root starts; the group is the user's own.
#user = "nobody"
#group = "nogroup"

# After SIGTERM, how long sessions may go on before they are ended.
#leave-seconds = 0
# When they are ended, how long requests in flight may take before connections are cut.
#drain-seconds = 30

# Processes that serve: disks are spread over them (docs/workers.md). "auto": one for each processor.
#workers = 1

# ---- where clients connect: any number of [[listen]] ----

[[listen]]
# nbd://HOST:PORT, nbd+unix:///?socket=PATH or nbd+vsock://CID:PORT; [::] is all of IPv6 and IPv4
uri = "nbd://127.0.0.1:10810"
# Clients at a time; more are hung up on.
#max-connections = 1000
# From connecting to the end of the negotiation.
#handshake-seconds = 10
# A session ends in good order after so long, for clients that connect again; 0: as long as it likes.
#lifetime-seconds = 0
# TCP asks an idle client after so long whether it is still there; 0 never asks.
#keepalive-seconds = 60
# TCP gives up a client that acknowledges nothing for so long; 0 leaves it to the kernel.
#user-timeout-seconds = 60
# What is offered to clients; nbd-client 3.1 to 3.8 needs ["FIXED_NEWSTYLE"], or sees a read-only device.
#handshake-flags = ["FIXED_NEWSTYLE", "NO_ZEROES"]
# TLS ("nbd-gateway pki init DIR" makes certificates for trying it out):
#[[listen]]
#uri = "nbd://127.0.0.1:10812"
# off, allow (for clients that want it) or require
#tls = "require"
# ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem, as nbdkit, qemu and libnbd name them
#certificates = "/etc/pki/nbd"
# Whether clients need a certificate of that CA.
#verify-client = true
# A file of pre-shared keys, as psktool makes it, lets clients in as well:
#psk = "/etc/nbd/keys.psk"

# A Unix socket may have permissions and an owner ("user", "user:group" or ":group"):
#[[listen]]
#uri = "nbd+unix:///?socket=/run/nbd-gateway.sock"
#socket-mode = "0660"
#socket-owner = ":disk"

# systemd listens, and hands the socket over by this name (FileDescriptorName= of a socket unit):
#[[listen]]
#uri = "nbd://0.0.0.0:10814"
#descriptor = "nbd"

# Load balancers in these networks say, with the PROXY protocol, who a client is; on a Unix socket, ["unix"]:
#[[listen]]
#uri = "nbd://127.0.0.1:10813"
#proxy-protocol = ["10.0.0.0/8", "2001:db8::5"]

# qemu up to 2.5 and nbd-client before 3.10 cannot ask for an export unless they are told a name. Greeted
# oldstyle, they need not ask:
#[[listen]]
#uri = "nbd://127.0.0.1:10811"
#style = "oldstyle"
# What they get; without it, the default export.
#export = "vm-1"

# ---- the servers behind the gateway: any number of [upstream.NAME] ----

# Without any [[export]] below, all export names pass through to the only upstream.
[upstream.main]
# An NBD URI, or an embedded server to try things out: memory:1G, file:disk.img, legacy:qemu-3.0
uri = "nbd://127.0.0.1:10809"
# How long a connection may take to come about, with repeated attempts while the server restarts.
#connect-seconds = 10
# How long the server may take until an export is open, all its answers together.
#negotiate-seconds = 30
# As for clients above.
#keepalive-seconds = 60
#user-timeout-seconds = 60
# What the server gets wrong is recognised and repaired: "auto", a list of names, or [] for nothing.
#quirks = "auto"
# All addresses of the server's name lead to the same disks; otherwise the first that answers is kept to.
#same-storage = false
# Believe base:allocation of qemu 2.11 to 3.1: only if it runs without --offset and --partition.
#trust-allocation = false
# Every export name of the server is a disk of its own: parts of blocks need not keep out of each other's way.
#canonical-names = false

# Connections to it: "per-client" (one for each client), "shared" (one for all clients of an export), 4 (four
# for each client) or "shared:4". Where several would not be safe there is one, and the log says why.
#connections = "per-client"
# How long clients wait for a server whose connection was lost; 0 ends them with it.
#reconnect-seconds = 60
# What was answered and not flushed then: sticky fails the next FLUSH; verify, replay and assume-durable below.
#unflushed = "sticky"
# Whether it is the same disk afterwards: check reads back some of what was flushed; trust does not, for disks
# that others write to as well.
#identity = "check"
# What was not answered then: reissue sends it again, eio fails it.
#unknown-writes = "reissue"
# How long it is held back before that, since the old server may still be at it; and newer writes over one that
# is there already.
#late-write-seconds = 30
# The process that listens at a Unix socket is the one that writes: nothing is held back when it has ended.
#server-is-peer = false
# After so long without any answer, reads are tried over another connection; 0 waits.
#stall-seconds = 0
# So many connections are kept ready for the next clients, once one was served.
#warm = 0
# Connect so often to see whether the server is there, while no client does; 0 never does.
#health-check-seconds = 0
# /readyz of [admin] says that the gateway is not ready while this server is down.
#required = false

# Several connections: which of them a request takes goes by its offset, in turns of stripe bytes.
#[upstream.fast]
#uri = "nbd://server.example:10811"
#connections = 4
#stripe = "1M"
# "strong": what one connection wrote is seen over the others at once, not only after a FLUSH (but then without
# stripe, for any connection may be taken).
#coherence = "flush"
# Refuse exports that cannot have several.
#connections-required = false

# Clients that notice nothing of a server that is killed and started again: what it had not flushed is written
# again, from up to replay-bytes for an export, which only the sole writer of the disks may do.
#[upstream.kept]
#uri = "nbd://server.example:10812"
#connections = "shared"
#unflushed = "replay"
#sole-writer = true
#replay-bytes = "256M"

# A server over TLS: ca-cert.pem and perhaps client-cert.pem and client-key.pem, or a pre-shared key
#[upstream.secure]
#uri = "nbds://server.example:10809"
#certificates = "/etc/pki/nbd-client"
#[upstream.keyed]
#uri = "nbds://server.example:10810"
#psk = "/etc/nbd/keys.psk"
#psk-user = "gateway"

# Several servers of one disk: the next one if one is down. For read-only exports; for others, same-storage
# has to say that they all write to the same disk.
#[upstream.images]
#uris = ["nbd://host-a:10809", "nbd://host-b:10809"]
# Connections to an upstream at a time; who is too many waits connect-seconds for one to end.
#max-connections = 10

# Instead of a URI, a server to start by systemd socket activation:
#[upstream.local]
#command = ["qemu-nbd", "-f", "qcow2", "-t", "/var/lib/images/disk.qcow2"]

# ---- which names lead where: any number of [[export]], the first match wins ----

#[[export]]
# An exact name, or (without any [[rule]] below) a pattern with * ? [abc]; "" is the default export.
#name = "vm-1"
#upstream = "main"
# The name to ask the server for; without it, the one that the client asked for.
#upstream-name = "disk0"
# What a list of exports shows beside the name.
#description = "VM disk"
# Where the server's blocks are larger than a byte: rmw (read, change and write whole blocks), error or refuse.
#unaligned = "rmw"
# Offer base:allocation where the server has none, with all of the disk allocated.
#synthesise-allocation = false
# Only for clients over TLS.
#tls = "require"
# Refuse whatever would change the disk.
#read-only = false
# Hide dirty bitmaps that may change while a client reads them, because the disk is writable for others.
#contexts.stable-only = false
# Policies for all clients, the first nearest to them; "nbd-gateway policies" lists what there is.
#policies = [ { use = "limit", connections = 4 } ]
# To whom it is denied, there is no such export at all.
#hide = false

# ---- who may reach what: any number of [[rule]], the first match wins ----

# Without any, everybody may reach everything; with one, whom none matches is denied.
#[[rule]]
# What the log and "explain" call it; without a name, it is known by its number.
#name = "backup"
# All keys of who must hold, and a list means any of its members. Without who, everybody is meant.
# Of a client's certificate: patterns of its only CN, its issuer's, its DNS names and URIs; its SHA-256
#who.certificate.cn = "backup-*"
#who.certificate.issuer-cn = "Backup CA"
#who.certificate.san-dns = ["*.backup.example", "backup.example"]
#who.certificate.san-uri = "spiffe://example/backup/*"
#who.certificate.fingerprint = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
# Networks or addresses that clients come from
#who.network = ["10.0.0.0/8", "2001:db8::5"]
# Whether they come over TLS
#who.tls = true
# Names of [[export]]s, or patterns of them
#exports = ["vm-*"]
# true: only for exports that are made at run time (see [tickets]); false: for none of them
#tickets = false
# Policies for these clients, before those of the export
#policies = [ { use = "readonly" }, { use = "contexts", allow = ["base:allocation"] } ]
# observe: what the rule and its policies would refuse is logged, and passes.
#mode = "enforce"
#[[rule]]
# The user of a pre-shared key
#who.psk-user = "guest-*"
# Who is denied is told so or, with hide, that there is no such export.
#deny = true
#hide = true
# End sessions that are open when the rule comes into force.
#disconnect = true
#[[rule]]
# Who connects to a Unix socket, by name or number
#who.unix-user = ["root", 107]

# ---- what is written to standard error ----

[log]
# debug, info, warning or error
#level = "info"
# console for people, json for programs
#format = "console"

# ---- how the gateway is spoken to while it runs ----

[control]
# For "nbd-gateway reload": a Unix socket, which only the gateway's user and root may connect to.
#socket = "/run/nbd-gateway/control.sock"
# Take this file up whenever it has changed.
#reload-on-change = false

# ---- metrics, health, an API and a page for browsers, over HTTP ----

#[admin]
# Where. Anything but loopback and a Unix socket needs tokens, or https with clients' certificates.
#uri = ["http://127.0.0.1:10811", "https://0.0.0.0:10812", "http+unix:///run/nbd-gateway/admin.sock"]
# Permissions of the Unix socket.
#socket-mode = "0600"
# A file with lines of "look NAME TOKEN" or "full NAME TOKEN".
#tokens = "/etc/nbd-gateway/tokens"
# For https: a directory of certificates, as for a listener; and whether clients need one of its CA.
#certificates = "/etc/pki/nbd-gateway"
#verify-client = true
# Names by which browsers reach it, beside addresses, localhost and the machine's own.
#hosts = "gateway.example.com"

# ---- exports that are made while it runs ----

[tickets]
# Where "nbd-gateway export add" keeps them, a file each. Without any [[export]], there are no others then.
#directory = "/var/lib/nbd-gateway/tickets"
# In place of that for a gateway of a fleet: its etcd has them, for all of its gateways.
#etcd = false

# ---- several gateways that serve as one, by way of etcd ----

# [fleet] does not go with a directory of [tickets], among others: docs/fleet.md has an example of it, and says
# what does.
"""

# What the stories in these folders have in common: a directory that is gone afterwards, gateways that end with the
# story, and saying what one should see. NBD_GATEWAY names the program, if it is not on the PATH.

set -eu
NBD_GATEWAY=${NBD_GATEWAY:-nbd-gateway}
command -v "$NBD_GATEWAY" >/dev/null || { echo "there is no $NBD_GATEWAY: install it, or set NBD_GATEWAY" >&2; exit 1; }

here=$(dirname "$(realpath "$0")")
# A Unix socket's path has 107 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/nbd-XXXXXX")
started=
finish() {
    status=$?
    trap - EXIT
    # Whoever was started a moment ago may not be in the list yet, and a signal that comes before it has become a
    # gateway is lost. So each is told until it has gone.
    for each in $started ${!:-}; do
        (while kill "$each" 2>/dev/null; do sleep 1; done) &
    done
    wait
    rm -rf "$work"
    [ $status != 0 ] || printf '\nThat is all; everything is cleaned up.\n'
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { # TEXT: what happens next
    printf '\n-- %s\n' "$*"
}

serve() { # NAME ARGUMENT...: have a gateway serve until the story ends; its log is NAME.log
    name=$1
    shift
    echo "\$ nbd-gateway serve $*"
    : >"$work/$name.log"
    "$NBD_GATEWAY" serve "$@" 2>"$work/$name.log" &
    serves=$!
    started="$started $serves"
    until grep -q listening "$work/$name.log"; do
        kill -0 $serves 2>/dev/null || { cat "$work/$name.log" >&2; exit 1; }
        sleep 0.05
    done
}

see() { # TEXT COMMAND...: run it, and show what it prints, in which TEXT has to be
    ends 0 "$@"
}

ends() { # STATUS TEXT COMMAND...: the same of one that ends with a status of its own
    wanted_status=$1 wanted=$2 status=0
    shift 2
    echo "\$ $*"
    shown=$("$@" 2>&1) || status=$?
    printf '%s\n' "$shown" | sed 's/^/    /'
    case $shown in
    *"$wanted"*) ;;
    *) echo "  you should see, and do not: $wanted" >&2; exit 1 ;;
    esac
    [ $status = "$wanted_status" ] || { echo "  its status should be $wanted_status, and is $status" >&2; exit 1; }
    echo "  you should see, and do: $wanted"
}

logged() { # TEXT NAME: wait until NAME.log has it, for a log is written a moment later
    until grep -q "$1" "$2.log"; do sleep 0.05; done
}

client() { # URI COMMAND COMMAND: qemu-io does the first, waits until there is a file "go on", and does the second
    {
        echo "$2"
        until [ -e "go on" ]; do sleep 0.05; done
        echo "$3"
    } | qemu-io -f raw "$1" >client.out 2>&1 &
    client=$!
    until grep -q wrote client.out; do
        kill -0 $client || { cat client.out >&2; exit 1; }
        sleep 0.05
    done
}

cd "$work"

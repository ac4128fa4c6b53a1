"""Tests: what is in a folder is for the room of `gateway` that has the same name.

    hub/, links/, losses/, sessions/  whole gateways or very many schedules, which a bare `pytest` does not read

These folders are for no room:

    policies/  each policy by itself, and what all of them keep to
    interop/   the gateway before and behind the real programs
    trixie/    the same with programs of Debian 13: `make test-trixie`
    packages/  what is handed out, in a Debian that has nothing else: `make test-packages`
    tools/     what tests of links that die are made with, beside the scripts of `make`
    fuzz/      garbage for whatever reads bytes of others: `make fuzz`
    sim/       a fleet of a thousand gateways, on paper: docs/scale.md
    bench/     the gateway's speed against its peers: `make bench`

Files beside the folders are for modules at the top of `gateway`, and for what is written: the maps of the house
(`test_house.py`), its words (`test_words.py`), the ways through it (`test_how_it_works.py`, of which `walks.py`
makes the lists), how a session ends (`test_ends_page.py`, of which `ends.py` draws the pictures; `pages.py`
puts both into their pages), the page of the log (`events.py` makes it), the readme and the examples, and
what is installed (`packing.py` loads the modules of packaging/ for them), pages whose commands are run
(`walkthrough.py`), and what the site's search finds (`test_search.py`).

A test file (`test_*.py`) imports no other. What several need is in a module beside them, which the folder's map
names.
"""

"""Takes the homes (`gateway.workers.homes`) away from the workers of whoever has this folder in PYTHONPATH:
each serves what comes to it. Python imports a module of this name before anything else.
"""

import sys

if "gateway.app.worker" in sys.orig_argv:
    from gateway.workers import member

    for name in ("_home_at", "check"):
        setattr(member.Member, name, lambda *_: None)

"""What a server may lose of what it has acknowledged, and who is told. Pure.

rule.py       what is lost, and which sessions have to be told: the one rule
unflushed.py  what was acknowledged, and not flushed since
witnesses.py  whether the disk that is found after a reconnect is the one that was left
survival.py   what becomes of clients when their connections are lost: what an operator chooses
"""

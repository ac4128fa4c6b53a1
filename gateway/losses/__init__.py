"""What a server may lose of what it has acknowledged, and who is told. Pure.

rule.py       what is lost, and which sessions have to be told: the one rule, clause by clause
telling.py    who has to be told
proofs.py     what is proved, and what FLUSHes wait for
records.py    what is known of each session, each link, each FLUSH
unflushed.py  what was acknowledged, and not flushed since
eras.py       the part of it that was acknowledged between two events, in whatever room there is
witnesses.py  whether the disk that is found after a reconnect is the one that was left
survival.py   what becomes of clients when their connections are lost: what an operator chooses
"""

"""What a server may lose of what it has acknowledged, and who is told. Pure.

rule.py       the one rule, clause by clause; what becomes of it when links come, answer and die
telling.py    who has to be told that something is lost, and what a FLUSH is answered
proofs.py     what is proved, and what FLUSHes wait for
records.py    what is known of each session, each link, each FLUSH
unflushed.py  what was acknowledged, and not flushed since
eras.py       the part of it that was acknowledged between two events, in whatever room there is
witnesses.py  whether the disk that is found after a reconnect is the one that was left
survival.py   what becomes of clients when their connections are lost: what an operator chooses
"""

"""What every line of the catalogue says of how it is known."""

from __future__ import annotations

import re

from gateway.quirks import How, Proof

VERSION = r"\b\d+\.\d+|\b(qemu-nbd|qemu-io) 10\b"
WRITTEN = r"\.(c|h|pod|md)\b|\b[0-9a-f]{7,}\b|#\d+"


def check_proof(proof: Proof) -> None:
    """Who has seen it says of which version; who has not says where it is written."""
    expected = VERSION if proof.how is How.SEEN else WRITTEN
    assert re.search(expected, proof.where), proof
    assert proof.how is not How.READ or re.search(r"\.[ch]\b", proof.where), proof

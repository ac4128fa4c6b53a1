"""All readers, by the names that their corpora have."""

from pathlib import Path

from tests.fuzz import negotiations, onlookers, scanners, texts

CORPUS = Path(__file__).with_name("corpus")
TARGETS = negotiations.TARGETS | scanners.TARGETS | onlookers.TARGETS | texts.TARGETS

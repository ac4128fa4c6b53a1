"""All readers, by the names that their corpora have."""

from pathlib import Path

from tests.fuzz import negotiations, onlookers, pump, scanners, texts

CORPUS = Path(__file__).with_name("corpus")
TARGETS = negotiations.TARGETS | scanners.TARGETS | pump.TARGETS | onlookers.TARGETS | texts.TARGETS

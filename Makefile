# make demo   the main job on an embedded upstream        make test   all tests
# make bench  speed against peers                         make lint   types, style, import rules
# make fuzz   garbage at all that reads a peer, minutes   make install  .venv with nbd-gateway in it
# make fuzz-coverage   the same by coverage (atheris, and clang for the pump), SECONDS for each of TARGETS (all)
# make bench-scale   what a request and an opening cost where there are many sessions, exports, policies, rules
# make bench-workers   what several workers give and cost, in pairs with one
# make soak   schedules of dying servers, with new seeds, for SECONDS
# make exhaustive   every order, clause and pair     make stress   all tests beside a load, three times
# make test-trixie   the tests that need peers of Debian 13; as root
# make test-sanitized   the data plane with sanitisers in the compiled pump
# make site   the documentation in site/, with all links checked; part of "make lint"
# make deb   a Debian package in dist/, for the Debian that it is made on
# make test-packages   packages in fresh Debians, by debootstrap; as root
# make dist   an sdist and wheels in dist/, each installed and tried where nothing else is

PYTHON ?= $(shell tests/tools/newest-python)
VENV   := .venv
BIN    := $(VENV)/bin

demo: install
	$(BIN)/nbd-gateway demo

install: $(VENV)/installed
$(VENV)/installed: pyproject.toml packaging/hook.py packaging/pump.py gateway/hub/_pump.c
	tests/tools/make-venv "$(PYTHON)" $(VENV) -e . --group test --group lint
	touch $@

# pip compiles what it installs, and of ours it has installed a link. Tests start thousands of gateways, and where
# PYTHONDONTWRITEBYTECODE is set each would compile all of it again, which is two fifths of what its start takes.
compiled: install
	$(BIN)/python -m compileall -q -j 0 gateway policies

# Two for each processor, for they wait for the programs of the field as much as they work.
PYTEST_ARGS ?= -n $(shell echo $$((2 * $$(nproc)))) --maxprocesses 16 --dist worksteal
test: compiled
	tests/tools/install-peers
	$(BIN)/python -m pytest -m "not exhaustive" $(PYTEST_ARGS)

exhaustive: compiled
	tests/tools/install-peers
	$(BIN)/python -m pytest -m exhaustive $(PYTEST_ARGS)

# Twice as many busy loops as processors, and all tests beside them, three times.
stress: compiled
	tests/tools/install-peers
	tests/tools/beside-a-load $(BIN)/python -m pytest -m "not exhaustive" $(PYTEST_ARGS)

# The tests of the data plane, with the sanitisers in the pump.
test-sanitized: install
	tests/tools/sanitized $(BIN)/python -m pytest -m "not exhaustive" $(PYTEST_ARGS) tests/hub tests/scan

test-trixie: install
	tests/tools/install-peers
	tests/tools/trixie make
	$(BIN)/python -m pytest -m real tests/trixie

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fuzz: install
	$(BIN)/python -m tests.fuzz

SECONDS ?= 60
fuzz-coverage: install
	tests/tools/make-venv "$(PYTHON)" $(VENV) --group fuzz
	$(BIN)/python -m tests.fuzz.by_coverage --seconds $(SECONDS) $(TARGETS)

soak: install
	$(BIN)/python -m tests.tools.soak --seconds $(SECONDS)

bench:
	tests/tools/install-peers
	tests/bench/run

bench-scale:
	tests/tools/install-peers
	tests/bench/run scale

bench-workers:
	tests/tools/install-peers
	tests/bench/run workers

site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

deb: install
	tests/tools/make-venv "$(PYTHON)" $(VENV) --group dist
	$(BIN)/python packaging/deb.py dist

test-packages: install
	tests/tools/install-peers --for-packages
	tests/tools/make-venv "$(PYTHON)" $(VENV) --group dist --group deploy
	$(BIN)/python -m pytest -m real tests/packages

dist: install
	tests/tools/make-venv "$(PYTHON)" $(VENV) --group dist
	$(BIN)/python packaging/dist.py dist

.PHONY: compiled demo install site dist deb test test-packages test-sanitized exhaustive stress test-trixie lint fuzz fuzz-coverage soak bench bench-scale bench-workers

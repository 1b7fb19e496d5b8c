# make demo, make test: on a fresh machine these set up everything themselves, then run.
SHELL := /bin/bash
# The first that runs and is new enough: a name on PATH may be a shim without a Python behind it.
PYTHON ?= $(shell for one in python3 python3.13 python3.12 python3.11; do \
  $$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(shell sed 's/\#.*//' tests/hosts/packages.txt)

.PHONY: help demo test test-all lint deps format clean
help:
	@echo 'make demo      first contact: this machine validated over real SSH, a report at the end'
	@echo 'make test      what runs here in 20 minutes or so, on real hosts in containers'
	@echo 'make test-all  the same, and the slow hosts: virtual machines, the real driver, upgrades'
	@echo 'make lint      ruff, mypy --strict, ansible-lint'

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.12'; exit 1; }
	@echo '== setting up $(VENV) (once; a few minutes, about 3 GB with torch and TensorFlow)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

# System packages: the one step that changes this machine. Announced, and only where root can do it. A program of a
# package's name that is there already will do: npm often comes with somebody else's nodejs, which Debian's conflicts with.
deps:
	@missing=; for one in $(PACKAGES); do command -v "$$one" >/dev/null || \
	  dpkg-query -W -f='$${Status}' "$$one" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$one"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "== this is not Debian or Ubuntu; what needs these is skipped:$$missing"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as=sudo; else \
	  echo "== not root: what needs these is skipped; to install them: sudo apt-get install$$missing"; exit 0; fi; \
	echo "== installing system packages for the tests and the demo:$$missing"; \
	$$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -qq --no-install-recommends $$missing >/dev/null

demo: deps $(VENV)/ready
	@$(BIN)/python tests/demo.py

QUICK := $(BIN)/python -m pytest -n auto --dist loadfile tests --ignore tests/host
# Hosts in containers, of all test files on one engine. They wait more than they work: more at once than there are cores.
HOSTS := $(BIN)/python -m tests.hosts.engine $(BIN)/python -m pytest -n 3 --dist loadfile --timeout 1200 tests/host

test: deps $(VENV)/ready lint
	$(QUICK)
	$(HOSTS) -m 'not slow'

test-all: deps $(VENV)/ready lint
	$(QUICK)
	$(HOSTS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/ansible-lint --offline --profile production playbooks

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .ansible

# Every target sets up .venv by itself and re-uses what is there. Needs Python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart

.PHONY: setup quickstart test test-slow lint clean

setup: $(VENV)/installed-report

quickstart: setup
	$(BIN)/mujax sweep --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(BIN)/mujax report --workdir=$(WORKDIR)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# installed-EXTRA: the package, editable, with that extra. The environment is made without its own pip
# (Debian's Python cannot put one there) and filled by the pip that is on the machine.
$(VENV)/installed-%: setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("mujax needs Python 3.11 or newer, not " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info

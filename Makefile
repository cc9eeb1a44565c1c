# make app    serve the page; options go into ARGS: make app ARGS="--model ffhq --port 7861"
# make test   format, lint and tests, the same that CI runs; options for pytest go into ARGS
# make fuzz   the tests with damaged and random input, fifty times as long; TIMES=500 for still longer
# All first make .venv and install into it what the requirements files name; later only when those files changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
TIMES ?= 50

.PHONY: app test fuzz
.DELETE_ON_ERROR:

app: $(VENV)/installed-app
	@$(BIN)/python app.py $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

fuzz: $(VENV)/installed-test
	E4E_FUZZ=$(TIMES) $(BIN)/python -m pytest tests/test_fuzz.py tests/test_unbreakable.py $(ARGS)

$(VENV)/installed-app: requirements.txt | $(VENV)/pyvenv.cfg
	@echo "Installing what the page needs into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/installed-test: $(wildcard requirements*.txt) | $(VENV)/pyvenv.cfg
	@echo "Installing what the page and its tests need into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) -r requirements-dev.txt
	@touch $@ $(VENV)/installed-app

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON); install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "$(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { echo "Python's venv is missing; on Debian and Ubuntu run: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

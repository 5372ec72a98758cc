# Each target sets up all it needs: a virtual environment with torch for the CPU, and this project in it.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo

.PHONY: demo test lint

demo: $(VENV)/.installed
	mkdir -p $(DEMO)
	$(VENV)/bin/python cli.py encode examples/photo.jpg -o $(DEMO)/photo.latent.pt --overwrite
	$(VENV)/bin/python cli.py decode $(DEMO)/photo.latent.pt -o $(DEMO)/photo.decoded.png --overwrite
	$(VENV)/bin/python cli.py reconstruct examples/photo.jpg -o $(DEMO)/side-by-side.png --overwrite
	@echo "The photograph and what came back, side by side: $(DEMO)/side-by-side.png"

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

# Each target sets up all it needs: a virtual environment with torch, and this project in it.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo

# The one of Stable Diffusion is for weights that are somebody else's.
NOTEBOOKS := $(filter-out 05_%,$(notdir $(basename $(wildcard analysis/notebooks/0*.py))))

.PHONY: help demo test lint docs package notebooks $(NOTEBOOKS)

help:  ## Say what the targets are (this list).
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Encode, decode and edit the photograph in examples/, into demo/.
	mkdir -p $(DEMO)
	$(VENV)/bin/python cli.py encode examples/photo.jpg -o $(DEMO)/photo.latent.pt --overwrite
	$(VENV)/bin/python cli.py decode $(DEMO)/photo.latent.pt -o $(DEMO)/photo.decoded.png --overwrite
	$(VENV)/bin/python cli.py reconstruct examples/photo.jpg -o $(DEMO)/side-by-side.png --overwrite
	$(VENV)/bin/python cli.py edit examples/photo.jpg --from horse --to deer --guidance 3 --strength 0.5 --strength 0.7 --steps 20 -o $(DEMO)/edit.png --overwrite
	@echo "The photograph and what came back, side by side: $(DEMO)/side-by-side.png"
	@echo "The same horse as a deer: $(DEMO)/edit.png"

test: $(VENV)/.installed-test  ## Run all tests, in as many processes as there are cores.
	$(VENV)/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-test  ## Check style and types (ruff, mypy).
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.installed-docs  ## Make the documentation, in docs/_build; a warning is an error.
	$(VENV)/bin/sphinx-build -q -W --keep-going -b html docs docs/_build

package:  ## Build the wheel, and use it in an environment of its own and an empty folder.
	rm -rf $(VENV)-package
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --quiet build
	$(VENV)-package/bin/python -m build --outdir $(VENV)-package/dist .
	$(VENV)-package/bin/python -m pip install --quiet -c constraints.txt $(VENV)-package/dist/*.whl
	mkdir $(VENV)-package/empty
	cd $(VENV)-package/empty && ../bin/ddim-ode encode $(CURDIR)/examples/photo.jpg -o photo.latent.pt
	cd $(VENV)-package/empty && ../bin/python -m ddim_ode decode photo.latent.pt -o photo.png

notebooks: $(NOTEBOOKS)  ## Run the notebooks from top to bottom, and keep what they print and draw.

$(NOTEBOOKS): $(VENV)/.installed-notebooks
	mkdir -p $(DEMO)/notebooks
	PYTHONWARNINGS=ignore:IProgress $(VENV)/bin/jupytext --to notebook --execute --run-path . --output $(DEMO)/notebooks/$@.ipynb analysis/notebooks/$@.py
	$(VENV)/bin/jupyter nbconvert --to markdown --output-dir analysis/notebooks/rendered $(DEMO)/notebooks/$@.ipynb

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/.installed-notebooks: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[notebooks]"
	touch $@

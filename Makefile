# Everything starts here: make setup | report | clusters | pages | test | study | clean
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m reproduce
JOBS ?= $(shell nproc)
# one word for the shell, whatever is in it
FOLDER_AS_IS = '$(subst ','\'',$(value FOLDER))'

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1	/' | expand -t 16

setup: .venv/ready  ## the environment alone, in .venv, from pinned versions (about 3 minutes)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

report: setup  ## six runs on digits, every figure notebook, results/local/index.html (4 to 13 minutes, 1 the second time)
	$(RUN) sweep notebooks/settings/digits-quick.yaml --grid lambda1=0.1,0.3,1 --grid entropy=batch,sample --jobs $(JOBS)
	$(RUN) report --jobs $(JOBS)
	@echo "open results/local/index.html in a browser; results/index.html has the committed study"

pages: setup  ## the committed pages and figures made again from the runs in results/ (1 to 2 minutes)
	$(RUN) report --results-dir results --jobs $(JOBS)

clusters: named setup  ## your own images: make clusters FOLDER=my_images K=8 trains, writes clusters.csv and a page to work in
	$(RUN) clusters $(FOLDER_AS_IS) $(K) $(ARGS)

named:
	@test -n $(FOLDER_AS_IS) && test -n "$(K)" || { echo "say which images and how many clusters: make clusters FOLDER=my_images K=8"; exit 1; }

test: setup  ## the tests (5 to 13 minutes)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

study: setup  ## what is missing of the committed study on digits, into results/ (all of it: about five hours on two cores)
	$(RUN) campaign digits -p results_dir results --keep first --jobs $(JOBS)
	$(MAKE) pages

clean:  ## forget the runs of this machine (results/local); data and environment stay
	rm -rf results/local

.PHONY: help setup clusters named report pages test study clean

# Everything starts here: make setup | report | pages | test | study | clean
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m reproduce
JOBS ?= 2

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1	/' | expand -t 16

setup: .venv/ready  ## the environment alone, in .venv, from pinned versions (about 3 minutes)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

report: setup  ## six runs on digits, every figure notebook, results/local/index.html (9 to 13 minutes, 1 the second time)
	$(RUN) sweep notebooks/settings/digits-quick.yaml --grid lambda1=0.1,0.3,1 --grid entropy=batch,sample --jobs $(JOBS)
	$(RUN) report --jobs $(JOBS)
	@echo "open results/local/index.html in a browser; results/index.html has the committed study"

pages: setup  ## the committed pages, figures and README's table made again from the runs in results/ (1 minute)
	$(RUN) report --results-dir results --jobs $(JOBS)

clusters: setup  ## your own images: make clusters FOLDER=my_images K=8 trains, writes clusters.csv and a page to look at
	@test -n "$(FOLDER)" && test -n "$(K)" || { echo "say which images and how many clusters: make clusters FOLDER=my_images K=8"; exit 1; }
	$(RUN) clusters "$(FOLDER)" $(K) $(ARGS)

test: setup  ## the tests (about 10 minutes)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

study: setup  ## the committed study on digits, into results/ (about three hours on two cores); finished runs are skipped
	$(RUN) sweep notebooks/settings/digits-quick.yaml -p results_dir results --keep first --jobs $(JOBS) \
	  --grid lambda1=0,0.1,0.3,1,2 --grid entropy=batch,sample --grid seed=0,1,2,3,4
	$(RUN) sweep notebooks/settings/digits-course.yaml -p results_dir results --keep first --jobs $(JOBS) --grid seed=0,1,2,3,4
	$(RUN) sweep notebooks/settings/digits-course.yaml -p results_dir results --keep none --jobs $(JOBS) --grid seed=0,1,2,3,4 \
	  --one entropy=batch,entropy_smoothed=False --one head_init=kaiming,head_bias=True --one decay=weights --one logit_clamp=25 \
	  --one normalize=True
	$(RUN) sweep notebooks/settings/digits-quick.yaml -p results_dir results --keep none --jobs $(JOBS) --grid seed=0,1,2,3,4 \
	  --one entropy=sample,entropy_smoothed=True --one head_init=torch,head_bias=False --one decay=all --one logit_clamp=0 \
	  --one normalize=False --one views=apart
	for method in crlc simclr moco byol simsiam pcl cc propos deepcluster; do \
	  $(RUN) sweep notebooks/settings/digits-quick.yaml -p results_dir results --keep first --jobs $(JOBS) -p method $$method --grid seed=0,1,2,3,4; done
	$(RUN) sweep notebooks/settings/digits-quick.yaml -p results_dir results --keep none --jobs $(JOBS) --grid seed=0,1,2,3,4 \
	  --one n_heads=1 --one n_heads=3 --one lambda2=0 --one lambda2=1 --one smoothing=0 --one smoothing=0.1 \
	  --one critic=dot --one critic=neg_l2 --one critic=neg_js
	$(RUN) sweep notebooks/settings/digits-quick.yaml -p results_dir results --keep none --jobs $(JOBS) -p method deepcluster \
	  --grid pseudo_clusters=10,30,300 --grid seed=0,1,2,3,4
	$(MAKE) pages

clean:  ## forget the runs of this machine (results/local); data and environment stay
	rm -rf results/local

.PHONY: help setup clusters report pages test study clean

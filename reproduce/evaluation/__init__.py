"""Looking at a method while it learns and when it is done.

``extractor``: a network's outputs for all images. ``rules``: each way to make one clustering of
them. ``traces``: what is kept of probabilities from epoch to epoch. ``monitors``: how good it all
looks without a label. ``scores``: how good it is by the labels, which within a run enter nowhere
else. ``evaluator`` puts them together for the loop. ``probes``: what frozen features are worth to
whoever has labels, by nearest neighbours and linear classifiers."""

from reproduce.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]

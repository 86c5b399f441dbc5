"""Reading finished runs. Nothing here trains, and nothing that trains needs it.

study          run directories as one table: which settings vary which, and around what baseline
tables         tables made of it, ours beside the published figures
reading        sentences made of it: what a table or a figure says
findings       what the report and the README claim, the trend, the cost
field          every method side by side, and what the switches of the evaluation are worth
ablations      CRLC's own ablations
deepcluster    DeepCluster's curves over the epochs and over the number of pseudo-clusters, and linear probes
panels         the figures of these three; all others are in reproduce/figures.py
speed          what the benchmark measured: images a second, beside the usual pipeline
waterfall      from the course's settings to the authors', a factor after the other
neighbourhood  the features of single runs: two dimensions to look at, and whether neighbours share a label
"""

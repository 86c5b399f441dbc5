"""Reading finished runs. Nothing here trains, and nothing that trains needs it.

study          run directories as one table: which settings vary which, and around what baseline
tables         tables made of it, ours beside the published figures
reading        sentences made of it: what a table or a figure says
findings       what the report and the README claim, the trend, the cost
speed          what the benchmark measured
neighbourhood  the features of single runs: two dimensions to look at, and whether neighbours share a label
pages          the notebooks executed, and made into pages that need no network
"""

"""Many runs: grids, blocks of the studies, processes here and jobs on a cluster."""

"""Many runs: the grid, lanes of one compiled program, refinement, merging."""

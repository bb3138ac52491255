"""ReconX: a few photos to a 3D Gaussian scene (arXiv 2408.16767), as seven cached stages."""

import os

# Spinning OpenMP threads cost more than the work on shared machines; torch reads this once, at its import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

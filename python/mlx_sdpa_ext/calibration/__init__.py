"""Which path is the fastest on this machine: what `mlx-sdpa-ext calibrate` measures and concludes.

grid.py says which calls, measure.py times them, raw.py keeps what was measured, fit.py finds the
thresholds of the router, and profile.py writes them down. Nothing else imports this.
"""

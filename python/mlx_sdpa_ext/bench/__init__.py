"""Measurements beside stock MLX: what `mlx-sdpa-ext bench` runs. Nothing else imports it.

suites.py lists the suites; a suite yields results as they come, and a record of them is one JSON
file, which the pictures and the tables are made of.
"""

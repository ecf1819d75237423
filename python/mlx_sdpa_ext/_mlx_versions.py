"""The MLX releases that this package can be built for. The build backend reads this file too."""

# libmlx's C++ ABI changes with every MLX release, so a build fits exactly one. nanobind must be the
# one that MLX itself was built with: on another one the import succeeds and every call fails with
# "incompatible function arguments", because the two modules do not share `mlx.core.array`.
NANOBIND_FOR_MLX = {
    "0.31.2": "==2.12.0",
    "0.32.2": "==2.15.0",
    "0.32.4": ">=3.0.0,<=3.1.0",
}

# What a build uses when its target environment has no MLX.
DEFAULT_MLX = "0.32.4"

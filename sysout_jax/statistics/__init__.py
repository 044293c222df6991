"""Statistics of one streaming pass: reduced on the device, joined on the host, defined by `sysout_jax.outliers.definitions`."""

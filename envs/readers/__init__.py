"""Datasets in the formats of others: D4RL, Minari, OGBench, DPPO; `envs.datasets` reads them all."""

"""What ``benchmarks/samplers.py`` runs: targets, samplers, measurement and report."""

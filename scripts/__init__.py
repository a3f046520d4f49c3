"""The experiments that drive both halves: set-up, demo, recipes, studies, benchmarks, translation commands."""

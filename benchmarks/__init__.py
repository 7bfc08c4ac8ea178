"""Programs that measure fxmerge on real data: `python -m benchmarks.bench_<what>`."""

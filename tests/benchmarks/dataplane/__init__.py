"""The data plane against nginx and Envoy, one core for the proxy: `python -m tests.benchmarks.dataplane`.

`programs/` holds a stub of a server and a load, in C, so that neither is what is measured. `machine` gives out the
cores and reads the clocks, `proxies` and `yardsticks` start what is compared, `rounds` lets it take turns, `cases/`
holds the measurements, `rows` what they are judged by. Absolute figures tell about the machine: the ratios count.
"""

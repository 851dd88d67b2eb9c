"""A fleet in virtual time: workers, gateways, late reports and traffic, driven by policies of routing.

Called by the measure `routing` and by its test. The policy `ours` is the production scheduler itself,
imported and not modelled. Nothing here opens a socket, reads a clock or waits.
"""

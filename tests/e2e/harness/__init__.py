"""The harness: starts the real programs of one test and talks to them.

`envoy` runs Envoy on the shipped configuration, `fake` runs the fake NVIDIA upstream, `client`
sends requests, `nimgate` writes plugin configurations and request bodies, `gate` ties the four
together for a test, and `waiting` polls conditions so that no test has to sleep.
"""

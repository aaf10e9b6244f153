"""The executor behind ``dinoctl run``: one machine, one attempt at a time, the same lifecycle as on a cluster."""

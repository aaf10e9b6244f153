"""What executors and workers tell each other, in files: the attempt, who works on it, how far it is, how it ended,
what it left. No torch, so that the client stays light.
"""

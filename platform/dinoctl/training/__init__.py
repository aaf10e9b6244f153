"""Training: learner, engines, optimizer groups, schedules, loop, ledger."""

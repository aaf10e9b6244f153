"""What went wrong with an attempt: one class, the line that shows it, and a bundle that outlives the cluster."""

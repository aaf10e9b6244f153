"""The executor behind ``dinoctl operator``: a small kernel (client, caches, queue, lease) and what it drives."""

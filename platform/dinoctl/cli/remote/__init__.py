"""Commands on a cluster: what they ask of the API server and of storage, and how they tell it."""

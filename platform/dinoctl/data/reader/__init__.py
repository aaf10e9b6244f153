"""Reading ahead from a bucket: `reader.Reader` is what the loader uses, the other files are its parts."""

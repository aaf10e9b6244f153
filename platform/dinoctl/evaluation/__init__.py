"""What a frozen model is worth: one protocol a file, tensors in, named metrics out."""

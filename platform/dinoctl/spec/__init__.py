"""The documents: parsing, validation, resolution, schema. Imports no torch, ray, mlflow or kubernetes."""

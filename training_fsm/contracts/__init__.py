"""The wire contracts as files: JSON Schemas and an AsyncAPI document, made from the models that read and write it."""

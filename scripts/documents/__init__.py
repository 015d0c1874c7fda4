"""The pages, pictures and examples that are made, not written."""

"""The bundled checkpoints, their cards and their results: a shell script makes each, from the images that it names."""

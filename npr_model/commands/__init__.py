"""The subcommands of ``npr``, one a file; options, samples, streams, terminal and training_progress are shared.
A command parses and prints; the work is done in the other rooms. No command imports another.
"""

"""The subcommands of ``npr``, one a file; what they share is in shared/.
A command parses and prints; the work is done in the other rooms. No command imports another.
"""

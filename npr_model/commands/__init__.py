"""The subcommands of ``npr``, one a file; terminal.py has what they share.
A command parses and prints; the work is done in the other rooms.
"""

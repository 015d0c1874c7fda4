"""What several subcommands use: options, images of folders, standard input, the terminal, progress of a training.
Only commands import it.
"""

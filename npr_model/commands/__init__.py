"""The subcommands of ``npr``, one a file. None imports torch before its options are known to be right."""

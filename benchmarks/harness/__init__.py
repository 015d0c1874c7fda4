"""What the benchmarks share: how they begin, what they compute on, whom they compare with, and what counts as a result.

- command.py: options, and how a run begins; inputs.py: parameters, images and files; peers.py: what a user could pick
- runner.py: judges each contender of a case, then times all in turn; parity.py says what is right, timing.py how long
- operator_cases.py, training_stem_cases.py: the cases of the operators
- machine.py, microkernels.c: the machine and its peaks; rows.py: the JSON file of results, and tables of it
"""

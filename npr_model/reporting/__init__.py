"""How results are shown: tables.py makes tables as Markdown and LaTeX.
figures.py makes figures as PNG files.
"""

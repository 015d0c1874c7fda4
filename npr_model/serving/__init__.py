"""``npr serve``: the web page and the HTTP interface that score one image at a time.
An upload is read with a limit on its size and its time.
"""

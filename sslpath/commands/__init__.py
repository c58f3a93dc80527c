"""The commands of ``sslpath``, one module each: its arguments and what it does.

Heavy libraries are imported inside the functions, so that ``sslpath --help`` is quick.
"""

"""The application: command line, configuration, plots and reports.

``cli.py`` has the commands, ``config.py`` the typed configuration that they share, and ``build.py`` makes the objects
of the package from it. Nothing below this room imports it.
"""

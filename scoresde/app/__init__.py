"""The application: typed configs, the command line, plots and reports. Nothing below this room imports it."""

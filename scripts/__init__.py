"""Command-line programs: `python scripts/<name>.py key=value ...`; configuration is read here alone."""  # noqa: E501

"""Commands under a trace (`--traffic`): the same questions, with requests as recorded; knows options, not typer."""

"""Command line."""


def main():
    raise SystemExit("not yet")

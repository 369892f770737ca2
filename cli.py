"""`python cli.py …` from a checkout: the same as the installed `tfcovid`."""

from tf_covid.cli import main

if __name__ == "__main__":
    main()
